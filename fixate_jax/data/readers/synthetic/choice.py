"""Synthetic users who look at and choose among three gambles, in the format of human_choice.

A stand-in that can be shipped, for tests and the demo; nothing in it is taken from real people. A person has a pull
towards each screen column, a preference for reading probabilities or amounts, a sensitivity to expected value, and a
risk attitude. Gaze on a text is Dirichlet around the product of column pull, attribute preference and the
alternative's value; the choice is a softmax over subjective values in which what is looked at longer counts more.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from fixate_jax.data.readers.human_choice import LETTERS

CONCENTRATION = 30.0
"""Of the Dirichlet: how little one trial's gaze strays from what the person tends to do."""
GAZE_BONUS = 4.0
"""How much a share of gaze adds to the value of an alternative in the choice."""


def synthetic_trials(*, users: int, trials: int, seed: int) -> pd.DataFrame:
    """Trials of synthetic users.

    Args:
        users: people.
        trials: trials of each.
        seed: the same seed gives the same people and trials.

    Returns:
        The columns of human_choice's ``trials.csv``.
    """
    return pd.concat([_person(u, trials, np.random.default_rng([seed, u])) for u in range(users)], ignore_index=True)


def _person(user: int, trials: int, rng: np.random.Generator) -> pd.DataFrame:
    pull = rng.normal(0, 0.9, 3)
    attribute = rng.normal(0, 0.5)
    sensitivity, risk = rng.gamma(4.0, 0.1), rng.uniform(0.7, 1.3)
    p = np.round(rng.uniform(0.2, 0.9, (trials, 3)), 2)
    m = rng.integers(5, 30, (trials, 3))
    position = np.stack([rng.permutation(3) for _ in range(trials)])
    value = p * m**risk
    relative = value - value.mean(1, keepdims=True)
    attention = pull[position] + sensitivity * relative / value.std()
    logits = np.stack([attention + attribute, attention - attribute], axis=-1).reshape(trials, 6)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    gaze = np.stack([rng.dirichlet(CONCENTRATION * row + 0.05) for row in expected])
    utility = sensitivity * relative + GAZE_BONUS * gaze.reshape(trials, 3, 2).sum(2)
    choice = np.argmax(utility + rng.gumbel(size=(trials, 3)), axis=1)
    total = np.exp(rng.normal(8.0, 0.4, trials))
    frame: dict[str, object] = {
        "subject": user,
        "block": np.arange(trials) // 75 + 1,
        "trial": np.arange(trials) + 1,
        "choice": np.array(LETTERS)[choice],
        "rt": np.round(total * rng.uniform(1.1, 1.4, trials)),
    }
    frame |= {f"p{x}": p[:, i] for i, x in enumerate(LETTERS)}
    frame |= {f"m{x}": m[:, i] for i, x in enumerate(LETTERS)}
    frame |= {f"pos_{x}": position[:, i] for i, x in enumerate(LETTERS)}
    frame |= {f"p{x}_top": rng.random(trials) < 0.5 for x in LETTERS}
    frame |= {
        f"dwell_{x}{a}": np.round(gaze[:, 2 * i + j], 6) for i, x in enumerate(LETTERS) for j, a in enumerate("pm")
    }
    return pd.DataFrame(frame | {"dwell_total": np.round(total, 3)})


def write_trials(path: Path, *, users: int = 12, trials: int = 60, seed: int = 0) -> Path:
    """Write such trials as a CSV that human_choice's reader takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    synthetic_trials(users=users, trials=trials, seed=seed).to_csv(path, index=False)
    return path
