"""Qwen3-VL (Instruct, dense): configuration, model, and the table that maps its checkpoints."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fixate_jax.backbones.checkpoint import Rule, flatten_transpose, keep, read_json, transpose
from fixate_jax.backbones.decoder import Decoder, DecoderConfig
from fixate_jax.backbones.family import ChatTurn, template_chat
from fixate_jax.backbones.inputs import Prefix, SequenceInputs, TailOutput
from fixate_jax.backbones.qwen3_vl_pages import PageProcessor
from fixate_jax.backbones.qwen3_vl_vision import ACTIVATIONS, PageInputs, VisionConfig, VisionTower
from fixate_jax.config import BackboneConfig
from fixate_jax.errors import CheckpointError

MODEL_TYPE = "qwen3_vl"


@dataclass(frozen=True, kw_only=True)
class Qwen3VLConfig:
    """A Qwen3-VL checkpoint's shape and special tokens."""

    decoder: DecoderConfig
    vision: VisionConfig
    image_token: int
    flat_positions: bool = False
    """Count the page's tokens like words instead of by row and column (not what the model was trained with)."""


class Qwen3VL(nnx.Module):
    """Vision tower and decoder behind the interface that the rest of the library uses."""

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs):
        """Make a model with random weights (checkpoints replace them)."""
        self.config = config
        self.vision = VisionTower(config.vision, rngs)
        self.decoder = Decoder(config.decoder, rngs)

    def encode_pages(self, pages: PageInputs) -> Float[Array, "batch visual levels width"]:
        """Visual tokens of pages; depends on nothing that is trained, so it can be cached."""
        return self.vision(pages)[:, :, : 1 + self.config.decoder.deepstack_levels]

    def prefill(
        self,
        inputs: SequenceInputs,
        prompt: Float[Array, "batch tokens width"],
        use_prompt: Bool[Array, ""] | bool = True,
    ) -> Prefix:
        """See :meth:`fixate_jax.backbones.decoder.Decoder.prefill`."""
        return self.decoder.prefill(inputs, prompt, use_prompt)

    def tail(self, prefix: Prefix, taps: Float[Array, "layers batch branch heads keys"] | None = None) -> TailOutput:
        """See :meth:`fixate_jax.backbones.decoder.Decoder.tail`."""
        return self.decoder.tail(prefix, taps)


