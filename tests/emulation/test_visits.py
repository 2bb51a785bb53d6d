"""Clicks drawn from given probabilities: their temperature, and what a draw depends on."""

import numpy as np
from PIL import Image

from fixate_jax.emulation import Page, Visits
from fixate_jax.emulation.visits import _number


def visits(users: list[str], pages: list[str], shares: np.ndarray) -> Visits:
    image, boxes = Image.new("RGB", (8, 8)), np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1.0]])
    made = tuple(
        Page(relative=True, labelled=True, name=page, image=image, boxes=boxes, labels=("A", "B", "C"))
        for page in pages
    )
    log_probs = np.log(shares).astype(np.float32)
    none = np.zeros(len(users), np.float32)
    return Visits(
        users=tuple(users), pages=made, attention=shares.astype(np.float32), log_probs=log_probs, answered=none
    )


def test_temperature_by_hand() -> None:
    one = visits(["u"], ["p"], np.array([[0.64, 0.32, 0.04]]))
    np.testing.assert_allclose(one.probabilities()[0], [0.64, 0.32, 0.04], rtol=1e-5)
    roots, squared = np.array([0.64, 0.32, 0.04]) ** 0.5, np.array([0.64, 0.32, 0.04]) ** 2
    np.testing.assert_allclose(one.probabilities(2.0)[0], roots / roots.sum(), rtol=1e-5)
    np.testing.assert_allclose(one.probabilities(0.5)[0], squared / squared.sum(), rtol=1e-5)
    drawn = one.clicks(seed=0, temperature=0.5, draws=4000)[0]
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4000, squared / squared.sum(), atol=0.03)


def test_a_draw_depends_on_seed_user_page_and_its_number_alone() -> None:
    users, pages = ["u", "u", "v", "v"], ["p", "q", "p", "q"]
    some = visits(users, pages, np.full((4, 3), 1 / 3))
    drawn = some.clicks(seed=1, draws=20)
    assert len({tuple(row) for row in drawn.tolist()}) == 4, "other users and other pages draw anew"
    assert (drawn != some.clicks(seed=2, draws=20)).any(axis=1).all()
    alone = visits(["v"], ["p"], np.full((1, 3), 1 / 3))
    np.testing.assert_array_equal(alone.clicks(seed=1, draws=5)[0], drawn[2, :5])
    assert _number("v") == 1284786270  # The same in every process.
