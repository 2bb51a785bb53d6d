"""The Qwen3 decoder's share of a checkpoint, the same in every family: its settings and its tensors."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.weights.checkpoint import Rule, keep, tensor_names, transpose
from fixate_jax.backbones.weights.config_json import Section
from fixate_jax.errors import CheckpointError

MOST_LAYERS = 1000


def read_decoder(
    text: Section,
    settings: BackboneConfig,
    *,
    tied: bool,
    mrope_section: tuple[int, ...] | None = None,
    deepstack_levels: int = 0,
) -> DecoderConfig:
    """The decoder's shape.

    Args:
        text: the decoder's part of ``config.json``.
        settings: how to run it.
        tied: whether the output head is the embedding.
        mrope_section: rotary frequencies for time, height and width (None: plain RoPE).
        deepstack_levels: feature levels added after the first layers.

    Raises:
        CheckpointError: naming the field that is missing or not supported.
    """
    text.one_of("hidden_act", ("silu",), "silu")
    heads, width = text.whole("num_attention_heads"), text.whole("hidden_size")
    return DecoderConfig(
        vocab=text.whole("vocab_size"),
        layers=text.whole("num_hidden_layers", most=MOST_LAYERS),
        width=width,
        ff=text.whole("intermediate_size"),
        heads=heads,
        kv_heads=text.whole("num_key_value_heads", heads),
        head_dim=text.whole("head_dim", width // heads),
        rope_theta=_rope_theta(text),
        mrope_section=mrope_section,
        norm_eps=text.real("rms_norm_eps", 1e-6),
        attention_bias=text.flag("attention_bias", False),
        tied=tied,
        deepstack_levels=deepstack_levels,
        tapped_layers=settings.tapped_layers,
        dtype=jnp.dtype(settings.dtype),
        attention=settings.attention,
        attention_block=settings.attention_block,
        remat=settings.remat,
        unroll=settings.unroll,
    )


def known_tensors(directory: Path) -> set[str]:
    """Names of the checkpoint's tensors; none where it cannot be read, which is for the loader to say."""
    try:
        return tensor_names(directory)
    except CheckpointError:
        return set()


def is_tied(sections: Iterable[Section], tensors: Collection[str], heads: Collection[str]) -> bool:
    """Whether the output head is the embedding: as ``config.json`` states, but whether a head is there counts for more.

    transformers 5 saves models that it wrongly believes to be tied with a true ``tie_word_embeddings`` and with their
    own heads. It does not tie a head that differs from the embedding when it loads one, and one that does not differ
    gives the same numbers either way.

    Args:
        sections: the parts of ``config.json`` that may say so; the first that does counts. Where no head is there it is
            enough that any says "tied", since nothing else can be meant.
        tensors: names of the checkpoint's tensors; empty where they are not known.
        heads: names that an output head may have.
    """
    if any(head in tensors for head in heads):
        return False
    found = [s.flag("tie_word_embeddings", False) for s in sections if s.get("tie_word_embeddings") is not None]
    return any(found) if tensors else bool(found) and found[0]


def rope_settings(text: Section) -> dict[str, Any]:
    """Rotary settings, from ``rope_parameters`` (new) or ``rope_scaling`` (old); ``rope_theta`` may stand beside.

    Raises:
        CheckpointError: they are given twice and contradict each other.
    """
    spellings = [{"rope_theta": text.get("rope_theta")}, text.object("rope_scaling"), text.object("rope_parameters")]
    found: dict[str, Any] = {}
    for given in spellings:
        for name, value in given.items():
            name = "rope_type" if name == "type" else name
            value = (
                "default" if (name, value) == ("rope_type", "mrope") else value
            )  # What it is, an earlier name of it.
            if value is not None and found.setdefault(name, value) != value:
                raise CheckpointError(
                    f"{text.path}: {text.where}{name} is given twice, as {found[name]!r} and as {value!r} (rope_theta, "
                    "rope_scaling, rope_parameters); keep what the model was trained with"
                )
    return found


def _rope_theta(text: Section) -> float:
    rope = rope_settings(text)
    kind = rope.get("rope_type", "default")
    # "dynamic" changes nothing up to max_position_embeddings, which no page reaches.
    if kind not in ("default", "dynamic"):
        raise CheckpointError(f"{text.path}: rope type {kind!r} is not supported; 'default' is")
    if rope.get("rope_theta") is None:
        raise CheckpointError(f"{text.path}: field 'rope_theta' is missing")
    return Section(text.path, rope, f"{text.where}rope_parameters.").real("rope_theta", 1.0)


_LAYER = [
    ("input_norm.scale", "input_layernorm.weight", keep),
    ("post_attention_norm.scale", "post_attention_layernorm.weight", keep),
    ("q_norm.scale", "self_attn.q_norm.weight", keep),
    ("k_norm.scale", "self_attn.k_norm.weight", keep),
    *((f"{n}.kernel", f"self_attn.{n}.weight", transpose) for n in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *((f"{n}.kernel", f"mlp.{n}.weight", transpose) for n in ("gate_proj", "up_proj", "down_proj")),
]
_BIAS = [(f"{n}.bias", f"self_attn.{n}.bias", keep) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]


def decoder_rules(config: DecoderConfig, prefix: str, head: str) -> Iterator[Rule]:
    """The mapping of a Qwen3 decoder whose tensors start with ``prefix``."""
    yield Rule("decoder.embed.embedding", f"{prefix}embed_tokens.weight")
    yield Rule("decoder.norm.scale", f"{prefix}norm.weight")
    if not config.tied:
        yield Rule("decoder.head.kernel", head, transpose)
    for name, layers in config.groups.items():
        if len(layers):
            for ours, theirs, transform in _LAYER + (_BIAS if config.attention_bias else []):
                yield Rule(f"decoder.{name}.{ours}", f"{prefix}layers.{{layer}}.{theirs}", transform, layers)
