"""Operators that read attention against their definitions on whole matrices: values and gradients."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from fixate_jax.backbones.decoder import row_blocks
from fixate_jax.lab.config import OperatorConfig
from fixate_jax.probing.operators.attn_lrp import normalise_rows
from tests.probing.both_ways import (
    EPS,
    Subject,
    check_against_definition,
    check_company_and_order,
)

SIGNED = "attn_lrp signed"
OPERATORS = {
    "attention": OperatorConfig(name="attention"),
    SIGNED: OperatorConfig(name="attn_lrp", normalise="signed"),
    "attention_gradient": OperatorConfig(name="attention_gradient"),
    "rollout": OperatorConfig(name="rollout"),
    "glimpse": OperatorConfig(name="glimpse"),
}
VARIANTS = {
    "attn_lrp abs": OperatorConfig(name="attn_lrp", normalise="abs"),
    "attn_lrp positive": OperatorConfig(name="attn_lrp", normalise="positive"),
    "attn_lrp abs, G constant": OperatorConfig(name="attn_lrp", normalise="abs", grad_scale=1.0, stop_gradient=True),
}
BLOCKS = {"attention_block": 48}
MASKED_OUT = {
    "glimpse, masked left out, G constant": OperatorConfig(
        name="glimpse", masked_gradients=False, grad_scale=1.0, stop_gradient=True
    )
}


@pytest.fixture(scope="module", autouse=True)
def short_loops() -> Iterator[None]:
    """Short sequences have blocks in a loop too, and a shorter one behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "UNROLLED", 1)
        patch.setattr(row_blocks, "ENDS", 1)
        yield


def test_values_and_gradients_equal_the_definition(subject: Subject) -> None:
    """The signed normalisation divides by sums that can be next to nothing, which magnifies what float32 rounds off."""
    check_against_definition(subject, OPERATORS | VARIANTS, BLOCKS, loose=[SIGNED])


def test_glimpse_without_masked_places_equals_its_definition(subject: Subject) -> None:
    check_against_definition(subject, MASKED_OUT, {"remat": "none"})


@pytest.mark.parametrize("how", ["signed", "abs", "positive"])
def test_rows_are_normalised_as_defined(how: str) -> None:
    """Whatever their sums are, next to nothing and nothing at all too; values and gradients."""
    torch = pytest.importorskip("torch")
    from tests.probing.whole_matrix import normalised

    rng = np.random.default_rng(0)
    rows = 0.01 * rng.standard_normal((1, 4, 1, 2, 6)).astype(np.float32)
    rows[0, 0], rows[0, 1, ..., -1] = 0, 0.5 * EPS - rows[0, 1, ..., :-1].sum(-1)
    weight = rng.standard_normal(rows.shape).astype(np.float32)

    def total(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = normalise_rows(rows, how=how, eps=EPS)
        return (weight * found).sum(), found

    gradient, found = jax.device_get(jax.jit(jax.grad(total, has_aux=True))(rows))
    exact = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    true = normalised(exact, how, EPS)
    (true * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(found, true.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, exact.grad.numpy(), rtol=1e-3, atol=1e-2)


def test_company_order_and_padding_change_nothing(subject: Subject) -> None:
    check_company_and_order(subject, OPERATORS | VARIANTS, BLOCKS)
