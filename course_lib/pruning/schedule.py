"""When to prune: a little at a time, fast at first and ever more slowly, while training goes on.

    s(t) = s_f + (s_i − s_f) · (1 − (t − t_0) / (t_1 − t_0))³        for t_0 <= t <= t_1

s_i, s_f: sparsity at the begin t_0 and from the end t_1 on. Book: chapter 2, "Which weights, how many, when".
"""
from collections.abc import Callable

import torch
from torch import nn

from .masks import Masks, keep_masks
from .scores import magnitude
from .weights import check_fraction, prunable

__all__ = ["Gradual", "polynomial_sparsity"]


def polynomial_sparsity(step: int, *, begin: int, end: int, final: float, initial: float = 0.0, power: float = 3) -> float:
    """Sparsity that the schedule asks for at `step`: `initial` up to `begin`, `final` from `end` on.

    Raises: ValueError unless 0 <= begin < end, 0 <= initial <= final <= 1 and power > 0.
    Source: Zhu & Gupta 2017, eq. 1.
    Equals: PolynomialDecay of the TensorFlow Model Optimization Toolkit; AGP of Distiller, in epochs.
    """
    check_fraction(initial, "initial")
    check_fraction(final, "final")
    if not 0 <= begin < end or initial > final or not power > 0:
        raise ValueError("need 0 <= begin < end, initial <= final and power > 0; "
                         f"got {begin=}, {end=}, {initial=}, {final=}, {power=}")
    progress = min(1.0, max(0.0, (step - begin) / (end - begin)))
    return final + (initial - final) * (1 - progress) ** power


class Gradual(Masks):
    """Prunes more and more while `training.fit` runs, and keeps what is removed at zero.

    Steps are those of the optimizer, counted from 0. The masks grow at `begin`, then every `frequency`
    steps, and at `end`; each time the lowest scores among the weights still left go.
    """

    def __init__(self, *, final: float, begin: int, end: int, frequency: int = 10, initial: float = 0.0,
                 scope: str = "global", scores: Callable[[nn.Module], dict[str, torch.Tensor]] = magnitude):
        polynomial_sparsity(0, begin=begin, end=end, final=final, initial=initial)      # raises for bad arguments
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (begin, end, frequency))
        if not whole or frequency < 1 or scope not in ("global", "layer"):
            raise ValueError("need whole begin and end, a whole frequency >= 1 and scope 'global' or 'layer'; "
                             f"got {begin=}, {end=}, {frequency=}, {scope=}")
        self.final, self.initial, self.begin, self.end = final, initial, begin, end
        self.frequency, self.scope, self.scores = frequency, scope, scores

    def before_training(self, model: nn.Module) -> None:
        """Start from the zeros that the model has already."""
        self.step, self.kept = 0, {name: weight != 0 for name, weight in prunable(model).items()}

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Hold the zeros; if a step of the schedule is due, remove more."""
        super().after_step(model)
        if self.begin <= self.step <= self.end and ((self.step - self.begin) % self.frequency == 0 or self.step == self.end):
            target = polynomial_sparsity(self.step, begin=self.begin, end=self.end, final=self.final, initial=self.initial)
            # What is left to remove, as a share of what is left; in all layers together, or in each.
            left = {name: weight != 0 for name, weight in prunable(model).items()}
            amounts = {name: self._amount(target, [alive]) for name, alive in left.items()}
            amount = amounts if self.scope == "layer" else self._amount(target, list(left.values()))
            self.kept = keep_masks(model, self.scores(model), amount=amount)
            super().after_step(model)
        self.step += 1

    def after_training(self, model: nn.Module) -> None:
        """Raise RuntimeError if training ended before the schedule did, or keeps an epoch before that."""
        if self.step <= self.end:
            raise RuntimeError(f"training had {self.step} steps, but the schedule ends at step {self.end}; use an end "
                               "below the number of steps")
        if any(((weight != 0) & ~self.kept[name]).any() for name, weight in prunable(model).items()):
            raise RuntimeError("the epoch that was kept lies before the end of the schedule: use keep='last'")

    @staticmethod
    def _amount(target: float, alive: list[torch.Tensor]) -> float:
        n, left = sum(a.numel() for a in alive), sum(int(a.sum()) for a in alive)
        return max(0, round(target * n) - (n - left)) / max(1, left)
