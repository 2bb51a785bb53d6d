"""Products of bfloat16 arrays: values, gradients of both orders, what is compiled of them, and float32 left alone."""

import re
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fixate_jax.backbones.decoder import layers, products
from fixate_jax.backbones.decoder.products import LOW, frozen_product, linear_product, multiply, product

SCORES = "bqhgd,bkhd->bhgqk"


def _arrays(*shapes: tuple[int, ...], dtype: Any = LOW) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def _wide(array: jax.Array) -> np.ndarray:
    return np.asarray(array, np.float32)


def _cosine(a: Any, b: Any) -> float:
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _score(multiplied: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.sin(multiplied(x, w).astype(jnp.float32)).sum()


def _of_gradient(multiplied: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    """What training sees: a function of the gradient."""
    gradient = jax.grad(_score, argnums=1)(multiplied, x, w)
    return jnp.square(gradient.astype(jnp.float32)).sum()


def test_first_and_second_order_are_those_of_the_wide_product() -> None:
    """Against the same bfloat16 values multiplied in float32, rounding apart."""
    x, w = _arrays((3, 5, 16), (16, 24))
    w = w / 4
    ours = lambda x, w: linear_product(x, w, (((2,), (0,)), ((), ())))  # noqa: E731
    wide = (x.astype(jnp.float32), w.astype(jnp.float32))
    found = jax.jit(ours)(x, w)
    assert found.dtype == LOW
    np.testing.assert_allclose(_wide(found), np.matmul(*map(np.asarray, wide)), rtol=0.01, atol=0.01)
    for function in (_score, _of_gradient):
        gradient, expected = (
            jax.jit(jax.grad(partial(function, multiplied)))(*arrays)
            for multiplied, arrays in ((ours, (x, w)), (jnp.matmul, wide))
        )
        assert gradient.dtype == LOW
        assert _cosine(gradient, expected) > 0.999
        np.testing.assert_allclose(np.linalg.norm(_wide(gradient)), np.linalg.norm(expected), rtol=0.02)


@pytest.mark.parametrize("which", [0, 1])
def test_attention_product_has_both_gradients_twice(which: int) -> None:
    """Queries and keys, both orders, against float32; the result stays float32."""
    arrays = _arrays((2, 6, 2, 3, 8), (2, 7, 2, 8))
    wide = [a.astype(jnp.float32) for a in arrays]

    def once(*arrays: jax.Array) -> jax.Array:
        return jnp.tanh(multiply(SCORES, *arrays)).sum()

    def twice(*arrays: jax.Array) -> jax.Array:
        return jnp.square(jax.grad(once, argnums=0)(*arrays).astype(jnp.float32)).sum()

    assert multiply(SCORES, *arrays).dtype == jnp.float32
    for function in (once, twice):
        gradient, expected = (jax.jit(jax.grad(function, argnums=which))(*given) for given in (arrays, wide))
        assert gradient.dtype == LOW
        assert _cosine(gradient, expected) > 0.999


def test_known_values() -> None:
    """Whole numbers small enough to be exact: y = xw, and ∂(Σy²)/∂x = 2ywᵀ; its square's gradient is exact too."""
    x, w = jnp.array([[1, 2]], LOW), jnp.array([[1, 0, 2], [3, 1, 0]], LOW)
    square = lambda x: jnp.square(frozen_product("ai,io->ao", x, w, jnp.float32)).sum()  # noqa: E731
    gram = np.array([[5.0, 3.0], [3.0, 10.0]])
    np.testing.assert_array_equal(_wide(jax.jit(jax.grad(square))(x)), 2 * np.array([[1, 2]]) @ gram)
    again = jax.jit(jax.grad(lambda x: jnp.square(jax.grad(square)(x).astype(jnp.float32)).sum()))(x)
    np.testing.assert_allclose(_wide(again), 8 * np.array([[1, 2]]) @ gram @ gram, rtol=0.01)


def test_vmap_is_a_loop() -> None:
    """Over users with weights shared, and over weights; value and second order."""
    x, w = _arrays((3, 2, 5, 16), (16, 24))
    ours = lambda x, w: frozen_product("abi,io->abo", x, w, LOW)  # noqa: E731
    for function in (_score, _of_gradient):
        step = jax.grad(lambda x, f=function: f(ours, x, w))
        together, one = jax.jit(jax.vmap(step))(x), jax.jit(step)
        np.testing.assert_allclose(_wide(together), np.stack([_wide(one(v)) for v in np.asarray(x)]), rtol=0.02)
    first, twice = np.asarray(x)[0], np.asarray(2 * w)
    both = jax.jit(jax.vmap(lambda w: ours(first, w)))(np.stack([np.asarray(w), twice]))
    np.testing.assert_array_equal(_wide(both)[1], _wide(jax.jit(ours)(first, twice)))


def test_frozen_weights_have_no_gradient_product() -> None:
    """The gradient of a layer is one product more than its value, not two."""
    x, w = _arrays((4, 16), (16, 24))
    text = jax.jit(jax.grad(lambda x: _score(lambda x, w: frozen_product("ai,io->ao", x, w, LOW), x, w))).lower(x)
    assert text.as_text().count("stablehlo.dot_general") == 2


def _scanned(x: jax.Array, stack: jax.Array) -> jax.Array:
    """Layers over stacked weights as the decoder scans them, with attention of every row over the layer's input."""
    graph, _ = nnx.split(layers.linear(stack.shape[1], stack.shape[2], stack.dtype, nnx.Rngs(0), bias=False))

    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        layer = nnx.merge(graph, nnx.State({"kernel": nnx.Param(products.unpacked(w))}))
        scores = jax.nn.softmax(multiply("bqd,bkd->bqk", x, x))
        return jnp.tanh(layer(x) + multiply("bqk,bkd->bqd", scores.astype(x.dtype), x).astype(x.dtype)), None

    x, _ = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), x, products.packed(stack))
    return jnp.square(x.astype(jnp.float32)).sum()


