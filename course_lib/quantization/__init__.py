"""Quantization: fewer bits for every number, and whole numbers instead of real ones.

Grids (`affine`), packed into bytes (`packing`) and kept in layers (`stored`); other values than those of an even grid
(`codebook`, `binary`), shared out over layers (`mixed`) and rounded with more care (`equalize`, `gptq`). Grids for
activations (`calibration`), layers that really compute in integers (`folding`, `integer`, `static`, `qdq`), and
training with the rounding in the loop (`ste`, `learned_step`, `qat`). Book: chapter 3.
"""
from . import (affine, binary, blocks, calibration, codebook, equalize, folding, gptq, integer, learned_step, mixed, packing,
               qat, qdq, ready_made, static, ste, stored)
from .affine import *
from .binary import *
from .blocks import *
from .calibration import *
from .codebook import *
from .equalize import *
from .folding import *
from .gptq import *
from .integer import *
from .learned_step import *
from .mixed import *
from .packing import *
from .qat import *
from .qdq import *
from .ready_made import *
from .static import *
from .ste import *
from .stored import *

__all__ = [name for module in (affine, packing, stored, calibration, folding, integer, static, qdq, ste, learned_step,
                                qat, codebook, binary, mixed, equalize, gptq, ready_made, blocks) for name in module.__all__]

# Changes of layers that a saved model repeats when it is loaded; see `models.note_change`.
CHANGES = {"stored": stored.empty_stored, "folded": folding.empty_folded, "static": static.empty_static,
           "fake_inputs": qat.fake_inputs}
