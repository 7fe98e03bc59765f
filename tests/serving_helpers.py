"""What the tests of course_lib.serving share: a model that is checked by eye, and a look at processes."""
import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

SHAPE = (1, 2, 2)


def flat_model(shape=SHAPE, *, batch="n", scores=None, inputs=1, of=TensorProto.FLOAT, name="pixels") -> bytes:
    """An ONNX file whose scores are the pixels themselves."""
    given = [helper.make_tensor_value_info(name + "2" * i, of, [batch, *shape]) for i in range(inputs)]
    scores = [batch, int(np.prod([size for size in shape if isinstance(size, int)]))] if scores is None else scores
    answer = helper.make_tensor_value_info("scores", of, scores)
    node = helper.make_node("Flatten" if len(scores) == 2 else "Identity", [name], ["scores"])
    model = helper.make_model(helper.make_graph([node], "flat", given, [answer]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model.SerializeToString()


def running_still(pids) -> list[int]:
    """Those processes that have not ended (a zombie has). Linux."""
    left = []
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX":
            left.append(pid)
    return left


def wait_for(condition, seconds: float = 60) -> bool:
    """Wait until the condition holds; whether it did in time. Long enough for a busy machine, where it may fail all the same."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(holds)


def wait_until_gone(pids, seconds: float = 15) -> list[int]:
    """Wait until all of them have ended; those that have not in time, which are then killed: a planted fault must leave nothing."""
    wait_for(lambda: not running_still(pids), seconds)
    for pid in (left := running_still(pids)):
        os.kill(pid, signal.SIGKILL)
    return left
