"""A tiny vision-language model with random weights, written as an ordinary Hugging Face directory.

It predicts nothing. It is what the path from a checkpoint to tuned users is tried, tested and timed with where no
real weights are at hand. The architecture is Qwen3-VL's; tokenizer, chat template and weights are made here, from
nothing but a seed, without torch.
"""

import filecmp
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from safetensors.numpy import save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fixate_jax.errors import CheckpointError, ConfigError

_SPECIAL_NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in _SPECIAL_NAMES)
MERGES = 240

# Letters stay whole words, digits stand alone, a space belongs to the word after it: as in Qwen's tokenizers.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

WORDS = (
    "the of and to in is you are one which would this that with for on as it from each at by all most likely user "
    "person page slot slots label labels letter number box boxes image picture item items list option options choose "
    "chooses click clicks clicked look looks looking see shown drawn answer only just reply give name profile likes "
    "movie film music news book product price value text left right top bottom row column first second third next "
    "system assistant what where how their they who will not more than before after have has been was were"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True, kw_only=True)
class TinySizes:
    """Shape of the model; the defaults make about one million parameters.

    Raises:
        ConfigError: naming the field, if the sizes contradict each other.
    """

    vocab: int = 512
    """Rows of the embedding; the tokenizer uses fewer, the rest is padding."""
    words: str = WORDS
    """What the tokenizer is learned from."""
    late_words: tuple[str, ...] = ()
    """Words that become one token after a space, each made of a word that is one already and one more letter."""
    merges: int | None = MERGES
    """Joins of neighbours that the tokenizer learns (None: as many as make one token of every word)."""
    width: int = 128
    """Width of the decoder's residual stream."""
    ff: int = 384
    """Width of the decoder's feed-forward layers."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 4
    """Query heads of the decoder."""
    kv_heads: int = 2
    """Key and value heads of the decoder."""
    head_dim: int = 32
    """Width of a decoder head."""
    rope_theta: float = 10_000.0
    """Base of the decoder's rotary frequencies."""
    dtype: str = "float32"
    """Type of the weights as config.json states it."""
    tied: bool = True
    """Whether the output head is the embedding."""
    vision_layers: int = 2
    """Blocks of the vision tower."""
    vision_width: int = 64
    """Width of the vision tower."""
    vision_ff: int = 128
    """Width of the vision tower's feed-forward layers."""
    vision_heads: int = 4
    """Heads of the vision tower."""
    deepstack: tuple[int, ...] = (0, 1)
    """Vision blocks whose output is added after the first decoder layers, one a layer."""
    grid_side: int = 12
    """Side of the square table of learned patch positions."""
    patch: int = 16
    """Side of a patch in pixels."""
    merge: int = 2
    """Patches along each side of the square that becomes one visual token."""
    min_pixels: int = 4_096
    """Smallest page area after resizing."""
    max_pixels: int = 1_048_576
    """Largest page area after resizing."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads = {self.heads}: must be a multiple of kv_heads = {self.kv_heads}")
        if self.head_dim % 8:
            raise ConfigError(f"head_dim = {self.head_dim}: must be a multiple of 8")
        if self.vision_width % (4 * self.vision_heads):
            raise ConfigError(f"vision_width = {self.vision_width}: each of {self.vision_heads} heads needs 4k columns")
        if len(self.deepstack) > self.layers or any(not 0 <= i < self.vision_layers for i in self.deepstack):
            raise ConfigError(f"deepstack = {self.deepstack}: needs vision blocks below {self.vision_layers}")
        needed = self.first_special + len(SPECIAL_TOKENS)
        if self.vocab < needed:
            raise ConfigError(f"vocab = {self.vocab}: the tokenizer needs {needed} rows")

    @property
    def first_special(self) -> int:
        """Index of the first special token."""
        return 256 + len(self.merge_list)

    @property
    def merge_list(self) -> tuple[tuple[str, str], ...]:
        """The joins of the tokenizer, in order."""
        late = tuple((f"Ġ{word[:-1]}", word[-1]) for word in self.late_words)
        return _learn_merges(self.words, self.merges) + late

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """Rotary frequencies for time, height and width, in the proportions of Qwen3-VL (24, 20, 20)."""
        half = self.head_dim // 2
        side = half * 5 // 16
        return half - 2 * side, side, side


def write_tiny_random(directory: Path, *, seed: int = 0, sizes: TinySizes | None = None) -> Path:
    """Write a Qwen3-VL-architecture model with random weights as a Hugging Face directory.

    Norm weights are drawn from N(1, 0.1²), biases from N(0, 0.02²), everything else from N(0, 1/fan_in). The same seed
    and sizes give the same bytes. The directory appears whole or not at all; one that holds this very model already is
    left as it is.

    Args:
        directory: where to write; must not exist yet, or be empty.
        seed: of the weights.
        sizes: shape of the model (None: the defaults).

    Returns:
        ``directory``.

    Raises:
        CheckpointError: if the directory holds other files.
    """
    sizes = TinySizes() if sizes is None else sizes
    return write_model(Path(directory), sizes, random_tensors(sizes, seed=seed))


def write_model(
    directory: Path,
    sizes: TinySizes,
    tensors: Mapping[str, Shaped[np.ndarray, "..."]],
    *,
    extra: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Write a Hugging Face directory: configuration, tokenizer, image processor settings and weights.

    The directory appears whole or not at all; one that holds the very same files already is left as it is.

    Args:
        directory: where to write; must not exist yet, or be empty.
        sizes: shape of the model.
        tensors: every weight under the name that transformers gives it.
        extra: more files, by name.

    Returns:
        ``directory``.

    Raises:
        CheckpointError: if the directory holds other files.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        write_tokenizer_files(staging, sizes)
        for name, content in _config_files(sizes).items():
            (staging / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, more in (extra or {}).items():
            (staging / name).write_bytes(more if isinstance(more, bytes) else more.encode())
        (staging / "model.safetensors").write_bytes(save(dict(tensors), metadata={"format": "pt"}))
        staging.chmod(0o755)
        try:
            os.rename(staging, directory)
        except OSError as error:
            if _holds_the_same(directory, staging):
                return directory
            raise CheckpointError(
                f"cannot write a model to {directory} ({error.strerror}); name a new or an empty directory"
            ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return directory


def _holds_the_same(directory: Path, other: Path) -> bool:
    names = [file.name for file in other.iterdir()]
    return all((directory / n).is_file() and filecmp.cmp(directory / n, other / n, shallow=False) for n in names)


def write_tokenizer_files(directory: Path, sizes: TinySizes | None = None) -> None:
    """Write tokenizer, chat template and their settings: a byte-level vocabulary of a few hundred tokens.

    Every capital letter and digit is one token. Any text can be written, most of it byte by byte.
    """
    tokenizer = tokenizer_of(TinySizes() if sizes is None else sizes)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 131_072,
    }
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def random_tensors(sizes: TinySizes, *, seed: int) -> dict[str, Float32[np.ndarray, "..."]]:
    """Draw every weight of the model, named and shaped as transformers saves it."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(sizes).items():
        values = rng.standard_normal(shape)
        if name.endswith("bias"):
            values *= 0.02
        elif "norm" in name.split(".")[-2]:
            values = 1.0 + 0.1 * values
        else:
            values /= np.sqrt(np.prod(shape[1:]))
        tensors[name] = values.astype(np.float32)
    return tensors


