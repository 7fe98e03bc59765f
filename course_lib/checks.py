"""Claims that raise when they stop being true, and exercises that answer back.

Book: "How this course is checked".
"""
import copy
import os
import textwrap

import numpy as np
import torch

__all__ = ["ClaimError", "WrongAnswer", "check", "expect"]


class ClaimError(AssertionError):
    """A sentence of the book is not true here."""


class WrongAnswer(AssertionError):
    """An exercise's answer is not right yet; the message is a hint."""


def expect(claim: str, ok: bool, detail: str = "", *, measured: bool = False) -> None:
    """Print the claim if it holds; raise ClaimError with the detail if it does not.

    Args:   claim: a full sentence, without any number that the machine could change.
            ok: whether it holds; exactly True or False.
            measured: it is about time on this machine. With COURSE_CLAIMS=report (`make book EXECUTE=1`,
            `make lab`) a measured claim that fails is reported, and the notebook goes on.
    """
    if not isinstance(ok, (bool, np.bool_)):
        raise TypeError(f"ok must be True or False; got {type(ok).__name__}")
    if ok:
        print(textwrap.fill(f"✓ {claim}", 80, subsequent_indent="  "))
    elif measured and os.environ.get("COURSE_CLAIMS", "strict") == "report":
        print(f"✗ not on this machine: {claim} ({detail})")
    else:
        raise ClaimError(f"{claim} – not so here: {detail}")


def check(answer, *, equals=None, like=None, on=(), hint: str, tolerance: float = 1e-6) -> None:
    """Judge the answer to an exercise: a value against `equals`, or a function against `like`.

    Args:   answer: the reader's; `...` means not attempted yet.
            equals: the right value: a number, text, truth value or tensor.
            like, on: the right function, and the inputs (one tuple of arguments each) to try both on.
            hint: what to think of when the answer is wrong.
            tolerance: allowed difference, relative to the right value (in a tensor: to its largest).
    Raises: WrongAnswer with the hint, and for a function with the input that gave it away.
    """
    if (equals is None) == (like is None) or not (like is None or on):
        raise TypeError("a checker needs either `equals` or `like`, and with `like` the inputs `on` to try it on")
    if answer is ...:
        print("not attempted yet")
        return
    if like is None:
        _compare(answer, equals, tolerance, hint)
    elif not callable(answer):
        raise WrongAnswer(f"the answer must be a function; got {type(answer).__name__}. Hint: {hint}")
    else:
        for arguments in on:
            given, kept = copy.deepcopy(arguments), copy.deepcopy(arguments)
            with_input = f" With input {_short(arguments)}."
            try:
                result = answer(*given)
            except Exception as error:
                raise WrongAnswer(f"your function raised {error!r}.{with_input} Hint: {hint}") from error
            _compare(result, like(*copy.deepcopy(arguments)), tolerance, hint, with_input)
            for before, after in zip(kept, given):
                _compare(after, before, 0, "work on a copy", " Your function changed its own input.")
    print("correct")


def _compare(got, expected, tolerance: float, hint: str, context: str = "") -> None:
    if not _equal(got, expected, tolerance):
        raise WrongAnswer(f"not yet: got {_short(got)}.{context} Hint: {hint}")


def _equal(got, expected, tolerance: float) -> bool:
    """Whether `got` has the kind, shape and values of `expected`."""
    if isinstance(expected, torch.nn.Module):
        return type(got) is type(expected) and _equal(got.state_dict(), expected.state_dict(), tolerance)
    if isinstance(expected, (list, tuple, dict)):
        if type(got) is not type(expected) or len(got) != len(expected):
            return False
        if isinstance(expected, dict):
            return got.keys() == expected.keys() and all(_equal(got[k], expected[k], tolerance) for k in expected)
        return all(_equal(a, b, tolerance) for a, b in zip(got, expected))
    numeric = (bool, int, float, np.bool_, np.number, np.ndarray, torch.Tensor)
    if not isinstance(expected, numeric):
        return type(got) is type(expected) and got == expected
    if not isinstance(got, numeric):
        return False
    try:
        a, b = (torch.as_tensor(x.copy() if isinstance(x, np.ndarray) else x) for x in (got, expected))
    except (RuntimeError, TypeError):           # an array of words, say
        return False
    if a.shape != b.shape or (a.dtype == torch.bool) != (b.dtype == torch.bool):
        return False
    a, b = a.double(), b.double()
    scale = float(b.abs().max()) if b.numel() else 1.0      # a picojoule is not zero joules
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * min(1.0, scale), equal_nan=True)


def _short(value) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else text[:117] + "…"
