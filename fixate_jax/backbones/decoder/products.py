"""Matrix products of bfloat16 arrays that keep the matrix units busy, forwards and backwards.

XLA multiplies bfloat16 matrices on CPUs with the processor's own bfloat16 instructions (AVX-512 BF16, AMX) only where
the result is asked for in float32; asked for in bfloat16 it is no faster than float32. And the gradient that JAX
derives of such a product multiplies a float32 cotangent with bfloat16 weights, for which the weights are first copied
to float32, on any platform. :func:`product` and :func:`frozen_product` round the cotangent instead, and so their
gradients are products of the same kind, which can be differentiated again.

Products of float32 (or float64) arrays are left to JAX as they are.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

LOW, BITS = jnp.bfloat16, jnp.uint16
SAVED = "linear"
"""Name of a linear layer's rounded result, for rematerialisation to keep it and not the wider one before it."""


def spelled_out(spec: str, a: Float[Array, "..."]) -> str:
    """An einsum's spec with letters for ``...``, which only its first array and its result have."""
    named = spec.split(",")[0].replace("...", "")
    return spec.replace("...", "ABCDEFGH"[: a.ndim - len(named)])


def _places(spec: str) -> tuple[str, str, str]:
    inputs, result = spec.split("->")
    first, second = inputs.split(",")
    return first, second, result


def _in_order(spec: str, a: Array, b: Array) -> Array:
    """The einsum in float32 with its arrays in the order written: jnp.einsum may exchange them.

    The order decides which of them XLA makes a transposed copy of, and whether it does of the result.
    """
    first, second, result = _places(spec)
    shared = [i for i in result if i in first and i in second]
    summed = [i for i in first if i in second and i not in result]
    axes = lambda some: ([first.index(i) for i in some], [second.index(i) for i in some])  # noqa: E731
    made = jax.lax.dot_general(a, b, (axes(summed), axes(shared)), preferred_element_type=jnp.float32)
    order = [*shared, *(i for i in first if i not in second), *(i for i in second if i not in first)]
    return jnp.transpose(made, [order.index(i) for i in result])


def _summed_wide(spec: str, a: Array, b: Array) -> Array:
    return _in_order(spec, a, b).astype(LOW)


def _multiplied(spec: str, a: Array, b: Array, out: Any) -> Array:
    if out != LOW:
        return _in_order(spec, a, b)
    # Elsewhere the matrix units sum in float32 whatever is asked for, and write half as much.
    return jax.lax.platform_dependent(a, b, cpu=partial(_summed_wide, spec), default=partial(jnp.einsum, spec))


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(spec: str, a: Float[Array, "..."], b: Float[Array, "..."], out: Any) -> Float[Array, "..."]:
    """An einsum of two bfloat16 arrays, summed in float32.

    Args:
        spec: the einsum; every index stands in two of its three places, so that each gradient is such a product too.
        a: the first array.
        b: the second one.
        out: type of the result, float32 or bfloat16.

    Returns:
        The product. Its cotangent is rounded to bfloat16, and so are the gradients of both arrays.
    """
    return _multiplied(spec, a, b, out)


def _product_back(spec: str, out: Any, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    del out
    a, b = saved
    first, second, result = _places(spec)
    rounded = cotangent.astype(LOW)
    return _gradient(first, (b, second), (rounded, result)), _gradient(second, (a, first), (rounded, result))


def _gradient(of: str, *factors: tuple[Array, str]) -> Array:
    """A product of which no copy is made of the larger factor (in attention, the scores): it stays as it lies."""
    (small, its), (large, its_own) = sorted(factors, key=lambda factor: factor[0].size)
    shared = "".join(i for i in of if i in its and i in its_own)
    free_small, free_large = ("".join(i for i in of if i in place and i not in shared) for place in (its, its_own))
    if its_own[-1] in of:
        order = shared + free_small + free_large
        made = product(f"{its},{its_own}->{order}", small, large, LOW)
    else:
        order = shared + free_large + free_small
        made = product(f"{its_own},{its}->{order}", large, small, LOW)
    return jnp.transpose(made, [order.index(i) for i in of])


# Here and below a rule forwards is its own function, so that the gradient's gradient is made of such products too.
product.defvjp(lambda spec, a, b, out: (product(spec, a, b, out), (a, b)), _product_back)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def frozen_product(spec: str, x: Float[Array, "..."], weights: Float[Array, "..."], out: Any) -> Float[Array, "..."]:
    """:func:`product` with weights that count as constants: they have no gradient, and nothing is kept for one."""
    return _multiplied(spec, x, weights, out)


def _frozen_forward(spec: str, x: Array, weights: Array, out: Any) -> tuple[Array, Array]:
    # Kept as bits: weights kept untouched JAX 0.10 loses in a scan that is differentiated twice.
    return frozen_product(spec, x, weights, out), jax.lax.bitcast_convert_type(weights, BITS)


def _frozen_back(spec: str, out: Any, bits: Array, cotangent: Array) -> tuple[Array, None]:
    del out
    first, second, result = _places(spec)
    weights = jax.lax.bitcast_convert_type(bits, LOW)
    return frozen_product(f"{result},{second}->{first}", cotangent.astype(LOW), weights, LOW), None


frozen_product.defvjp(_frozen_forward, _frozen_back)


def packed(weights: Any) -> Any:
    """A tree of stacked weights on its way into a scan: bfloat16 as bits.

    XLA on CPUs takes slices of float32 and of integers, not of bfloat16: it makes a float32 copy of the stack first.
    """
    return jax.tree.map(lambda w: jax.lax.bitcast_convert_type(w, BITS) if w.dtype == LOW else w, weights)


def unpacked(weights: Any) -> Any:
    """What :func:`packed` packed, inside the scan."""
    return jax.tree.map(lambda w: jax.lax.bitcast_convert_type(w, LOW) if w.dtype == BITS else w, weights)


def takes(a: Float[Array, "..."], b: Float[Array, "..."]) -> bool:
    """Whether two arrays are multiplied here, and not as JAX does it."""
    return bool(a.dtype == b.dtype == LOW)


def multiply(spec: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """An einsum of two activations in float32, or float64 where they are; see :func:`product` for ``spec``."""
    if takes(a, b):
        return product(spec, a, b, jnp.float32)
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.promote_types(jnp.result_type(a, b), jnp.float32))


def multiply_frozen(spec: str, x: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, "..."]:
    """The same of activations and frozen weights, which in bfloat16 have no gradient."""
    if takes(x, weights):
        return frozen_product(spelled_out(spec, x), x, weights, jnp.float32)
    return jnp.einsum(spec, x, weights, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def linear_product(
    x: Float[Array, "*dims inputs"],
    kernel: Float[Array, "inputs outputs"],
    dimension_numbers: Any,
    precision: Any = None,
    **options: Any,
) -> Float[Array, "*dims outputs"]:
    """``dot_general`` for ``nnx.Linear``: :func:`frozen_product` where both are bfloat16, else JAX's own."""
    if not takes(x, kernel):
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **options)
    return checkpoint_name(frozen_product(spelled_out("...i,io->...o", x), x, kernel, LOW), SAVED)
