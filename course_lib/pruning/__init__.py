"""Pruning: which weights, how many in which layer, when, and what it takes to gain something from it.

Masks set single weights to zero (`masks`), chosen by a score (`scores`), layer by layer (`sensitivity`) or
step by step (`schedule`), in a pattern (`patterns`), stored and run as sparse arrays (`sparse`). Whole
units can be taken out instead, which leaves a smaller dense model (`groups`, `structured`). Book: chapter 2.
"""
from . import groups, masks, patterns, schedule, scores, sensitivity, sparse, structured, unit_scores, weights
from .groups import *
from .masks import *
from .patterns import *
from .schedule import *
from .scores import *
from .sensitivity import *
from .sparse import *
from .structured import *
from .unit_scores import *
from .weights import *

__all__ = [name for module in (weights, scores, masks, sensitivity, schedule, patterns, sparse,
                                groups, unit_scores, structured) for name in module.__all__]

# Changes of layers that a saved model repeats when it is loaded; see `models.note_change`.
CHANGES = {"remove": structured.resize, "csr": sparse.empty_csr}
