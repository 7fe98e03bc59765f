"""torchvision, importable also beside a torch that its compiled operators do not fit.

On Linux the registry's torchvision is a CUDA build. Beside a CPU build of torch its operators do
not load, and `import torchvision` fails with "operator torchvision::nms does not exist". The course
needs only data sets, transforms and model definitions, which use no such operator. So the missing
operators are declared by name only, and the import is tried again. Everything in the course that
uses torchvision goes through `torchvision()`.
"""
import importlib
import sys

import torch

__all__ = ["torchvision"]

_SCHEMA = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared = []      # a torch.library.Library takes its declarations along when it is collected


def torchvision():
    """Import torchvision, with its compiled operators where they load and without them elsewhere.

    Returns: the module `torchvision`. Where its operators do not load, calling one raises
             NotImplementedError; everything else works.
    Raises:  ImportError if torchvision is not installed or fails for any other reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]           # the failed import left half-made modules behind
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):     # declaring twice would be an error
            library.define(_SCHEMA.format(operator))
    _declared.append(library)
    return importlib.import_module("torchvision")
