"""Low-rank factorisation: a large matrix as a product of smaller ones.

The singular value decomposition (`svd`), kernels as chains of small ones (`kernels`), layers really replaced
(`layers`), and ranks chosen under a budget (`ranks`). Book: chapter 4.
"""
from . import kernels, layers, ranks, svd
from .kernels import *
from .layers import *
from .ranks import *
from .svd import *

__all__ = [name for module in (svd, kernels, layers, ranks) for name in module.__all__]

# Changes of layers that a saved model repeats when it is loaded; see `models.note_change`.
CHANGES = {"factorized": layers.empty_factorized}
