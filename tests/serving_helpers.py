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


def wait_until_gone(pids, seconds: float = 15) -> list[int]:
    """Wait until all of them have ended; those that have not in time, which are then killed: a planted fault must leave nothing."""
    deadline = time.monotonic() + seconds
    while (left := running_still(pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left
