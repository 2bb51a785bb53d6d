"""What the page viewer is given: every page once, small, and nothing that does not fit."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fixate_jax.errors import DataError
from fixate_jax.lab.report.viewer import WIDEST, data_uri, quantised, viewer_data
from tests.report.samples import PER_USER, USERS, page, viewer, views


def test_a_page_is_there_once_however_many_look_at_it() -> None:
    data = viewer_data(viewer())
    assert len(data["sessions"]) == len(USERS) * PER_USER and len(data["pages"]) == PER_USER
    assert [user["name"] for user in data["users"]] == list(USERS)
    for found, view in zip(data["sessions"], views(), strict=True):
        assert data["users"][found["user"]]["name"] == view.session.user_id
        assert data["pages"][found["page"]]["width"] == 320 and found["gaze"] == pytest.approx(view.gaze)
        for look in found["looks"]:
            assert sum(look["attention"]) == pytest.approx(1, abs=1e-3), "scaled as in the metrics"


def test_relevance_is_kept_to_one_part_in_255() -> None:
    grid = np.random.default_rng(0).normal(size=(5, 7)) ** 3
    kept = quantised(grid)
    assert kept.dtype == np.uint8 and kept.max() == 255
    np.testing.assert_allclose(kept / 255 * np.abs(grid).max(), np.abs(grid), atol=np.abs(grid).max() / 500)
    assert not quantised(np.zeros((2, 2))).any()
    view = next(views())
    (packed,) = {data["relevance"] for data in viewer_data(viewer(views=[view]))["sessions"][0]["looks"][:1]}
    decoded = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(4, 8)
    np.testing.assert_array_equal(decoded, quantised(view.looks["backbone"].relevance))


def test_pages_take_the_smaller_form_and_are_no_wider_than_screens() -> None:
    assert data_uri(page("1")).startswith("data:image/png;base64,"), "flat drawings are smallest as PNG"
    noise = Image.effect_noise((1600, 400), 60).convert("RGB")
    (kept,) = viewer_data(viewer(views=[next(views())], image=lambda _: noise))["pages"]
    assert kept["src"].startswith("data:image/webp;base64,")
    again = Image.open(io.BytesIO(base64.b64decode(kept["src"].split(",")[1])))
    assert again.size == (kept["width"], kept["height"]) == (WIDEST, WIDEST // 4)


def test_a_method_that_looks_nowhere_has_no_shares() -> None:
    view = next(views())
    nowhere = replace(view.looks["fixate"], slot_attention=np.zeros(3))
    view = replace(view, looks={**view.looks, "fixate": nowhere})
    assert viewer_data(viewer(views=[view]))["sessions"][0]["looks"][1]["attention"] == [None, None, None]


def test_how_many_sessions_are_shown_is_said() -> None:
    assert viewer().count() == "3 of 4 to 6 test sessions of each of the 3 users; 9 sessions of 15."
    assert viewer(totals=dict.fromkeys(USERS, 3)).count() == "All 9 test sessions of all 3 users."
    some = viewer(totals=dict.fromkeys((*USERS, "others"), 3))
    assert some.count() == "3 of 3 test sessions of each of 3 users, of 4 that there are; 9 sessions of 12."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"looks": {}}, r"session 'ann/0': nothing is known of \['backbone', 'fixate'\]; give what every method"),
        ({"gaze": np.ones(2)}, r"session 'ann/0', gaze = .*needs a finite value for each of 3 slots"),
        ({"gaze": np.full(3, np.nan)}, r"session 'ann/0', gaze = .*needs a finite value for each of 3 slots"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        viewer_data(viewer(views=[replace(next(views()), **change)]))  # type: ignore[arg-type]
