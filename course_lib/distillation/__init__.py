"""Knowledge distillation: a small model learns from the outputs of a large one.

The loss (`losses`), what the teacher said, written down once (`transfer`), and other things than logits to learn
from (`hints`). Book: chapter 4.
"""
from . import hints, losses, transfer
from .hints import *
from .losses import *
from .transfer import *

__all__ = [name for module in (losses, transfer, hints) for name in module.__all__]
