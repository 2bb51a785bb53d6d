"""Pictures of pages as they are seen, whatever their file holds."""

import numpy as np
from PIL import Image


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