def tensor_shapes(sizes: TinySizes) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the checkpoint."""
    width, vision = sizes.width, sizes.vision_width
    shapes: dict[str, tuple[int, ...]] = {"model.language_model.embed_tokens.weight": (sizes.vocab, width)}
    for layer in range(sizes.layers):
        shapes |= _decoder_layer_shapes(f"model.language_model.layers.{layer}", sizes)
    shapes["model.language_model.norm.weight"] = (width,)
    if not sizes.tied:
        shapes["lm_head.weight"] = (sizes.vocab, width)
    shapes["model.visual.patch_embed.proj.weight"] = (vision, 3, 2, sizes.patch, sizes.patch)
    shapes["model.visual.patch_embed.proj.bias"] = (vision,)
    shapes["model.visual.pos_embed.weight"] = (sizes.grid_side**2, vision)
    for block in range(sizes.vision_layers):
        shapes |= _vision_block_shapes(f"model.visual.blocks.{block}", sizes)
    merged = vision * sizes.merge**2
    mergers = {"model.visual.merger": vision}
    mergers |= {f"model.visual.deepstack_merger_list.{i}": merged for i in range(len(sizes.deepstack))}
    for prefix, normed in mergers.items():
        shapes |= _affine(f"{prefix}.norm", (normed,))
        shapes |= _affine(f"{prefix}.linear_fc1", (merged, merged))
        shapes |= _affine(f"{prefix}.linear_fc2", (width, merged))
    return shapes


def _affine(prefix: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}


def _decoder_layer_shapes(prefix: str, sizes: TinySizes) -> dict[str, tuple[int, ...]]:
    width, query, key = sizes.width, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    return {
        f"{prefix}.input_layernorm.weight": (width,),
        f"{prefix}.self_attn.q_proj.weight": (query, width),
        f"{prefix}.self_attn.k_proj.weight": (key, width),
        f"{prefix}.self_attn.v_proj.weight": (key, width),
        f"{prefix}.self_attn.o_proj.weight": (width, query),
        f"{prefix}.self_attn.q_norm.weight": (sizes.head_dim,),
        f"{prefix}.self_attn.k_norm.weight": (sizes.head_dim,),
        f"{prefix}.post_attention_layernorm.weight": (width,),
        f"{prefix}.mlp.gate_proj.weight": (sizes.ff, width),
        f"{prefix}.mlp.up_proj.weight": (sizes.ff, width),
        f"{prefix}.mlp.down_proj.weight": (width, sizes.ff),
    }


def _vision_block_shapes(prefix: str, sizes: TinySizes) -> dict[str, tuple[int, ...]]:
    width = sizes.vision_width
    return {
        **_affine(f"{prefix}.norm1", (width,)),
        **_affine(f"{prefix}.norm2", (width,)),
        **_affine(f"{prefix}.attn.qkv", (3 * width, width)),
        **_affine(f"{prefix}.attn.proj", (width, width)),
        **_affine(f"{prefix}.mlp.linear_fc1", (sizes.vision_ff, width)),
        **_affine(f"{prefix}.mlp.linear_fc2", (width, sizes.vision_ff)),
    }


def _config_files(sizes: TinySizes) -> dict[str, dict[str, Any]]:
    first_special = sizes.first_special
    token = {name: first_special + i for i, name in enumerate(SPECIAL_TOKENS)}
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": sizes.dtype,
        "tie_word_embeddings": sizes.tied,
        "image_token_id": token["<|image_pad|>"],
        "video_token_id": token["<|video_pad|>"],
        "vision_start_token_id": token["<|vision_start|>"],
        "vision_end_token_id": token["<|vision_end|>"],
        "text_config": _text_config(sizes),
        "vision_config": _vision_config(sizes),
    }
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": sizes.patch,
        "merge_size": sizes.merge,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": sizes.min_pixels, "longest_edge": sizes.max_pixels},
    }
    generation = {
        "do_sample": False,
        "eos_token_id": [token["<|im_end|>"], token["<|endoftext|>"]],
        "pad_token_id": token["<|endoftext|>"],
    }
    return {"config.json": config, "preprocessor_config.json": preprocessor, "generation_config.json": generation}


def _text_config(sizes: TinySizes) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl_text",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.ff,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        "tie_word_embeddings": sizes.tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": sizes.rope_theta,
            "mrope_section": list(sizes.mrope_section),
            "mrope_interleaved": True,
        },
    }


def _vision_config(sizes: TinySizes) -> dict[str, Any]:
    return {
        "model_type": "qwen3_vl_vision",
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_ff,
        "num_heads": sizes.vision_heads,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": sizes.patch,
        "spatial_merge_size": sizes.merge,
        "temporal_patch_size": 2,
        "out_hidden_size": sizes.width,
        "num_position_embeddings": sizes.grid_side**2,
        "deepstack_visual_indexes": list(sizes.deepstack),
        "initializer_range": 0.02,
    }


def tokenizer_of(sizes: TinySizes) -> Tokenizer:
    """The tokenizer of a model of these sizes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(sizes.merge_list)
    tokens = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


@lru_cache
def _learn_merges(text: str, count: int | None) -> tuple[tuple[str, str], ...]:
    """Byte-pair encoding: join the commonest neighbours, ties in alphabetical order (Sennrich et al. 2016)."""
    words = text.split()
    split = [list(word) for word in [*words, *("Ġ" + word for word in words)]]
    merges: list[tuple[str, str]] = []
    seen: set[str] = set()
    while count is None or len(merges) < count:
        pairs = Counter(pair for word in split for pair in pairwise(word))
        # Two different pairs may spell the same token, which can stand in the vocabulary only once.
        fresh = [p for p in pairs if p[0] + p[1] not in seen]
        if not fresh:
            break
        left, right = min(fresh, key=lambda p: (-pairs[p], p))
        merges.append((left, right))
        seen.add(left + right)
        split = [_join(word, left, right) for word in split]
    return tuple(merges)


def _join(word: list[str], left: str, right: str) -> list[str]:
    joined: list[str] = []
    for symbol in word:
        if joined and joined[-1] == left and symbol == right:
            joined[-1] = left + right
        else:
            joined.append(symbol)
    return joined
