"""Causal attention of the prefill by the platform's own kernel, where it has one.

On an NVIDIA GPU that is cuDNN's flash attention (bfloat16 and float16), on a TPU the Pallas kernel that JAX ships
(splash attention; float32 and bfloat16), elsewhere row blocks of our own. The kernel is chosen when a program is
lowered for a platform, so that a program exported for a TPU on a machine without one holds the TPU's kernel.

Kernels see no mask but the causal one: the decoder turns its sequences so that padding comes last, unless row blocks
are asked for.
They have first-order gradients only, which is all that the prefix needs.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from fixate_jax.backbones.decoder.attention import blocked_attention
from fixate_jax.backbones.sharding import batch_axes

Attention = Literal["auto", "blocked"]

LANES = 128
"""The TPU kernel takes lengths and head widths that are multiples of this."""

TPU_BLOCKS = (512, 384, 256, 128)
"""Tile sizes of the TPU kernel, best first; the first that divides the padded length is taken."""

TPU_TYPES = (jnp.float32, jnp.bfloat16)


def _padded(x: Array, axis: int, multiple: int) -> Array:
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, pad)


def _cudnn(query: Array, key: Array, value: Array) -> Array:
    """The GPU kernel; its gradient refuses odd lengths, and padding at the end is seen by no earlier row."""
    padded = (_padded(x, 1, 2) for x in (query, key, value))
    out = jax.nn.dot_product_attention(*padded, is_causal=True, implementation="cudnn")
    return out[:, : query.shape[1]]


def _takes(kernel: Any, *arrays: Array) -> bool:
    """Whether a kernel and its gradient take arrays of these shapes and types; they say no by raising when traced."""

    def both(*arrays: Array) -> Any:
        out, pull = jax.vjp(kernel, *arrays)
        return pull(out)

    try:
        jax.eval_shape(both, *arrays)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def _splash(query: Array, key: Array, value: Array, *, interpret: bool) -> Array:
    """The TPU kernel on one device, lengths and widths padded at their ends."""
    # Imported here: a second of work that only long sequences need.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    seq, width = query.shape[1], query.shape[-1]
    # In float32, since the scale itself would lose digits in bfloat16.
    scaled = (query.astype(jnp.float32) * width**-0.5).astype(query.dtype)
    query, key, value = (_padded(_padded(x, 1, LANES), 3, LANES).swapaxes(1, 2) for x in (scaled, key, value))
    heads, rows = query.shape[1:3]
    block = next(size for size in TPU_BLOCKS if rows % size == 0)
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((rows, rows))] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )
    return jax.vmap(kernel)(query, key, value).swapaxes(1, 2)[:, :seq, :, :width]


def splash_attention(
    query: Float[Array, "batch seq heads width"],
    key: Float[Array, "batch seq kv width"],
    value: Float[Array, "batch seq kv width"],
    *,
    interpret: bool = False,
) -> Float[Array, "batch seq heads width"]:
    """Causal attention by the TPU kernel, each device working on its rows of the batch and its part of the heads.

    Args:
        query: rotated queries.
        key: rotated keys.
        value: values.
        interpret: run the kernel's program step by step on any platform; slow, for tests.

    Returns:
        The attended values, heads unmerged.
    """
    call = partial(_splash, interpret=interpret)
    mesh = jax.typeof(query).sharding.mesh
    if mesh.empty or mesh.size == 1:
        return call(query, key, value)
    # XLA cannot split a kernel of this kind among devices by itself.
    heads = "tensor" if "tensor" in mesh.shape and key.shape[2] % mesh.shape["tensor"] == 0 else None
    part = PartitionSpec(batch_axes(mesh, query.shape[0]), None, heads)
    return jax.shard_map(call, mesh=mesh, in_specs=part, out_specs=part, check_vma=False)(query, key, value)


def prefill_attention(
    query: Float[Array, "batch seq heads width"],
    key: Float[Array, "batch seq kv width"],
    value: Float[Array, "batch seq kv width"],
    *,
    how: Attention,
    block: int,
    valid: Bool[Array, "batch seq"] | None = None,
) -> Float[Array, "batch seq heads width"]:
    """Causal softmax attention of whole sequences; differentiable once.

    Args:
        query: rotated queries.
        key: rotated keys.
        value: values.
        how: ``"auto"`` takes the platform's kernel where there is one that takes these shapes and this type;
            ``"blocked"`` never does.
        block: rows of scores that :func:`blocked_attention` holds at a time.
        valid: False where nobody may look, for ``"blocked"`` alone (None: causality hides all that is to be hidden).

    Returns:
        The attended values, heads unmerged, in the type of ``value``.
    """
    ours = partial(blocked_attention, valid=valid, causal=True, block=block)
    kernels: dict[str, Any] = {}
    # Below that a kernel would mostly work on padding.
    if how == "auto" and query.shape[1] >= LANES:
        if query.dtype in TPU_TYPES:
            kernels["tpu"] = splash_attention
        if _takes(_cudnn, query, key, value):
            kernels["cuda"] = _cudnn
    if not kernels:
        return ours(query, key, value)
    return jax.lax.platform_dependent(query, key, value, default=ours, **kernels)
