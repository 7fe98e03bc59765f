"""Quantization: fewer bits for every number, and whole numbers instead of real ones.

The formula and its grid (`affine`), packed into bytes (`packing`) and kept in layers (`stored`). Book: chapter 3.
"""
from . import affine, packing, stored
from .affine import *
from .packing import *
from .stored import *

__all__ = [name for module in (affine, packing, stored) for name in module.__all__]

# Changes of layers that a saved model repeats when it is loaded; see `models.note_change`.
CHANGES = {"stored": stored.empty_stored}