def _of_scanned_gradient(x: jax.Array, stack: jax.Array) -> jax.Array:
    return jnp.square(jax.grad(_scanned)(x, stack).astype(jnp.float32)).sum()


SCANNED = [pytest.param(_scanned, id="first order"), pytest.param(_of_scanned_gradient, id="second order")]


@pytest.mark.parametrize("function", SCANNED)
def test_gradients_through_a_scan_are_those_of_float32(function: Any) -> None:
    """Of the same bfloat16 values; JAX 0.10 loses residuals of a rule in a scan differentiated twice."""
    x, stack = _arrays((2, 5, 16), (3, 16, 16))
    x, stack = x / 4, stack / 4
    gradient = jax.jit(jax.grad(function))(x, stack)
    expected = jax.jit(jax.grad(function))(_wide(x), _wide(stack))
    assert gradient.dtype == LOW
    assert _cosine(gradient, expected) > 0.999
    np.testing.assert_allclose(np.linalg.norm(_wide(gradient)), np.linalg.norm(expected), rtol=0.03)


@pytest.mark.parametrize("function", SCANNED)
def test_weights_are_never_copied_to_float32(function: Any) -> None:
    """Not in the compiled gradient of a scan over stacked weights, which JAX's own product does copy."""
    depth, width, rows = 6, 192, 64
    x, stack = _arrays((1, rows, width), (depth, width, width))

    def wide_copies() -> int:
        compiled = jax.jit(jax.grad(function)).lower(x, stack).compile()
        return len(re.findall(rf"f32\[(?:{depth},|1,)?{width},{width}\]", str(compiled.as_text())))

    assert wide_copies() == 0
    if jax.default_backend() == "cpu":
        with patch.object(products, "packed", lambda weights: weights):
            assert wide_copies() > 0


def test_float32_is_left_to_jax() -> None:
    """The very same program, gradient included, as with a layer of Flax's own."""
    x = _arrays((3, 16), dtype=jnp.float32)[0]
    ours = layers.linear(16, 24, jnp.float32, nnx.Rngs(0))
    theirs = nnx.Linear(16, 24, rngs=nnx.Rngs(0))

    def program(linear: nnx.Linear) -> str:
        graph, weights = nnx.split(linear)
        gradient = lambda w, x: jax.grad(lambda w: jnp.sin(nnx.merge(graph, w)(x)).sum())(w)  # noqa: E731
        return jax.jit(gradient).lower(weights, x).as_text()

    assert program(ours) == program(theirs)


def test_wider_types_keep_their_width() -> None:
    """Float64 attention is summed in float64."""
    with jax.enable_x64(True):
        a, b = _arrays((1, 2, 1, 1, 4), (1, 3, 1, 4), dtype=jnp.float64)
        assert multiply(SCORES, a, b).dtype == jnp.float64
        assert product(SCORES, a.astype(LOW), b.astype(LOW), jnp.float32).dtype == jnp.float32
