"""What validation sessions teach about tuned prompts as a whole, after tuning: three numbers for everybody.

Slot attention tuned by a few prompt tokens overshoots, and answers are too flat. So attention a becomes
(1 − m)·a^p / Σ a^p + m·h, where h is the person's habit (mean gaze by slot), and the probabilities of answers
q^s / Σ q^s. Exponents p and s and share m are fitted on sessions that nothing was tuned on, by KL and by log-loss, as
temperature scaling is (Guo et al. 2017); no session's click or gaze is used to predict itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from fixate_jax.errors import DataError, require
from fixate_jax.objective import EPS

STRONGEST = 8.0
"""Largest exponent that is tried; the smallest is its inverse."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """A calibration, and whose habits it mixes in.

    Attributes:
        answers: s, exponent of the answers' probabilities; above 1 sharpens them.
        attention: p, exponent of slot attention.
        habit: m, share of the habit, 0 to 1.
        habits: mean gaze by slot of each user, any scale.
        population: that of a user without a habit.
    """

    answers: float = 1.0
    attention: float = 1.0
    habit: float = 0.0
    habits: Mapping[str, Float[np.ndarray, " _known"]] = field(default_factory=dict, repr=False)
    population: Float[np.ndarray, " _known"] = field(default_factory=lambda: np.ones(1), repr=False)

    def __post_init__(self) -> None:
        for name in ("answers", "attention"):
            value = getattr(self, name)
            require(0 < value < np.inf, f"calibration.{name}", value, "must be above 0, and finite")
        require(0 <= self.habit <= 1, "calibration.habit", self.habit, "must lie in 0..1")

    def habit_on(
        self, users: list[str], mask: Bool[np.ndarray, "sessions slots"]
    ) -> Float[np.ndarray, "sessions slots"]:
        """Habits of users on pages; a slot beyond those that a habit knows gets an even share.

        Args:
            users: who, in each session.
            mask: False at padding slots.
        """
        shares = mask / mask.sum(axis=1, keepdims=True)
        for row, user in enumerate(users):
            known = self.habits.get(user, self.population)[: int(mask[row].sum())]
            shares[row, : len(known)] = known
        total = shares.sum(axis=1, keepdims=True)
        return np.where(total > 0, shares / np.where(total > 0, total, 1.0), mask / mask.sum(axis=1, keepdims=True))

    def look(
        self, attention: Float[np.ndarray, "sessions slots"], users: list[str], mask: Bool[np.ndarray, "sessions slots"]
    ) -> Float[np.ndarray, "sessions slots"]:
        """Calibrated slot attention; it sums to 1 over the slots of a page.

        Args:
            attention: a, not negative; a page without any counts as uniform.
            users: who, in each session.
            mask: False at padding slots.
        """
        return _mixed(attention, self.habit_on(users, mask), mask, self.attention, self.habit)

    def answer(
        self, log_probs: Float[np.ndarray, "sessions slots"], mask: Bool[np.ndarray, "sessions slots"]
    ) -> Float[np.ndarray, "sessions slots"]:
        """Calibrated log-probabilities of a click among the slots of the page, -inf at padding slots.

        Args:
            log_probs: of each slot's label as the answer.
            mask: False at padding slots.
        """
        return _sharpened(log_probs, mask, self.answers)


def fit_calibration(
    gaze: Float[np.ndarray, "sessions slots"],
    attention: Float[np.ndarray, "sessions slots"],
    log_probs: Float[np.ndarray, "sessions slots"],
    click: Int[np.ndarray, " sessions"],
    mask: Bool[np.ndarray, "sessions slots"],
    *,
    users: list[str],
    habits: Mapping[str, Float[np.ndarray, " _known"]],
    population: Float[np.ndarray, " _known"] | None = None,
) -> Calibration:
    """The calibration with the least KL(g ‖ a) and the least log-loss on sessions that nothing was tuned on.

    Args:
        gaze: g of each session.
        attention: a, for the model's own answer.
        log_probs: of each slot's label as the answer.
        click: the clicked slot.
        mask: False at padding slots.
        users: who, in each session.
        habits: mean gaze by slot of each user, from sessions to tune on.
        population: mean gaze by slot of everybody (None: the mean of the habits).

    Raises:
        DataError: there is no session.
    """
    if not len(click):
        raise DataError("a calibration needs at least one validation session")
    mean = population if population is not None else np.mean(list(habits.values()), axis=0) if habits else np.ones(1)
    plain = Calibration(habits=dict(habits), population=mean)
    habit, bounds = plain.habit_on(users, mask), (-np.log(STRONGEST), np.log(STRONGEST))
    rows = np.arange(len(click))

    def divergence(at: Float[np.ndarray, "2"]) -> float:
        share = _mixed(attention, habit, mask, float(np.exp(at[0])), float(at[1]))
        return float((gaze * (np.log(gaze + EPS) - np.log(share + EPS))).sum(axis=1).mean())

    def log_loss(at: float) -> float:
        return float(-_sharpened(log_probs, mask, float(np.exp(at)))[rows, click].mean())

    looks = [
        scipy.optimize.minimize(divergence, start, method="L-BFGS-B", bounds=[bounds, (0.0, 1.0)])
        for start in ([0.0, 0.0], [0.0, 0.5])
    ]
    best = min(looks, key=lambda found: float(found.fun)).x
    sharp = scipy.optimize.minimize_scalar(log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x
    return replace(
        plain, answers=float(np.exp(sharp)), attention=float(np.exp(best[0])), habit=float(np.clip(best[1], 0, 1))
    )


def _mixed(
    attention: Float[np.ndarray, "sessions slots"],
    habit: Float[np.ndarray, "sessions slots"],
    mask: Bool[np.ndarray, "sessions slots"],
    exponent: float,
    share: float,
) -> Float[np.ndarray, "sessions slots"]:
    shown = np.where(mask, np.asarray(attention, np.float64), 0.0)
    shown = np.where(shown.sum(axis=1, keepdims=True) > 0, shown, mask)
    powers = (shown / shown.max(axis=1, keepdims=True)) ** exponent
    return (1 - share) * powers / powers.sum(axis=1, keepdims=True) + share * habit


def _sharpened(
    log_probs: Float[np.ndarray, "sessions slots"], mask: Bool[np.ndarray, "sessions slots"], exponent: float
) -> Float[np.ndarray, "sessions slots"]:
    scaled = exponent * np.where(mask, np.asarray(log_probs, np.float64), -np.inf)
    return scaled - scipy.special.logsumexp(scaled, axis=1, keepdims=True)
