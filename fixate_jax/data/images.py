"""Pictures of pages as they are seen, whatever their file holds."""

import numpy as np
from PIL import Image, ImageOps


def as_seen(image: Image.Image) -> Image.Image:
    """A picture in RGB: turned as its camera says, 16 bits scaled to 8, what is transparent in white."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow would cut off what is above 255.
        levels = np.asarray(upright).astype(np.int64).clip(0, 65535)
        return Image.fromarray((levels // 257).astype(np.uint8)).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    seen = Image.new("RGBA", upright.size, (255, 255, 255, 255))
    seen.alpha_composite(upright.convert("RGBA"))
    return seen.convert("RGB")
