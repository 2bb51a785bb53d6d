"""Pictures of pages as they are seen, whatever their file holds."""

import math
import warnings

import numpy as np
from PIL import Image

from fixate_jax.errors import DataWarning

READABLE_PX, USUAL_TEXT_PX = 8, 12
"""Height of text that a model can still read, and of the smallest text that pages usually have."""


def tell_of_small_text(widest: int, width: int, setting: str) -> None:
    """Warn where screenshots are scaled down so much that ordinary text on them cannot be read.

    Args:
        widest: width of the widest screenshot.
        width: that pages are drawn at.
        setting: what sets it.
    """
    lost = math.ceil(READABLE_PX * widest / width)
    if lost > USUAL_TEXT_PX:
        wanted = math.ceil(READABLE_PX * widest / USUAL_TEXT_PX / 10) * 10
        warnings.warn(
            f"screenshots {widest} pixels wide are drawn {width} wide: text less than {lost} pixels high on them "
            f"cannot be read; {setting} {wanted} would do for text of {USUAL_TEXT_PX} pixels",
            DataWarning,
            stacklevel=3,
        )


def as_seen(image: Image.Image) -> Image.Image:
    """A picture in RGB: 16 bits scaled to 8, what is transparent in white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would cut off what is above 255.
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((levels // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = Image.new("RGBA", image.size, (255, 255, 255, 255))
    seen.alpha_composite(image.convert("RGBA"))
    return seen.convert("RGB")
