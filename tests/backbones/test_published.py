"""Published sizes by name: as many parameters as the published checkpoints have."""

import json
from pathlib import Path

import jax
import pytest

from fixate_jax.backbones.internvl.config import InternVLConfig
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.qwen3_vl.model import Qwen3VLConfig
from fixate_jax.errors import ConfigError
from fixate_jax.lab.planning.abstract import open_abstract
from fixate_jax.lab.planning.published import PUBLISHED, published_files, write_published

QWEN3 = {"1b": 596_049_920, "2b": 1_720_574_976, "4b": 4_022_468_096, "8b": 8_190_735_360, "14b": 14_768_307_200}
"""Parameters of the Qwen3 decoders, a tied output head counted once."""
QWEN3_32B = 32_762_123_264
QWEN3_VL = {"2b": 2_127_532_032, "4b": 4_437_815_808, "8b": 8_767_123_696, "32b": 33_356_759_280}
"""Parameters of the whole models."""
VIT_300M, VIT_6B = 304.01e6, 5.54e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    backbone = open_abstract(name, BackboneConfig(dtype="bfloat16"))
    counts = {part: sum(x.size for x in jax.tree.leaves(backbone.params[part])) for part in ("decoder", "vision")}
    family, size = name.split("-vl-" if name.startswith("qwen") else "3.5-")
    assert counts["decoder"] == (QWEN3_32B if size in ("32b", "38b") else QWEN3[size])
    if family == "qwen3":
        assert isinstance(backbone.config, Qwen3VLConfig)
        assert sum(counts.values()) == pytest.approx(QWEN3_VL[size], rel=1e-4)
    else:
        assert isinstance(backbone.config, InternVLConfig)
        width, joined = backbone.config.decoder.width, 4 * backbone.config.vision.width
        projector = 2 * joined + joined * width + width + width * width + width
        assert counts["vision"] - projector == pytest.approx(VIT_6B if size == "38b" else VIT_300M, rel=2e-3)


def test_files_are_those_of_a_model_directory(tmp_path: Path) -> None:
    directory = write_published("internvl3.5-38b", tmp_path)
    assert {path.name: json.loads(path.read_text()) for path in directory.iterdir()} == published_files(
        "internvl3.5-38b"
    )
    vision = published_files("internvl3.5-38b")["config.json"]["vision_config"]
    assert (vision["attention_bias"], vision["use_qk_norm"], vision["norm_type"]) == (False, True, "rms_norm")


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'qwen3-vl-5b' is no published size; there are qwen3-vl-2b, .*-38b"):
        published_files("qwen3-vl-5b")
