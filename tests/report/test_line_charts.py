"""Training curves in the report: where the points are, the best one marked, words for those who do not see them."""

import re

import numpy as np
import pandas as pd

from fixate_jax.lab.report.line_charts import BOTTOM, HEIGHT, LEFT, MOST_POINTS, RIGHT, TOP, WIDTH, training_charts
from tests.report.samples import HOSTILE, log


def test_a_chart_for_each_value_and_a_line_for_each_run() -> None:
    text = training_charts({"seed 1": log(1), HOSTILE: log(2)})
    assert text.count('<svg class="chart"') == 2 and text.count('class="best') == 2
    assert re.findall(r'class="head"[^>]*>([^<]*)<', text) == ["loss ↓", "validation kl ↓"]
    assert "seed 1: 0.2 to 0.15, best 0.15" in text
    assert HOSTILE not in text and "&lt;/script&gt;" in text


def test_lines_keep_inside_their_frame_and_the_best_is_marked() -> None:
    steps = np.arange(1, 2001)
    frame = pd.DataFrame({"step": steps, "loss": np.sin(steps), "validation/accuracy": -((steps - 500.0) ** 2)})
    text = training_charts({"seed 1": frame})
    for path in re.findall(r'class="line[^"]*" d="M([^"]*)"', text):
        points = np.array([point.split() for point in path.split("L")], float)
        assert len(points) <= MOST_POINTS
        low, high = points.min(axis=0), points.max(axis=0)
        assert low[0] == LEFT and high[0] == WIDTH - RIGHT
        assert low[1] >= TOP - 0.1 and high[1] <= HEIGHT - BOTTOM + 0.1
    x, y = map(float, re.findall(r'<circle class="best[^"]*" cx="([\d.]*)" cy="([\d.]*)"', text)[0])
    assert y == TOP and abs(x - (LEFT + 0.25 * (WIDTH - LEFT - RIGHT))) < 1
    assert 'class="keys"' not in text, "one line needs no names"


def test_little_to_draw() -> None:
    assert training_charts({}) == ""
    assert training_charts({"seed 1": pd.DataFrame({"step": [1], "loss": [float("nan")], "epoch": [1]})}) == ""
    (chart,) = re.findall(r"<svg.*?</svg>", training_charts({"seed 1": pd.DataFrame({"step": [5], "loss": [2.0]})}))
    assert "nan" not in chart and "2.20" in chart and "1.80" in chart
