"""A small report from made-up sessions, some with names that try to break out of the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from fixate_jax.data.session import StoredSession
from fixate_jax.lab.report import write_report
from fixate_jax.lab.report.viewer import Look, SessionView, Viewer

HOSTILE = '</script><script>document.title="broken"</script>&<b>"\''
USERS = ("ann", HOSTILE, "__proto__")
LABELS = ("A", "<img src=x onerror=\"document.title='broken'\">", "C & D")
METHODS = {"backbone": "Backbone", "fixate": "FixATE"}
PER_USER = 3
BOXES = np.array([[0.05, 0.1, 0.3, 0.9], [0.37, 0.1, 0.62, 0.9], [0.7, 0.1, 0.95, 0.9]])


def page(name: str) -> Image.Image:
    """A page with three cards, of a colour of its own."""
    image = Image.new("RGB", (320, 160), "white")
    draw = ImageDraw.Draw(image)
    for x0, y0, x1, y1 in BOXES * [320, 160, 320, 160]:
        draw.rectangle((x0, y0, x1, y1), fill=(int(name) * 40, 90, 160))
    return image


def views() -> Iterator[SessionView]:
    """Sessions of all users; every user sees the same pages. The first slot is clicked, and then the others."""
    for number, user in enumerate(USERS):
        for i in range(PER_USER):
            gaze = np.roll(np.array([0.6, 0.3, 0.1]), i)
            session = StoredSession(
                session_id=f"{user}/{i}",
                user_id=user,
                page_id=str(i),
                boxes=BOXES,
                labels=LABELS,
                dwell_ms={"fixation": 1000 * gaze},
                click=i,
            )
            looks = {name: look(seed, number + i) for seed, name in enumerate(METHODS)}
            yield SessionView(session=session, gaze=gaze, looks=looks)


def look(seed: int, turn: int) -> Look:
    """Relevance on one slot more than on others; the answer is that slot."""
    grid = np.full((4, 8), 0.1)
    answer = (turn + seed) % 3
    grid[1:3, [1, 4, 6][answer]] = 1.0 + seed
    shares = np.array([0.1, 0.1, 0.1])
    shares[answer] = 0.5
    return Look(
        relevance=grid,
        slot_attention=shares,
        probabilities=shares / shares.sum(),
        answer=answer,
        scores={"KL": 0.5 - 0.2 * seed, "cosine": float("nan")},
    )


def viewer(**changes: Any) -> Viewer:
    """Three sessions of each of three users, of four and more that there are."""
    arguments: dict[str, Any] = {
        "views": list(views()),
        "methods": METHODS,
        "image": page,
        "totals": {user: 4 + i for i, user in enumerate(USERS)},
        "split": "test",
        "signal": "fixation",
    }
    return Viewer(**(arguments | changes))


def improvement() -> dict[str, pd.DataFrame]:
    """The first user gains, the second loses, the third's accuracy is unknown."""
    names = ["Backbone", "FixATE"]
    return {
        "kl": pd.DataFrame([[0.9, 0.5], [0.4, 0.6], [0.7, 0.7]], index=list(USERS), columns=names),
        "accuracy": pd.DataFrame([[0.2, 0.5], [0.4, 0.3], [np.nan, 0.7]], index=list(USERS), columns=names),
    }


def log(seed: int) -> pd.DataFrame:
    """Losses of twenty steps, validated at two of them."""
    steps = np.arange(1, 21)
    kl = np.where(steps % 10 == 0, 1 / steps + seed / 10, np.nan)
    return pd.DataFrame({"step": steps, "loss": 2 + np.cos(steps) / steps, "epoch": 1, "validation/kl": kl})


def report(folder: Path, **changes: Any) -> Path:
    """Everything that a run's report has."""
    results = pd.DataFrame(
        {"method": [HOSTILE, "fixate", "uniform"], "kl ↓": [0.25, 10.5, float("nan")], "users": [3, 3, 2]}
    )
    arguments: dict[str, Any] = {
        "title": f"A run of {HOSTILE}",
        "tables": {"Results (test)": results},
        "config": {"prompt": {"tokens": 16}, "data": {"path": HOSTILE}},
        "versions": {"jax": "0.10.2"},
        "notes": [f"A note by {HOSTILE}"],
        "viewer": viewer(),
        "improvement": improvement(),
        "training": {"seed 1": log(1), "seed 2": log(2)},
    }
    return write_report(folder, **(arguments | changes))
