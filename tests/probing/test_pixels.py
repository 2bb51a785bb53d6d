"""Relevance of pixels: the rules in each family's vision tower against a plain tower with gains held by hand."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from fixate_jax.backbones.inputs import EncodedPage, stack_pages
from fixate_jax.errors import ConfigError
from fixate_jax.probing.pixels import PixelRelevance, page_map, pixel_relevance
from fixate_jax.prompts import PromptParams
from tests.probing.both_ways import Asked, Subject, relative, trace_of


def by_definition(subject: Subject, pages: list[EncodedPage]) -> Any:
    """Of each page its tokens, and of each answer the relevance of tokens and of pixels."""
    from tests.probing.whole_model import WholeModel, exactly, torch
    from tests.probing.whole_tower import tower_of

    model, tower, asked = WholeModel(subject.backbone), tower_of(subject.backbone), subject.asked
    basis, coefficients = map(exactly, subject.prompts[0])
    for row, page in enumerate(pages):
        pixels = exactly(page.inputs[0][0]).requires_grad_()
        features = tower(pixels, page.inputs)
        tokens, at_pixels = [], []
        for branch, answer in enumerate(asked.ids[row]):
            soft = torch.einsum("m,mkd->kd", coefficients[int(asked.batch.user[row])].softmax(0), basis)
            at = model.sequence(asked.batch.inputs, row, branch, soft, features)
            answer = answer[asked.mask[row, branch]]
            c = [x.detach() for x in model.lrp_coefficients(at, model.run(at).states, answer)]
            (c,) = torch.autograd.grad([at.x, *at.deep], features, c, retain_graph=True)
            (to_pixels,) = torch.autograd.grad(features, pixels, c, retain_graph=True)
            tokens.append((features * c).sum((-1, -2)).detach().numpy())
            at_pixels.append((pixels * to_pixels).detach().numpy())
        yield features.detach().numpy(), np.stack(tokens), np.stack(at_pixels)


def test_pixels_get_what_the_definition_gives_them(subject: Subject) -> None:
    """Page tokens come from the plain tower; what relevance of tokens is made of, from the ruled one."""
    backbone, asked = subject.backbone, subject.asked
    encoded = [backbone.page_processor(subject.world.images[s.page_id]) for s in subject.world.sessions]
    pages = stack_pages(encoded)

    def run(params: Any, prompt: PromptParams, asked: Asked, pages: Any) -> PixelRelevance:
        return pixel_relevance(trace_of(backbone, params, prompt, asked), asked.batch.inputs, pages)

    ours = jax.device_get(jax.jit(run)(backbone.params, subject.prompts[0], asked, pages))
    for row, (features, tokens, pixels) in enumerate(by_definition(subject, encoded)):
        found = {
            "features": (asked.batch.inputs.features[row, : len(features)], features),
            "tokens": (ours.tokens[row, :, : tokens.shape[1]], tokens),
            "pixels": (ours.pixels[row, :, : pixels.shape[1]], pixels),
        }
        for name, (mine, true) in found.items():
            print(f"\nsession {row}, {name}: {relative(mine, true):.1e} off", end="")
            assert relative(mine, true) < 1e-4, name
        assert not ours.tokens[row, :, tokens.shape[1] :].any() and not ours.pixels[row, :, pixels.shape[1] :].any()


def test_a_picture_of_pixels_lies_as_the_page_does(subject: Subject) -> None:
    """Pixels put together again are the page."""
    session = subject.world.sessions[0]
    image = subject.world.images[session.page_id]
    page = subject.backbone.page_processor(image)
    pixels = page.inputs[0][0].copy()
    frames = 1
    if page.inputs._fields[0] == "pixels":
        whole = page_map(pixels, page, subject.backbone.config)
        assert whole.sum() == pytest.approx(pixels.sum(), rel=1e-4), "the thumbnail is shared out"
        pixels[-1] = 0
    else:
        frames = subject.backbone.config.vision.temporal
    found = page_map(pixels, page, subject.backbone.config)
    wanted = frames * ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5).sum(-1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_pages_of_an_unknown_kind_are_refused(subject: Subject) -> None:
    class Other(NamedTuple):
        valid: np.ndarray

    page = EncodedPage(inputs=Other(np.ones((1, 2), bool)), rows=1, columns=2)
    with pytest.raises(ConfigError, match=r"Other: say in fixate_jax\.probing\.pixels\.LAYOUTS"):
        page_map(np.zeros((2, 3, 4, 4), np.float32), page, subject.backbone.config)
