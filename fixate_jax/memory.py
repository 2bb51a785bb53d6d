"""Memory of a training step on one device, from shapes alone.

What is counted is what a compiled program holds at its fullest moment: on the way back through the tapped layers, when
all that the forward pass kept is still there. Frozen weights have neither gradients nor moments, so activations that
are kept for the backward pass come next to weights. Everything is in bytes, per device.

The numbers of working arrays were read off XLA's list of buffers that are alive at that moment.
"""

from dataclasses import dataclass, fields

from fixate_jax.backbones.decoder_layer import DecoderConfig
from fixate_jax.backbones.row_blocks import UNROLLED, block_plan
from fixate_jax.errors import ConfigError

Mesh = tuple[int, int, int]
"""Devices along (data, fsdp, tensor)."""

FEED_FORWARD_ARRAYS = 5
"""Arrays of rows × hidden units alive at a time on the way back through a layer's gated half."""
SCORE_ARRAYS = 2
"""Copies of attention's scores alive at a time in its gradient: the weights and what comes back to them."""
LOOP_SCORE_ARRAYS = 3
"""The same where row blocks are a loop; a third goes from one half of its body to the other."""
TAPPED_ARRAYS = 4
"""Arrays the size of the tapped layers' keys: keys and values, or, later, two copies of the gradients of each."""
LOGIT_ARRAYS = 3
"""Arrays of tail positions × vocabulary in float32: logits, probabilities, gradient."""
GATHERED_LAYERS = 5
"""Layers' weights that FSDP has put together at a time: of two layers, as they come and as products want them."""


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """One device's share of a step's micro-batch.

    Attributes:
        rows: sessions.
        seq: positions of a prefix.
        tail: positions of all tails of a session: answer tokens, times branches.
        cached: the first positions, whose keys and values are known.
        flash: whether attention of the prefix is a kernel that holds no scores.
        tensor, fsdp: devices along those axes of the mesh.
    """

    rows: int
    seq: int
    tail: int = 1
    cached: int = 0
    flash: bool = False
    tensor: int = 1
    fsdp: int = 1


@dataclass(frozen=True, kw_only=True)
class Temporaries:
    """What a step holds beside its arguments, in bytes.

    Attributes:
        kept: activations of all layers, kept for the way back.
        tapped: keys and values of the tapped layers, and their gradients.
        working: one layer on its way back: gated half, scores of attention, DeepStack's terms.
        logits: of the tail, over the vocabulary.
        gathered: weights of the layers at work, put together from their parts.
        page: the batch's cached keys and values of pages, put in order for the layers.
    """

    kept: int
    tapped: int
    working: int
    logits: int
    gathered: int = 0
    page: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return sum(getattr(self, field.name) for field in fields(self))


def layer_weights(config: DecoderConfig) -> int:
    """Numbers in the matrices of one decoder layer."""
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return config.width * (2 * query + 2 * key + 3 * config.ff)


def kept_width(config: DecoderConfig, *, tensor: int = 1) -> int:
    """Numbers kept per position and layer: the layer's input, and with ``remat: dots`` its products with weights.

    Those are queries, keys, values, gate and up, which tensor parallelism cuts, and what attention adds to the residual
    stream; what comes out of the last product nothing on the way back asks for.

    Raises:
        ConfigError: for ``remat: none``, where what is kept is the compiler's choice.
    """
    if config.remat == "none":
        raise ConfigError("backbone.remat = 'none': its memory is not planned; choose 'dots' or 'full'")
    if config.remat == "full":
        return config.width
    return 2 * config.width + _product_width(config) // tensor


def _product_width(config: DecoderConfig) -> int:
    return config.heads * config.head_dim + 2 * config.kv_heads * config.head_dim + 2 * config.ff


def score_bytes(config: DecoderConfig, shape: StepShape) -> int:
    """Attention scores of a session, in float32, that the gradient of row blocks holds at a time.

    A few blocks are worked on all at once. A loop holds one block, but once for each number of keys that a block may
    read, since what its branches hold does not share room; see :mod:`fixate_jax.backbones.row_blocks`.
    """
    if shape.flash:
        return 0
    rows, block = shape.seq - shape.cached, config.attention_block
    ends = sorted({*range(block, rows, block), rows})
    if len(ends) <= UNROLLED:
        sizes = [end - first for first, end in zip([0, *ends], ends, strict=False)]
        pairs = sum(size * (shape.cached + end) for size, end in zip(sizes, ends, strict=True))
        return 4 * SCORE_ARRAYS * config.heads * pairs
    _, keys = block_plan(rows, block, causal=True)
    return 4 * LOOP_SCORE_ARRAYS * config.heads * block * sum(shape.cached + end for end in set(keys))


def temporaries(config: DecoderConfig, shape: StepShape) -> Temporaries:
    """What the compiled step holds beside its arguments.

    Args:
        config: the decoder's shape, and how it is run.
        shape: the device's share of a micro-batch.
    """
    size, tensor = config.dtype.itemsize, shape.tensor
    own = shape.seq - shape.cached
    positions = shape.rows * (own + shape.tail)
    keys = shape.rows * shape.seq * config.kv_heads * config.head_dim // tensor
    working = FEED_FORWARD_ARRAYS * positions * config.ff // tensor * size
    working += shape.rows * score_bytes(config, shape) // tensor
    if not shape.cached:
        working += config.deepstack_levels * positions * config.width * size
    if config.remat == "full":
        working += (config.width + _product_width(config) // tensor) * positions * size
    gathered = GATHERED_LAYERS * layer_weights(config) // tensor * size if shape.fsdp > 1 else 0
    page = 2 * config.layers * shape.rows * shape.cached * config.kv_heads * config.head_dim // tensor * size
    return Temporaries(
        kept=(config.layers - 1) * positions * kept_width(config, tensor=tensor) * size,
        tapped=TAPPED_ARRAYS * config.tapped * keys * size,
        working=working,
        logits=LOGIT_ARRAYS * 4 * shape.rows * shape.tail * config.vocab // tensor,
        gathered=gathered,
        page=page,
    )
