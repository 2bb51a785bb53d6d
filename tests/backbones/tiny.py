"""Small random checkpoints, made by transformers itself, that our loader and forward passes are tried on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import BENCH_SIZES
from fixate_jax.backbones.tiny.random import SPECIAL_TOKENS, TinySizes, write_tiny_random


def bench_checkpoint(directory: Path, *, seed: int = 0) -> Path:
    """Write the model that steps are timed with; needs no torch."""
    return write_tiny_random(directory, seed=seed, sizes=BENCH_SIZES)


def make_torch_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    tie: bool = True,
    sharded: bool = False,
) -> Path:
    """Save a tiny torch Qwen3-VL whose every tensor is random; skips the test where torch is not installed.

    Fresh models hide mistakes: norms are 1, biases and position embeddings 0, so that mixing them up changes
    nothing. Here norm weights are N(1, 0.3²), biases N(0, 0.2²), matrices N(0, 1/fan_in).

    Args:
        directory: where to save; must not exist yet, or be empty.
        seed: of the weights.
        text: settings of ``text_config`` that differ from the defaults of ``TinySizes``.
        vision: settings of ``vision_config`` that differ.
        tie: whether the output head is the embedding.
        sharded: whether to spread the weights over several files.

    Returns:
        ``directory``.
    """
    torch = pytest.importorskip("torch")
    import transformers

    sizes = TinySizes(tied=tie)
    write_tiny_random(directory, seed=seed, sizes=sizes)
    config = transformers.AutoConfig.from_pretrained(directory).to_dict()
    config["text_config"] |= dict(text or {})
    config["vision_config"] |= dict(vision or {})
    config["vision_config"]["out_hidden_size"] = config["text_config"]["hidden_size"]
    config = {k: v for k, v in config.items() if k != "dtype"}
    model = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                values = values * 0.2
            elif parameter.ndim == 1:
                values = 1.0 + 0.3 * values
            else:
                values = values / parameter[0].numel() ** 0.5
            parameter.copy_(values)
    (directory / "model.safetensors").unlink()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(directory, max_shard_size=size // 3 if sharded else size * 2)
    return directory


__all__ = ["SPECIAL_TOKENS", "bench_checkpoint", "make_torch_checkpoint"]
