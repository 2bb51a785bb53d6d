"""A run killed anywhere, given again until it is done, ends like one that nobody disturbed: bit by bit."""

import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.harness import Place, assert_same

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
SEED = int(os.environ.get("FAULTS_SEED", "2024"))
POINTS = int(os.environ.get("FAULTS_POINTS", "0"))
"""Runs to kill one after the other, as `make test-faults` wants it."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The run that nobody disturbed.

    Attributes:
        place: its folders.
        seconds: that it took.
        changes: to files that were seen meanwhile.
    """

    place: Place
    seconds: float
    changes: int

    def kill(self, place: Place, part: float, rng: random.Random) -> bool:
        """Kill another run when about so much of it is over, by the clock or by what it has written."""
        how = rng.choice(SIGNALS)
        if rng.random() < 0.5:
            return place.kill_after(part * self.seconds, how)
        return place.kill_at_change(1 + int(part * self.changes), how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    seconds, changes = place.finish_watched()
    return Whole(place=place, seconds=seconds, changes=changes)


def test_killed_in_the_middle_of_a_run(whole: Whole, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    place = Place(tmp_path / "run")
    killed = whole.kill(place, 0.2 + 0.6 * rng.random(), rng)
    place.finish()
    print(f"seed {SEED}: {place.history}")
    assert killed
    assert_same(place, whole.place)


@pytest.mark.skipif(POINTS == 0, reason="make test-faults")
@pytest.mark.parametrize("point", range(max(POINTS, 1)))
def test_killed_at_a_random_point_and_perhaps_again(whole: Whole, tmp_path: Path, point: int) -> None:
    """The points are spread evenly over the run, each at random within its part."""
    rng = random.Random(1000 * SEED + point)
    place, part = Place(tmp_path / "run"), (point + rng.random()) / POINTS
    while not whole.kill(place, part, rng):
        # It was quicker than the run that nobody disturbed, and is over: another one, killed earlier.
        shutil.rmtree(place.root)
        place, part = Place(tmp_path / "run"), 0.9 * part
    while rng.random() < 0.3:
        whole.kill(place, rng.random(), rng)
    place.finish()
    print(f"seed {SEED}, point {point} of {POINTS}: {place.history}")
    assert_same(place, whole.place)
