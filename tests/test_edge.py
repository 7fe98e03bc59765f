"""The camera's film, frames on a clock that only the model moves, and a neighbour that always ends."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_lib import edge
from course_lib.data import Split
from helpers import random_split
from serving_helpers import running_still, wait_for, wait_until_gone


class Clock:
    """Time passes only while the model works, or while `play` sleeps."""
    now = 100.0

    def read(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds + 1e-12


def played(takes, *, period=1.0, deadline=None):
    """The log of a model that takes so long for each frame: a number for all, or one for each frame."""
    clock = Clock()
    takes = [takes] * 40 if isinstance(takes, (int, float)) else takes

    def model(frame):
        clock.wait(takes[frame])
        return frame
    return edge.play(range(len(takes)), model, period=period, deadline=deadline, clock=clock.read, sleep=clock.wait, cpu=clock.read)


# --- the clock ---

def test_an_example_by_hand():
    """Frame 0 takes 2.5 periods: meanwhile 1 and 2 arrive, 2 replaces 1. Frame 2 ends at 2.8, late no more than frame 0."""
    log = played([2.5, 0.3, 0.3, 0.3, 1.0])
    assert log.dropped.tolist() == [False, True, False, False, False]
    assert log.ended == pytest.approx([2.5, np.nan, 2.8, 3.3, 5.0], nan_ok=True)
    assert log.response == pytest.approx([2.5, np.nan, 0.8, 0.3, 1.0], nan_ok=True)
    assert log.busy == pytest.approx([2.5, 0, 0.3, 0.3, 1.0]) and log.duty == pytest.approx(4.1 / 5)
    assert played([2.5, 0.3, 0.3, 0.3, 1.0], deadline=1.001).missed == pytest.approx(2 / 5)
    assert log.answers == [0, None, 2, 3, 4]
    assert log.in_force(-1)[:4] == [-1, -1, 2, 3]


def test_answers_in_force_are_the_newest_that_were_there_in_time():
    log = edge.Log(np.arange(4.0), np.array([0.0, np.nan, 2.0, 3.5]), np.array([1.5, np.nan, 2.5, 4.5]), np.zeros(4), 1.0,
                   ["a", None, "c", "d"])
    # due at 1, 2, 3, 4: nothing yet; the late a; c in time; d is not there yet, so c still
    assert log.in_force("nothing") == ["nothing", "a", "c", "c"]
    assert log.late.tolist() == [True, False, False, True] and log.missed == 0.75


@given(st.floats(0.01, 5.0), st.floats(0.1, 10.0))
def test_the_share_of_dropped_frames_is_one_minus_period_over_time(takes, period):
    log = played([takes * period] * 400, period=period)
    assert log.dropped.mean() == pytest.approx(max(0, 1 - 1 / takes), abs=0.01 + 2 / 400)
    seen = ~log.dropped
    assert (log.began[seen] >= log.arrived[seen] - 1e-6).all() and (np.diff(log.began[seen]) > 0).all()
    response = log.response[:-1][seen[:-1]]             # the last one has no newer frame that could take its place
    assert (response <= (takes + min(1, takes) + 1e-6) * period).all()       # never behind by more than a frame
    assert log.duty == pytest.approx(min(takes, 1), abs=0.01) and log.duty <= 1 + 1e-9    # also where the last frames end after the film


@given(st.lists(st.floats(0.01, 4.0), min_size=2, max_size=30))
def test_what_is_not_dropped_is_the_newest_frame_when_the_model_is_free(takes):
    log = played(takes)
    free = 0.0
    for i in np.flatnonzero(~log.dropped):
        assert i == min(max(int(free + 1e-9), i if i > free else 0), len(takes) - 1) and log.began[i] == pytest.approx(max(free, i), abs=1e-6)
        free = log.ended[i]


def test_jitter_is_the_distance_from_the_median_to_the_95th_percentile():
    takes = [0.1] * 80 + [0.3] * 20
    assert played(takes).jitter == pytest.approx(0.2) and played([0.1] * 100).jitter == pytest.approx(0, abs=1e-9)


def test_on_the_real_clock_the_frames_come_when_they_should():
    log = edge.play(range(30), lambda frame: frame, period=0.004)
    assert log.answers[-1] == 29 and (log.began[~log.dropped] >= log.arrived[~log.dropped]).all() and log.ended[-1] >= 29 * 0.004


@pytest.mark.parametrize("frames, options", [([1], {"period": 1.0}), ([1, 2], {"period": 0.0}), ([1, 2], {"period": float("nan")}),
                                             ([1, 2], {"period": 1.0, "deadline": 0.0})])
def test_a_clock_that_makes_no_sense_is_refused(frames, options):
    with pytest.raises(ValueError, match="at least two frames"):
        edge.play(frames, lambda frame: frame, **options)


# --- the film ---

def test_without_motion_and_noise_a_film_shows_the_images_themselves():
    split = random_split(30)
    film = edge.film(split, frames=25, windows=4, stays=10, motion=0, noise=0)
    assert film.images.shape == (25, 4, *split.images.shape[1:]) and film.labels.shape == (25, 4) and len(film) == 25
    for frame in range(25):
        for window in range(4):
            same = (split.images - film.images[frame, window]).abs().amax(dim=(1, 2, 3)) < 1e-5
            assert film.labels[frame, window] in split.labels[same]


def test_an_image_stays_as_long_as_it_should_and_windows_change_at_different_times():
    numbered = Split(torch.rand(1000, 1, 4, 4), torch.arange(1000))
    labels = edge.film(numbered, frames=60, windows=50, stays=7, motion=0, noise=0).labels
    changes = (labels[1:] != labels[:-1])
    for window in range(50):
        at = changes[:, window].nonzero().flatten()
        assert 1 <= at[0] + 1 <= 7 and set(at.diff().tolist()) <= {7}
    assert len({int(changes[:, window].nonzero()[0]) for window in range(50)}) > 3


def test_motion_moves_by_whole_pixels_what_it_should():
    """A bright pixel in the middle, moved one pixel down and two to the right."""
    from course_lib.edge.camera import _moved
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 3, 3] = 1
    moved = _moved(image, torch.tensor([[1.0, 2.0]]))
    expected = torch.zeros_like(image)
    expected[0, 0, 4, 5] = 1
    assert torch.allclose(moved, expected, atol=1e-5)


def test_motion_and_noise_have_the_size_that_is_asked_for_and_stay_in_range():
    dot = torch.zeros(1, 1, 21, 21)
    dot[0, 0, 10, 10] = 1
    film = edge.film(Split(dot, torch.zeros(1).long()), frames=400, windows=4, motion=2.0, noise=0)
    mass = film.images.flatten(0, 1)[:, 0]
    rows = (mass.sum(dim=2) * torch.arange(21)).sum(dim=1) / mass.sum(dim=(1, 2))
    assert float((rows - 10).std()) == pytest.approx(2.0, rel=0.1)
    grey = Split(torch.full((1, 1, 8, 8), 0.5), torch.zeros(1).long())
    noisy = edge.film(grey, frames=50, windows=2, motion=0, noise=0.1).images
    assert float((noisy - 0.5).std()) == pytest.approx(0.1, rel=0.05) and 0 <= noisy.min() and noisy.max() <= 1
    assert edge.film(grey, frames=50, windows=2, motion=0, noise=3.0).images.min() == 0


def test_the_same_seed_gives_the_same_film_and_leaves_the_images_alone():
    split = random_split(20)
    before = split.images.clone()
    first, again, other = (edge.film(split, frames=9, windows=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert torch.equal(split.images, before)


@pytest.mark.parametrize("options", [{"frames": 0}, {"windows": 0}, {"stays": 0}, {"motion": -1}, {"noise": -0.1}])
def test_a_film_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="need at least one frame"):
        edge.film(random_split(5), **{"frames": 3, "windows": 2, **options})


# --- the core and the neighbour ---

def test_the_process_stays_on_one_core_only_inside_the_with():
    before = os.sched_getaffinity(0)
    with pytest.raises(KeyError), edge.one_core() as core:
        assert os.sched_getaffinity(0) == {core}
        raise KeyError
    assert os.sched_getaffinity(0) == before


def cpu_ticks(pid) -> int:
    """Processor time of a process so far, in ticks of about 10 ms."""
    with open(f"/proc/{pid}/stat") as stat:
        return sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_the_neighbour_is_busy_on_the_core_and_gone_afterwards(error):
    with edge.one_core() as core:
        try:
            with edge.neighbour(core) as pid:
                before = cpu_ticks(pid)
                assert os.sched_getaffinity(pid) == {core}
                assert wait_for(lambda: cpu_ticks(pid) > before)
                if error:
                    raise error
        except (ZeroDivisionError, KeyboardInterrupt):
            pass
    assert wait_until_gone([pid]) == []


def test_the_neighbour_keeps_to_its_core_though_we_may_use_all():
    with edge.neighbour(0) as pid:
        assert os.sched_getaffinity(pid) == {0}


def test_the_neighbour_ends_when_we_are_killed():
    code = "import time\nfrom course_lib import edge\nwith edge.neighbour() as pid:\n    print(pid, flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as ours:
        pid = int(ours.stdout.readline())
        assert running_still([pid]) == [pid]
        ours.kill()
    assert wait_until_gone([pid]) == []


def test_a_core_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="cannot be kept on core 4711"), edge.neighbour(4711):
        pass
