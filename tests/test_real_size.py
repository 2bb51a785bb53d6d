"""The benchmark of published sizes: its models have those sizes, and the program runs with tiny ones."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import real_case, real_size
from fixate_jax.backbones import loading


@pytest.mark.parametrize(
    ("name", "parameters", "seq"), [("qwen3-vl-4b", 4.44e9, 16 + 646 + 128), ("internvl3.5-4b", 4.34e9, 16 + 768 + 128)]
)
def test_models_have_the_published_size(tmp_path: Path, name: str, parameters: float, seq: int) -> None:
    """4.02 billion in the decoder and 0.3 to 0.4 in the vision tower; a page of 1100 × 619 pixels."""
    case = real_case.make_real_case(name, tmp_path, tiny=False)
    assert sum(x.size for x in jax.tree.leaves(case.params)) == pytest.approx(parameters, rel=0.005)
    assert case.seq == seq
    assert {x.dtype.name for x in jax.tree.leaves(case.params)} == {"bfloat16"}


@pytest.mark.slow
def test_tiny_models_run_through(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    families = dict(loading.FAMILIES)
    del families["qwen3_vl"]
    monkeypatch.setattr(loading, "FAMILIES", families)
    real_size.main(["--tiny", "--pairs", "1", "--peak-tflops", "0.1"])
    out = capsys.readouterr().out
    assert "qwen3-vl-4b: left out" in out and "The PyTorch alternative knows Qwen3-VL only" in out
    lines = {line.split("│")[1].strip(): line.split("│") for line in out.splitlines() if line.count("│") == 9}
    assert set(lines) == {real_size.VISION, real_size.PREFILL, real_size.STEP, real_size.NTP}
    for name, cells in lines.items():
        assert float(cells[2]) > 0 and "%" in cells[7] and float(cells[8]) > 0, name


def test_the_torch_alternative_runs_on_a_model_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    case = real_case.make_real_case("qwen3-vl-4b", tmp_path, tiny=True)
    timed = real_size.torch_call(replace(case, batch=jax.tree.map(np.asarray, case.batch)), device="cpu")
    timed.call()
    assert timed.flops is None and timed.memory() is None


def test_without_an_accelerator_it_says_so() -> None:
    with pytest.raises(SystemExit, match="--tiny"):
        real_size.main([])


def test_peaks_by_name() -> None:
    peaks = {
        name: real_size.peak_of(name) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "TPU v5 lite", "TPU v5")
    }
    assert peaks == {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
    }
    assert real_size.peak_of("cpu") is None
