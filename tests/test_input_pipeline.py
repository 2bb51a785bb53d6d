"""The benchmark of the input pipeline runs, and times what it says."""

from typing import Any

import numpy as np
import pytest

from benchmarks import input_pipeline
from benchmarks.input_pipeline import FED, PIPELINE, STEP


@pytest.mark.slow
def test_the_benchmark_runs_in_a_small_form(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    trainers: list[input_pipeline.Trainer] = []

    class Kept(input_pipeline.Trainer):
        def __init__(self, *args: Any, **settings: Any):
            super().__init__(*args, **settings)
            trainers.append(self)

    monkeypatch.setattr(input_pipeline, "Trainer", Kept)
    small = ["--pairs", "1", "--backbones", "tiny-internvl", "--batches", "3", "--steps", "2", "--users", "2"]
    input_pipeline.main(small)
    out = capsys.readouterr().out
    (row,) = [line.split("│")[1:-1] for line in out.splitlines() if line.count("│") == 8 and "tiny-internvl" in line]
    assert [cell.strip() for cell in row[:2]] == ["tiny-internvl", "3"]
    assert all(float(cell) > 0 for cell in row[2:])
    assert "features on the device" in out and out.count("pages drawn and stored") == 1
    assert len([line for line in out.splitlines() if "vision tower, tiny-internvl" in line]) == 2

    (used,) = trainers
    assert used.steps == 2 and used.sessions == 6
    assert int(used.state.step) == 2 * 2 * 2, "two steps, fed and not, in the round to warm up and in the timed one"
    for kept, again in zip(used.resident, used._batches(), strict=True):
        assert kept.user.shape == (1, 3)
        np.testing.assert_array_equal(kept.session, again.session)


def test_rates_are_of_sessions_and_ratios_of_rounds():
    class Six:
        sessions = 6

    times = {PIPELINE: [1.0, 2.0, 3.0], STEP: [10.0, 10.0, 60.0], FED: [11.0, 15.0, 60.0]}
    row = input_pipeline.pipeline_row("tiny", Six(), times, 4)  # type: ignore[arg-type]
    assert row == ["tiny", "4", "3", "1", "0", "10.0", "1.10"]