def read_config(directory: Path, settings: BackboneConfig) -> Qwen3VLConfig:
    """Read ``config.json``, in the spelling of transformers 5 or of earlier releases.

    Raises:
        CheckpointError: naming the file and the field that is missing or not supported.
    """
    path = directory / "config.json"
    raw = read_json(path)

    def need(section: dict[str, Any], name: str, where: str) -> Any:
        if section.get(name) is None:
            raise CheckpointError(f"{path}: field {where + name!r} is missing")
        return section[name]

    if raw.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{path}: model_type {raw.get('model_type')!r} is not supported here; {MODEL_TYPE!r} is")
    text, vision = need(raw, "text_config", ""), need(raw, "vision_config", "")
    dtype = jnp.dtype(settings.dtype)
    theta, section = _rope(path, text)
    tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    deepstack = tuple(need(vision, "deepstack_visual_indexes", "vision_config."))
    heads, width = need(text, "num_attention_heads", "text_config."), need(text, "hidden_size", "text_config.")
    if text.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{path}: text_config.hidden_act {text['hidden_act']!r} is not supported; 'silu' is")
    if vision.get("hidden_act", "gelu_pytorch_tanh") not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: vision_config.hidden_act {vision['hidden_act']!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    decoder = DecoderConfig(
        vocab=need(text, "vocab_size", "text_config."),
        layers=need(text, "num_hidden_layers", "text_config."),
        width=width,
        ff=need(text, "intermediate_size", "text_config."),
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or width // heads,
        rope_theta=theta,
        mrope_section=section,
        norm_eps=text.get("rms_norm_eps", 1e-6),
        attention_bias=text.get("attention_bias", False),
        tied=tied,
        deepstack_levels=len(deepstack) if settings.deepstack else 0,
        tapped_layers=settings.tapped_layers,
        dtype=dtype,
        attention_block=settings.attention_block,
        remat=settings.remat,
        unroll=settings.unroll,
    )
    tower = VisionConfig(
        layers=need(vision, "depth", "vision_config."),
        width=need(vision, "hidden_size", "vision_config."),
        ff=need(vision, "intermediate_size", "vision_config."),
        heads=need(vision, "num_heads", "vision_config."),
        out_width=need(vision, "out_hidden_size", "vision_config."),
        patch=vision.get("patch_size", 16),
        temporal=vision.get("temporal_patch_size", 2),
        channels=vision.get("in_channels", 3),
        merge=vision.get("spatial_merge_size", 2),
        table=vision.get("num_position_embeddings", 2304),
        activation=vision.get("hidden_act", "gelu_pytorch_tanh"),
        rope_theta=(vision.get("rope_parameters") or {}).get("rope_theta", 10000.0),
        deepstack_after=deepstack,
        dtype=dtype,
        attention_block=settings.attention_block,
    )
    if tower.out_width != decoder.width:
        raise CheckpointError(
            f"{path}: vision_config.out_hidden_size {tower.out_width} is not text_config.hidden_size {decoder.width}"
        )
    return Qwen3VLConfig(
        decoder=decoder,
        vision=tower,
        image_token=need(raw, "image_token_id", ""),
        flat_positions=settings.positions == "flat",
    )


def _rope(path: Path, text: dict[str, Any]) -> tuple[float, tuple[int, ...]]:
    """Base and M-RoPE sections, from ``rope_parameters`` (new) or ``rope_scaling`` and ``rope_theta`` (old)."""
    rope = text.get("rope_parameters") or {"rope_theta": text.get("rope_theta"), **(text.get("rope_scaling") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise CheckpointError(f"{path}: rope type {kind!r} is not supported; 'default' (M-RoPE) is")
    if rope.get("rope_theta") is None:
        raise CheckpointError(f"{path}: field 'rope_theta' is missing")
    section = tuple(rope.get("mrope_section") or (24, 20, 20))
    if not rope.get("mrope_interleaved", True):
        raise CheckpointError(f"{path}: M-RoPE that is not interleaved (mrope_interleaved: false) is not supported")
    return float(rope["rope_theta"]), section


_DECODER_LAYER = [
    ("input_norm.scale", "input_layernorm.weight", keep),
    ("post_attention_norm.scale", "post_attention_layernorm.weight", keep),
    ("q_norm.scale", "self_attn.q_norm.weight", keep),
    ("k_norm.scale", "self_attn.k_norm.weight", keep),
    *((f"{n}.kernel", f"self_attn.{n}.weight", transpose) for n in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *((f"{n}.kernel", f"mlp.{n}.weight", transpose) for n in ("gate_proj", "up_proj", "down_proj")),
]
_DECODER_BIAS = [(f"{n}.bias", f"self_attn.{n}.bias", keep) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
_VISION_LAYER = [
    *(
        (f"{ours}.{kind}", f"{theirs}.{tensor}", keep)
        for ours, theirs in (("attention_norm", "norm1"), ("mlp_norm", "norm2"))
        for kind, tensor in (("scale", "weight"), ("bias", "bias"))
    ),
    *(
        row
        for ours, theirs in (
            ("qkv", "attn.qkv"),
            ("proj", "attn.proj"),
            ("fc1", "mlp.linear_fc1"),
            ("fc2", "mlp.linear_fc2"),
        )
        for row in ((f"{ours}.kernel", f"{theirs}.weight", transpose), (f"{ours}.bias", f"{theirs}.bias", keep))
    ),
]
_MERGER = [
    ("norm.scale", "norm.weight", keep),
    ("norm.bias", "norm.bias", keep),
    ("fc1.kernel", "linear_fc1.weight", transpose),
    ("fc1.bias", "linear_fc1.bias", keep),
    ("fc2.kernel", "linear_fc2.weight", transpose),
    ("fc2.bias", "linear_fc2.bias", keep),
]


def decoder_rules(config: DecoderConfig, prefix: str, head: str) -> Iterator[Rule]:
    """The mapping of a Qwen3 decoder whose tensors start with ``prefix``."""
    yield Rule("decoder.embed.embedding", f"{prefix}embed_tokens.weight")
    yield Rule("decoder.norm.scale", f"{prefix}norm.weight")
    if not config.tied:
        yield Rule("decoder.head.kernel", head, transpose)
    for name, layers in config.groups.items():
        if len(layers):
            for ours, theirs, transform in _DECODER_LAYER + (_DECODER_BIAS if config.attention_bias else []):
                yield Rule(f"decoder.{name}.{ours}", f"{prefix}layers.{{layer}}.{theirs}", transform, layers)


def rules(config: Qwen3VLConfig) -> list[Rule]:
    """The mapping of a whole Qwen3-VL checkpoint."""
    table = list(decoder_rules(config.decoder, "model.language_model.", "lm_head.weight"))
    visual = "model.visual."
    table += [
        Rule("vision.patch_embed.kernel", f"{visual}patch_embed.proj.weight", flatten_transpose),
        Rule("vision.patch_embed.bias", f"{visual}patch_embed.proj.bias"),
        Rule("vision.position_table.embedding", f"{visual}pos_embed.weight"),
    ]
    table += [Rule(f"vision.merger.{o}", f"{visual}merger.{t}", f) for o, t, f in _MERGER]
    for i in range(len(config.vision.deepstack_after)):
        table += [
            Rule(f"vision.deepstack_mergers.{i}.{o}", f"{visual}deepstack_merger_list.{i}.{t}", f)
            for o, t, f in _MERGER
        ]
    first = 0
    for i, size in enumerate(config.vision.segments):
        layers = range(first, first + size)
        table += [
            Rule(f"vision.stacks.{i}.{o}", f"{visual}blocks.{{layer}}.{t}", f, layers) for o, t, f in _VISION_LAYER
        ]
        first += size
    return table


def ignored_tensor(config: Qwen3VLConfig, name: str) -> bool:
    """Whether a checkpoint may hold this tensor without our using it."""
    return config.decoder.tied and name == "lm_head.weight"


def build(config: Qwen3VLConfig, rngs: nnx.Rngs) -> Qwen3VL:
    """The model, with random weights."""
    return Qwen3VL(config, rngs)


def page_processor(directory: Path, settings: BackboneConfig, config: Qwen3VLConfig) -> PageProcessor:
    """The checkpoint's image processor, with the settings' limits on the page's area."""
    return PageProcessor(directory, config.vision, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)


def page_units(rows: int, columns: int, config: Qwen3VLConfig) -> int:
    """Patches of a page with so many cells."""
    return rows * columns * config.vision.merge**2


def cell_tokens(rows: int, columns: int, config: Qwen3VLConfig) -> Int[np.ndarray, " cells"]:
    """Which page token shows each cell: they are in the same order."""
    del config
    return np.arange(rows * columns)


def image_positions(
    rows: int, columns: int, start: int, config: Qwen3VLConfig
) -> tuple[Int[np.ndarray, "tokens 3"], int]:
    """M-RoPE positions of a page's tokens (time, height, width), and the position after them.

    Args:
        rows, columns: cells of the page.
        start: position of the first.
        config: with ``flat_positions`` the page's tokens are counted like words.
    """
    if config.flat_positions:
        count = rows * columns
        return np.repeat(np.arange(start, start + count)[:, None], 3, axis=1), start + count
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    positions = np.stack([np.zeros_like(row), row, column], axis=-1).reshape(-1, 3) + start
    return positions, start + max(rows, columns)


def chat_text(tokenizer: Any, turns: Sequence[ChatTurn], config: Qwen3VLConfig) -> str:
    """The chat as the checkpoint's own template writes it."""
    del config
    return template_chat(tokenizer, turns)
