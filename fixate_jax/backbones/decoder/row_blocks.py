"""Work on the rows of a causal attention matrix, some of them at a time.

A few blocks are laid out one by one, and each reads exactly the keys that it may see. The compiler is free to work on
all of those at once, and then holds all their scores; so where there are many, they are a loop, and memory grows with
the length of the sequence and not with its square. A loop's blocks read keys up to one of a few ends.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

UNROLLED = 4
"""Most blocks that are laid out one by one."""
ENDS = 8
"""How many different numbers of keys the blocks of a loop read."""
Result = TypeVar("Result")
Block = Callable[[Int[Array, ""] | int, int, int], Result]
"""From first row, number of rows and number of keys to the result of one block."""


def rows_of(x: Shaped[Array, "..."], first: Int[Array, ""] | int, size: int, axis: int = 1) -> Shaped[Array, "..."]:
    """Some rows of an array.

    Args:
        x: the array.
        first: number of the first row; known while tracing where blocks are laid out one by one.
        size: how many rows.
        axis: along which they lie.
    """
    if isinstance(first, int):
        return jax.lax.slice_in_dim(x, first, first + size, axis=axis)
    return jax.lax.dynamic_slice_in_dim(x, first, size, axis=axis)


def _loop(one: Block[Result], count: int, block: int, keys: list[int], carry: Any, step: Any) -> tuple[Any, Any]:
    """Scan over whole blocks; ``step`` makes the next carry and what is kept of carry and result."""
    ends = sorted(set(keys))
    branches = [lambda first, n=n: one(first, block, n) for n in ends]
    which = jnp.array([ends.index(n) for n in keys])

    @jax.checkpoint
    def body(carry: Any, xs: tuple[Array, Array]) -> tuple[Any, Any]:
        first, branch = xs
        return step(carry, jax.lax.switch(branch, branches, first))

    return jax.lax.scan(body, carry, (jnp.arange(count) * block, which))


def block_plan(seq: int, block: int, causal: bool) -> tuple[int, list[int]]:
    """How many whole blocks are a loop, and how many keys each of them reads."""
    count = seq // block
    if -(-seq // block) <= UNROLLED:
        return 0, []
    segment = [i * ENDS // count for i in range(count)]
    last = {s: (i + 1) * block for i, s in enumerate(segment)}
    return count, [last[s] if causal else seq for s in segment]


def _laid_out(one: Block[Result], first: int, seq: int, block: int, causal: bool) -> list[Result]:
    parts = []
    for start in range(first, seq, block):
        size = min(block, seq - start)
        checkpointed = jax.checkpoint(one, static_argnums=(0, 1, 2))
        parts.append(checkpointed(start, size, start + size if causal else seq))
    return parts


def join_blocks(
    one: Block[Shaped[Array, "batch _rows ..."]], seq: int, block: int, *, causal: bool
) -> Shaped[Array, "batch {seq} ..."]:
    """The results of all blocks, one after the other along axis 1; the backward pass computes a block again.

    Args:
        one: makes the rows of a block.
        seq: rows in all.
        block: rows of a block; the last one may have fewer.
        causal: a row reads the keys up to its own position; otherwise every row reads all.
    """
    count, keys = block_plan(seq, block, causal)
    parts = []
    if count:
        _, stacked = _loop(one, count, block, keys, None, lambda carry, part: (carry, part))
        parts.append(jnp.moveaxis(stacked, 0, 1).reshape(stacked.shape[1], -1, *stacked.shape[3:]))
    parts += _laid_out(one, count * block, seq, block, causal)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def add_blocks(one: Block[Result], seq: int, block: int) -> Result:
    """The sum of the results of all causal blocks; the backward pass computes a block again.

    Args:
        one: makes a tree of arrays from a block, of the same shapes for each.
        seq: rows in all.
        block: rows of a block; the last one may have fewer.
    """
    count, keys = block_plan(seq, block, causal=True)
    total: Any = None
    if count:
        shapes = jax.eval_shape(lambda: one(jnp.int32(0), block, block))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = _loop(one, count, block, keys, zeros, lambda c, part: (jax.tree.map(jnp.add, c, part), None))
    for part in _laid_out(one, count * block, seq, block, causal=True):
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return total  # type: ignore[no-any-return]
