"""Which rank in which layer? One for all, an equal share of each, by singular-value energy, or greedily by accuracy.

Each plan twice: the weights approximated as they are, and whitened, so that the outputs on training images are. Greedy plans
are searched for on validation images; the accuracies in the rows are those on test images.
"""
from common import LENET, accuracy, fine_tuned, trained
from runner import Study, main

from course_lib import cost, low_rank, training

BUDGETS = (0.3, 0.15, 0.08)             # shares of the dense network's parameters


def largest_within(dense, budget: float, plan) -> dict[str, int]:
    """The ranks plan(1), plan(2), … as far as the budget goes; layers that would not become smaller stay whole."""
    shapes = {name: layer.weight.flatten(1).shape for name, layer in low_rank.factorizable(dense).items()}
    n, level, best = cost.parameters(dense), 1, None
    while True:
        ranks = {name: rank for name, rank in plan(level, shapes).items() if 0 < rank <= low_rank.break_even_rank(*shapes[name])}
        if n - sum(shapes[name].numel() - rank * sum(shapes[name]) for name, rank in ranks.items()) > budget:
            return best
        best, level = ranks, level + 1


def one_rank(level: int, shapes: dict) -> dict[str, int]:
    """The same rank in every layer."""
    return dict.fromkeys(shapes, level)


def equal_share(level: int, shapes: dict) -> dict[str, int]:
    """In each layer but the last the same share, in thousandths, of its break-even rank, and at least 1."""
    return {name: max(1, level * low_rank.break_even_rank(*shapes[name]) // 1000) for name in list(shapes)[:-1]}


def by_energy(dense, budget: float, moments, skip=()) -> dict[str, int]:
    return low_rank.ranks_within(dense, cost.parameters, budget, moments=moments, skip=skip)


def greedy(dense, digits, budgets: list[float], moments) -> list[dict[str, int]]:
    """The ranks of one greedy search as it passes each budget."""
    def score(model):
        return training.evaluate(model, digits.validation).value

    _, steps = low_rank.greedy_ranks(dense, cost.parameters, min(budgets), score, moments=moments, shrink=0.85)
    found = []
    for budget in budgets:
        last = next(i for i, step in enumerate(steps) if step.cost <= budget)
        found.append({step.layer: step.rank for step in steps[:last + 1]})
    return found


def unit(network: str, seed: int) -> list[dict]:
    """All plans at equal budget, before and after the same fine-tuning; and the control that stays dense."""
    dense, digits = trained(network, seed)
    n, moments = cost.parameters(dense), low_rank.input_moments(dense, digits.train.images)
    budgets = [share * n for share in BUDGETS]
    rows = [{"plan": "dense", "before": accuracy(dense, digits), "after": accuracy(fine_tuned(network, dense, digits), digits)}]
    for whitened in (False, True):
        inputs = moments if whitened else {}
        searched = greedy(dense, digits, budgets, inputs)
        for share, budget, by_search in zip(BUDGETS, budgets, searched):
            plans = {"one rank": largest_within(dense, budget, one_rank), "equal share": largest_within(dense, budget, equal_share),
                     "energy": by_energy(dense, budget, inputs), "greedy": by_search,
                     "energy, output whole": by_energy(dense, budget, inputs, skip=list(moments)[-1:])}
            for plan, ranks in plans.items():
                model = low_rank.factorize(dense, ranks, moments={name: inputs[name] for name in ranks if whitened})
                rows.append({"plan": plan, "whitened": whitened, "budget": share, "reached": cost.parameters(model) / n,
                             "ranks": ", ".join(f"{name}: {ranks.get(name, 'whole')}" for name in moments),
                             "before": accuracy(model, digits), "after": accuracy(fine_tuned(network, model, digits), digits)})
    return rows


if __name__ == "__main__":
    main(Study("low_rank_ranks", (LENET,), tuple(range(10)), unit))
