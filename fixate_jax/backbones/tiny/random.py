"""Tiny vision-language models with random weights, written as ordinary Hugging Face directories.

They predict nothing. They are what the path from a checkpoint to tuned users is tried, tested and timed with where no
real weights are at hand. The architectures are Qwen3-VL's and InternVL's; tokenizer, chat template and weights are made
here, from nothing but a seed, without torch.
"""

import filecmp
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float32, Shaped
from safetensors.numpy import save
from tokenizers import Tokenizer

from fixate_jax.backbones.tiny import internvl as tiny_internvl
from fixate_jax.backbones.tiny import qwen3_vl as tiny_qwen3_vl
from fixate_jax.backbones.tiny.qwen3_vl import CHAT_TEMPLATE, SPECIAL_TOKENS
from fixate_jax.backbones.tiny.sizes import TinySizes
from fixate_jax.backbones.tiny.tokenizer import build_tokenizer
from fixate_jax.errors import CheckpointError
from fixate_jax.runtime.durable import flush, staging

__all__ = ["CHAT_TEMPLATE", "SPECIAL_TOKENS", "TinySizes", "random_tensors", "tensor_shapes", "tokenizer_of"]
__all__ += ["write_model", "write_tiny_random", "write_tokenizer_files"]

FAMILIES: dict[str, ModuleType] = {"qwen3_vl": tiny_qwen3_vl, "internvl": tiny_internvl}
"""What is each architecture's own."""


def write_tiny_random(directory: Path, *, seed: int = 0, sizes: TinySizes | None = None) -> Path:
    """Write a model with random weights as a Hugging Face directory.

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
    with staging(directory) as folder:
        write_tokenizer_files(folder, sizes)
        for name, content in FAMILIES[sizes.family].config_files(sizes).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name, more in (extra or {}).items():
            (folder / name).write_bytes(more if isinstance(more, bytes) else more.encode())
        (folder / "model.safetensors").write_bytes(save(dict(tensors), metadata={"format": "pt"}))
        flush(folder)
        try:
            os.rename(folder, directory)
        except OSError as error:
            if _holds_the_same(directory, folder):
                return directory
            raise CheckpointError(
                f"cannot write a model to {directory} ({error.strerror}); name a new or an empty directory"
            ) from error
    return directory


def _holds_the_same(directory: Path, other: Path) -> bool:
    names = [file.name for file in other.iterdir()]
    return all((directory / n).is_file() and filecmp.cmp(directory / n, other / n, shallow=False) for n in names)


def write_tokenizer_files(directory: Path, sizes: TinySizes | None = None) -> None:
    """Write tokenizer, chat template and their settings: a byte-level vocabulary of a few hundred tokens.

    Every capital letter and digit is one token. Any text can be written, most of it byte by byte.
    """
    sizes = TinySizes() if sizes is None else sizes
    family, tokenizer = FAMILIES[sizes.family], tokenizer_of(sizes)
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
        **family.TOKENIZER_SETTINGS,
    }
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(family.CHAT_TEMPLATE, encoding="utf-8")


def random_tensors(sizes: TinySizes, *, seed: int) -> dict[str, Float32[np.ndarray, "..."]]:
    """Draw every weight of the model, named and shaped as transformers saves it."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(sizes).items():
        values = rng.standard_normal(shape)
        if name.endswith("bias"):
            values *= 0.02
        elif "norm" in name.split(".")[-2] or ".lambda_" in name:
            values = 1.0 + 0.1 * values
        else:
            values /= np.sqrt(np.prod(shape[1:]))
        tensors[name] = values.astype(np.float32)
    return tensors


def tensor_shapes(sizes: TinySizes) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the checkpoint."""
    family = FAMILIES[sizes.family]
    shapes: dict[str, tuple[int, ...]] = {f"{family.DECODER}.embed_tokens.weight": (sizes.vocab, sizes.width)}
    for layer in range(sizes.layers):
        shapes |= _decoder_layer_shapes(f"{family.DECODER}.layers.{layer}", sizes)
    shapes[f"{family.DECODER}.norm.weight"] = (sizes.width,)
    if not sizes.tied:
        shapes[family.HEAD] = (sizes.vocab, sizes.width)
    return shapes | family.vision_shapes(sizes)


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


def tokenizer_of(sizes: TinySizes) -> Tokenizer:
    """The tokenizer of a model of these sizes."""
    return build_tokenizer(list(sizes.merge_list), FAMILIES[sizes.family].SPECIAL_TOKENS)
