"""Claims raise when they are false; checkers take right answers and turn down every wrong one."""
import numpy as np
import pytest
import torch

from course_lib import checks

HINT = "think of the zeros"


def verdict(answer, capsys, **how):
    """What a checker says: "correct", "not attempted yet", or the text of WrongAnswer."""
    try:
        checks.check(answer, hint=HINT, **how)
    except checks.WrongAnswer as wrong:
        return str(wrong)
    return capsys.readouterr().out.strip()


# --- claims ---

@pytest.mark.parametrize("ok", [True, np.bool_(True)])
def test_a_claim_that_holds_is_printed_and_nothing_else(ok, capsys):
    checks.expect("masks make no file smaller", ok, "400 against 400 bytes")
    assert capsys.readouterr().out == "✓ masks make no file smaller\n"


def test_a_long_claim_is_printed_whole_in_lines_that_fit(capsys):
    claim = "a file of which nine weights in ten are zero is " + "no smaller and " * 10 + "no faster"
    checks.expect(claim, True)
    printed = capsys.readouterr().out
    assert printed.split() == ["✓", *claim.split()] and max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("ok", [False, np.bool_(False)])
@pytest.mark.parametrize("measured", [False, True])
def test_a_claim_that_does_not_hold_raises_with_its_detail(ok, measured, monkeypatch):
    monkeypatch.delenv("COURSE_CLAIMS", raising=False)          # strict is the default
    with pytest.raises(checks.ClaimError, match="masks are slower – not so here: ratio 1.02"):
        checks.expect("masks are slower", ok, "ratio 1.02", measured=measured)


def test_on_a_readers_machine_only_measured_claims_may_fail(monkeypatch, capsys):
    monkeypatch.setenv("COURSE_CLAIMS", "report")
    checks.expect("a is faster", False, "ratio 1.02", measured=True)
    assert capsys.readouterr().out == "✗ not on this machine: a is faster (ratio 1.02)\n"
    with pytest.raises(checks.ClaimError, match="a is more accurate"):
        checks.expect("a is more accurate", False, "by -1 point")
    monkeypatch.setenv("COURSE_CLAIMS", "strict")
    with pytest.raises(checks.ClaimError, match="a is faster"):
        checks.expect("a is faster", False, "ratio 1.02", measured=True)


@pytest.mark.parametrize("ok", [1, 0, None, "yes", (True,), torch.tensor(True), np.array([True, True])])
def test_a_claim_must_be_true_or_false_and_not_something_like_it(ok):
    with pytest.raises(TypeError, match=f"ok must be True or False; got {type(ok).__name__}"):
        checks.expect("a claim", ok)


# --- values ---

@pytest.mark.parametrize("how", [{"equals": 3}, {"equals": torch.ones(2)}, {"like": abs, "on": [(1,)]}])
def test_dots_are_not_attempted_yet(how, capsys):
    assert verdict(..., capsys, **how) == "not attempted yet"


RIGHT = [
    (7, 7), (7.0, 7), (np.int64(7), 7), (torch.tensor(7), 7), (0.9 + 1e-9, 0.9), (1e9 + 1, 1e9), (np.float32(0.5), 0.5),
    (True, True), (np.bool_(True), True), (torch.tensor(False), False), ("b", "b"), ([1, "a"], [1, "a"]),
    ((torch.ones(2), 3), (torch.ones(2), 3.0)), ({"w": torch.ones(2)}, {"w": torch.ones(2)}),
    (torch.tensor([1.0, 2.0]), torch.tensor([1, 2])), (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])),
    (torch.tensor([0.5], requires_grad=True), torch.tensor([0.5])), (torch.tensor([0.5]).half(), torch.tensor([0.5])),
    (torch.tensor([True, False]), torch.tensor([True, False])), (np.array([True, False]), torch.tensor([True, False])),
    (np.array([2.0, 1.0])[::-1], torch.tensor([1.0, 2.0])), (torch.zeros(0, 3), torch.zeros(0, 3)),
    (torch.tensor([float("nan"), 1]), torch.tensor([float("nan"), 1])),
]
WRONG = [
    (8, 7), (90, 0.9), (0.9, 90), (-0.5, 0.5), (0.9 + 1e-4, 0.9), (1e9 + 1e5, 1e9), (float("nan"), 0.9), (float("inf"), 0.9),
    (False, True), (1, True), (0, False), (True, 1), ("a", "b"), ("7", 7), (7, "7"), (None, 7), ([7], 7), ((1, 2), [1, 2]),
    ([1.0, 2.0], torch.tensor([1.0, 2.0])), ((torch.ones(2), 3), (torch.ones(2), 4)), ({"w": 1}, {"v": 1}),
    ({"w": 1}, {"w": 2}), ([1], [1, 2]), (abs, 7), ({}, 7), (1j, 1),
    (torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0])), (torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])),
    (torch.ones(2, 1), torch.ones(2)), (torch.ones(3), torch.ones(2)), (1.0, torch.ones(2)), (torch.ones(1), torch.ones(())),
    (torch.tensor([1, 0]), torch.tensor([True, False])), (torch.tensor([True, False]), torch.tensor([1.0, 0.0])),
    (torch.tensor([False, True]), torch.tensor([True, False])), (np.array(["a", "b"]), torch.ones(2)),
    (torch.tensor([float("nan"), 1]), torch.tensor([2.0, 1])), (torch.ones(2), torch.tensor([float("nan"), 1])),
]


