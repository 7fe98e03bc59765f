"""A model at the edge: a camera that does not wait, a deadline for each frame, and a neighbour on the same core.

`camera` makes the frames, `stream` plays them on a clock and keeps the log, `neighbours` disturb. Book: chapter 6,
"At the edge: a frame every few milliseconds".
"""
from . import camera, neighbours, stream
from .camera import *
from .neighbours import *
from .stream import *

__all__ = [*camera.__all__, *neighbours.__all__, *stream.__all__]
