"""Pages for Qwen3-VL: resized to whole cells within limits on their area, cut into patches."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from fixate_jax.backbones.inputs import EncodedPage
from fixate_jax.backbones.qwen3_vl.vision import PageInputs, VisionConfig, patch_geometry
from fixate_jax.errors import CheckpointError

MOST_PIXELS = 10**9
"""Of a page; none has so many."""


class PageProcessor:
    """The checkpoint's image processor (the PIL one, no torch), with limits on the page's area."""

    def __init__(self, directory: Path, vision: VisionConfig, *, min_pixels: int | None, max_pixels: int | None):
        """Load the image processor of a checkpoint, optionally with other limits.

        Raises:
            CheckpointError: when the directory has no usable ``preprocessor_config.json``.
        """
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        try:
            self.processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{directory}: no usable image processor ({error})") from error
        self.vision = vision
        self.size = _limits(directory, self.processor)
        for ours, theirs, field in (
            (vision.patch, self.processor.patch_size, "patch_size"),
            (vision.merge, self.processor.merge_size, "merge_size"),
            (vision.temporal, self.processor.temporal_patch_size, "temporal_patch_size"),
        ):
            if ours != theirs:
                raise CheckpointError(
                    f"{directory / 'preprocessor_config.json'}: {field} {theirs}, but config.json's vision_config says "
                    f"{ours}; take the processor's file of the same model"
                )
        if min_pixels is not None:
            self.size["shortest_edge"] = min_pixels
        if max_pixels is not None:
            self.size["longest_edge"] = max_pixels

    def __call__(self, image: Image.Image) -> EncodedPage:
        """Encode one page."""
        out = self.processor(images=[image.convert("RGB")], size=self.size, return_tensors="np")
        _, rows, columns = (int(n) for n in out["image_grid_thw"][0])
        inputs = page_inputs(np.asarray(out["pixel_values"], np.float32), rows, columns, self.vision)
        return EncodedPage(inputs=inputs, rows=rows // self.vision.merge, columns=columns // self.vision.merge)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of cells that a page of this many pixels gets, without reading it."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        cell = self.vision.patch * self.vision.merge
        rows, columns = smart_resize(
            height, width, factor=cell, min_pixels=self.size["shortest_edge"], max_pixels=self.size["longest_edge"]
        )
        return rows // cell, columns // cell


def _limits(directory: Path, processor: Any) -> dict[str, int]:
    """Limits on a page's area in pixels, under either of the names that they go by."""
    names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    given = {name: value for name, value in dict(processor.size).items() if value is not None}
    size = {names.get(name, name): value for name, value in given.items()}
    sound = all(type(n) is int and 0 < n <= MOST_PIXELS for n in size.values())
    if size.keys() != {"shortest_edge", "longest_edge"} or not sound or size["shortest_edge"] > size["longest_edge"]:
        raise CheckpointError(
            f"{directory / 'preprocessor_config.json'}: field 'size' = {given} is not supported; give shortest_edge "
            "and longest_edge, the least and the largest area of a page in pixels"
        )
    return size


def page_inputs(
    patches: Float[np.ndarray, "patches pixels"], rows: int, columns: int, vision: VisionConfig
) -> PageInputs:
    """One page (batch of 1) of ``rows`` × ``columns`` patches as the vision tower reads it."""
    index, weight, position = patch_geometry(rows, columns, config=vision)
    arrays: Any = (patches, index, weight, position, np.ones(len(patches), bool))
    return PageInputs(*jax.tree.map(lambda x: x[None], arrays))