@pytest.mark.parametrize("answer, expected", RIGHT, ids=repr)
def test_a_right_value_is_correct(answer, expected, capsys):
    assert verdict(answer, capsys, equals=expected) == "correct"


@pytest.mark.parametrize("answer, expected", WRONG, ids=repr)
def test_a_wrong_value_gets_the_hint(answer, expected, capsys):
    said = verdict(answer, capsys, equals=expected)
    assert said.startswith("not yet: got ") and said.endswith(f"Hint: {HINT}")
    assert capsys.readouterr().out == ""


def test_the_tolerance_is_the_authors(capsys):
    assert verdict(0.93, capsys, equals=0.9, tolerance=0.02) == "correct"
    assert verdict(0.95, capsys, equals=0.9, tolerance=0.02).startswith("not yet: got 0.95.")


def test_a_long_answer_is_shown_in_short(capsys):
    said = verdict(list(range(1000)), capsys, equals=3)
    assert "…" in said and len(said) < 200


# --- functions ---

def mask(weight, threshold):
    return weight.abs() >= threshold


def spoils_its_input(weight, threshold):
    keep = weight.abs() >= threshold
    weight[~keep] = 0
    return keep


WEIGHT = torch.tensor([-0.5, 0.1, 0.5, 0.0])
ON = [(WEIGHT, 0.5), (WEIGHT, 0.0), (torch.zeros(0), 1.0)]
WRONG_FUNCTIONS = {
    "off by a tie": (lambda w, t: w.abs() > t, "not yet: got tensor"),
    "inverted": (lambda w, t: w.abs() < t, "not yet: got tensor"),
    "without the sign": (lambda w, t: w >= t, "not yet: got tensor"),
    "another kind": (lambda w, t: w * (w.abs() >= t), "not yet: got tensor"),
    "no answer": (lambda w, t: None, "not yet: got None."),
    "dots inside": (lambda w, t: ..., "not yet: got Ellipsis."),
    "raises": (lambda w, t: w / "t", "your function raised TypeError("),
    "too few arguments": (lambda w: w, "your function raised TypeError("),
    "no function": (3, "the answer must be a function; got int."),
}


@pytest.mark.parametrize("answer", [mask, lambda w, t: (w.abs() >= t).numpy(), lambda w, t: torch.logical_not(w.abs() < t)])
def test_a_right_function_is_correct(answer, capsys):
    assert verdict(answer, capsys, like=mask, on=ON) == "correct"


@pytest.mark.parametrize("name", WRONG_FUNCTIONS)
def test_a_wrong_function_gets_the_hint_and_the_input_that_gave_it_away(name, capsys):
    answer, start = WRONG_FUNCTIONS[name]
    said = verdict(answer, capsys, like=mask, on=ON)
    assert said.startswith(start) and said.endswith(f"Hint: {HINT}")
    if callable(answer):
        assert "With input (tensor([-0.5000" in said
    assert capsys.readouterr().out == ""


def test_an_error_inside_the_readers_function_keeps_its_own_traceback():
    def broken(weight, threshold):
        raise KeyError("inside")
    with pytest.raises(checks.WrongAnswer) as caught:
        checks.check(broken, like=mask, on=ON, hint=HINT)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_a_function_that_changes_its_input_is_caught(kind, capsys):
    def doubled(values):
        return 2 * torch.as_tensor(values)

    def spoiling(values):
        result = 2 * torch.as_tensor(values)
        values[0] = 0
        return result
    given = kind([1.0, 2.0])
    assert verdict(doubled, capsys, like=doubled, on=[(given,)]) == "correct"
    said = verdict(spoiling, capsys, like=doubled, on=[(given,)])
    assert "Your function changed its own input." in said and "work on a copy" in said
    assert given[0] == 1
    assert "changed its own input" in verdict(spoils_its_input, capsys, like=mask, on=ON)


def test_a_function_of_a_model_can_be_checked(capsys):
    def silence(model):
        model.weight.data.zero_()
        return 0
    model = torch.nn.Linear(2, 1)
    assert verdict(lambda m: 3, capsys, like=lambda m: sum(p.numel() for p in m.parameters()), on=[(model,)]) == "correct"
    assert "changed its own input" in verdict(silence, capsys, like=lambda m: 0, on=[(model,)])
    assert model.weight.count_nonzero() == 2


def test_every_input_is_tried(capsys):
    right_at_first = lambda w, t: mask(w, t) if t else ~mask(w, t)       # noqa: E731
    assert verdict(right_at_first, capsys, like=mask, on=ON[:1]) == "correct"
    assert "0.0)" in verdict(right_at_first, capsys, like=mask, on=ON)


@pytest.mark.parametrize("how, message", [
    ({}, "either `equals` or `like`"), ({"equals": 3, "like": abs, "on": [(1,)]}, "either `equals` or `like`"),
    ({"like": abs}, "`on`"), ({"like": abs, "on": []}, "`on`")])
def test_a_checker_that_would_check_nothing_is_refused(how, message):
    with pytest.raises(TypeError, match=message):
        checks.check(3, hint=HINT, **how)
    with pytest.raises(TypeError, match=message):
        checks.check(..., hint=HINT, **how)
