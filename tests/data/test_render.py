"""The drawn page: boxes where the slots are, texts inside, a label in every slot."""

import numpy as np
import pytest
from PIL import Image

from fixate_jax.data.readers.human_choice import slot_boxes, slot_labels
from fixate_jax.data.render import GREY, SCREEN, Alternative, alternative_boxes, draw_page, text_boxes
from fixate_jax.data.store import encode_image

GAMBLES = (Alternative(0.75, 11, True), Alternative(0.6, 14, False), Alternative(8 / 9, 9999, True))
KINDS = ["alternatives", "texts"]


def page(kind: str, width: int, labels: tuple[str, ...] | None = None) -> Image.Image:
    labels = labels or slot_labels(kind)  # type: ignore[arg-type]
    return draw_page(GAMBLES, labels, slot_boxes(kind), width=width)  # type: ignore[arg-type]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int64)[..., 0]


@pytest.mark.parametrize("kind", KINDS)
def test_slots_lie_on_the_page_and_do_not_overlap(kind: str) -> None:
    boxes = slot_boxes(kind)  # type: ignore[arg-type]
    assert boxes.min() >= 0 and boxes.max() <= 1
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_slots_are_where_the_study_had_them() -> None:
    screen = np.array([*SCREEN, *SCREEN])
    np.testing.assert_allclose(text_boxes()[0] * screen, [56.5, 196.5, 441.5, 436.5])
    np.testing.assert_allclose(text_boxes()[5] * screen, [838.5, 587.5, 1223.5, 827.5])
    np.testing.assert_allclose(alternative_boxes()[1] * screen, [447.5, 196.5, 832.5, 827.5])


@pytest.mark.parametrize("width", [64, 320, 1100, 1280])
def test_outlines_are_drawn_where_the_boxes_are(width: int) -> None:
    image = page("alternatives", width)
    assert image.mode == "RGB"
    assert image.size == (width, round(width * SCREEN[1] / SCREEN[0]))
    values = pixels(image)
    for box in alternative_boxes():
        x0, y0, x1, y1 = (round(v) for v in box * np.array([*image.size, *image.size]))
        assert (values[y0, x0:x1] == 255).all() and (values[y1 - 1, x0:x1] == 255).all()
        assert (values[y0:y1, x0] == 255).all() and (values[y0:y1, x1 - 1] == 255).all()
    top = round(alternative_boxes()[0, 1] * image.size[1])
    assert (values[:top] == GREY[0]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [320, 1100])
def test_every_label_is_drawn_in_its_slot_clear_of_the_texts(kind: str, width: int) -> None:
    boxes = slot_boxes(kind)  # type: ignore[arg-type]
    bare, labelled = page(kind, width, (" ",) * len(boxes)), page(kind, width)
    ink = pixels(labelled) != pixels(bare)
    size = np.array([*bare.size, *bare.size])
    inside = np.zeros_like(ink)
    for box in boxes:
        x0, y0, x1, y1 = (round(v) for v in box * size)
        assert ink[y0:y1, x0:x1].sum() > 8
        inside[y0:y1, x0:x1] = True
    assert not (ink & ~inside).any()
    # Where a label is drawn, the page was blank.
    assert (pixels(bare)[ink] == GREY[0]).all()


def test_texts_stay_inside_their_gaze_areas_and_stand_in_the_shown_order() -> None:
    image = page("texts", 1280, (" ",) * 6)
    values = pixels(image)
    inside = np.zeros(values.shape, bool)
    for x0, y0, x1, y1 in text_boxes() * np.array([*SCREEN, *SCREEN]):
        inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    outline = pixels(draw_page((Alternative(0.5, 1, True),) * 3, (" ",) * 6, text_boxes(), width=1280)) == values
    assert not (~outline & ~inside).any()
    assert [a.texts for a in GAMBLES] == [("75%", "11€"), ("14€", "60%"), ("88.9%", "9999€")]
    assert Alternative(0.785, 3, True).texts == ("78.5%", "3€")
    assert Alternative(2 / 3, 3, True).texts == ("66.7%", "3€")
    assert Alternative(0.57, 3, True).texts == ("57%", "3€")


def test_the_euro_sign_is_a_real_glyph(monkeypatch: pytest.MonkeyPatch) -> None:
    def amount(sign: str) -> np.ndarray:
        monkeypatch.setattr(Alternative, "texts", property(lambda _: ("50%", f"11{sign}")))
        return pixels(page("alternatives", 640))

    # A font without the sign draws the same empty box for it as for a code point that no font has.
    assert (amount("€") != amount("\U0010fffd")).any()


def test_the_same_page_gives_the_same_bytes() -> None:
    assert encode_image(page("texts", 320)) == encode_image(page("texts", 320))
