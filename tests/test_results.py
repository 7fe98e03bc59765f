"""Stored results: read, paired by seed, and refused where they are damaged or not what was asked for."""
import json

import pytest

from course_lib import intervals, results

PROVENANCE = {"dataset": "mnist-5k", "date": "2026-01-01", "versions": {"torch": "2"}, "machine": "Linux", "command": "python x"}
ROWS = [{"seed": seed, "way": way, "after": value} for way, values in {"a": (1.0, 2.0, 4.0), "b": (1.5, 2.0, 5.5)}.items()
        for seed, value in enumerate(values)]
STUDY = results.Results("fake", ROWS, PROVENANCE)


def test_the_difference_is_paired_by_seed_whatever_the_order_of_the_rows():
    expected = intervals.mean_over_runs([0.5, 0.0, 1.5])
    for rows in (ROWS, ROWS[::-1]):
        assert results.Results("fake", rows, PROVENANCE).difference("after", {"way": "a"}, {"way": "b"}) == expected
    assert STUDY.mean("after", way="a") == intervals.mean_over_runs([1, 2, 4])
    assert STUDY.seeds == [0, 1, 2]


@pytest.mark.parametrize("where", [{"way": "c"}, {}, {"way": "a", "other": 1}])
def test_a_choice_that_is_not_one_row_for_each_seed_is_refused(where):
    with pytest.raises(ValueError, match="must pick one row with 'after' for each of 3 seeds"):
        STUDY.by_seed("after", **where)


def test_a_seed_without_the_row_is_refused():
    with pytest.raises(ValueError, match="it picks 2 rows of 2 seeds"):
        results.Results("fake", ROWS[1:], PROVENANCE).by_seed("after", way="a")


def test_a_value_that_no_row_has_is_refused():
    with pytest.raises(ValueError, match="one row with 'before'"):
        STUDY.by_seed("before", way="a")


def test_the_caption_says_where_the_numbers_come_from():
    assert STUDY.caption == "Study fake: 3 seeds on mnist-5k, made on 2026-01-01 with torch 2 on Linux by `python x`."


def written(path, **changes):
    content = {"format": results.FORMAT, "study": "fake", "rows": ROWS, "provenance": PROVENANCE, **changes}
    path.write_text(json.dumps(content))
    return path


def test_a_file_is_read_as_it_was_written(tmp_path):
    assert results.read(written(tmp_path / "fake.json"), "fake") == STUDY


@pytest.mark.parametrize("changes, message", [
    ({"study": "other"}, "does not hold the results of study 'fake'"), ({"format": "mine"}, "does not hold the results"),
    ({"rows": []}, "has no rows"), ({"provenance": {}}, "no provenance")])
def test_a_foreign_file_is_refused_by_name(tmp_path, changes, message):
    path = written(tmp_path / "fake.json", **changes)
    with pytest.raises(ValueError, match=message) as error:
        results.read(path, "fake")
    assert str(path) in str(error.value)


def test_a_half_written_file_is_refused_by_name(tmp_path):
    path = written(tmp_path / "fake.json")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="damaged or half-written") as error:
        results.read(path, "fake")
    assert str(path) in str(error.value)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="was it put there by something else"):
        results.read(path, "fake")


def test_a_study_without_results_is_an_error_that_says_what_to_do():
    with pytest.raises(FileNotFoundError, match="make study"):
        results.load("no such study")
