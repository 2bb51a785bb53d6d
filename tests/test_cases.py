"""Small inputs that failed once, each with the value that is right. They lie beside the repository."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fixate_jax as fx
from fixate_jax.backbones import Backbone, load_backbone, resolve
from fixate_jax.emulation.page_sets import read_page_set
from fixate_jax.errors import CheckpointError, DataError, DataWarning
from fixate_jax.probing import assign_slots

Case = Callable[[str], Path]


@pytest.fixture
def case(shared_data: Path, tmp_path: Path) -> Case:
    """A copy of a case by its name."""
    cases = shared_data.parent / "cases"
    if not cases.is_dir():
        pytest.skip(f"the cases are not here ({cases} is no folder)")
    return lambda name: Path(shutil.copytree(cases / name, tmp_path / name, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve("tiny-qwen3-vl", work=tmp_path_factory.mktemp("model"))


def over(case: Path, model: Path, folder: Path) -> Path:
    """The model's directory with the files of a case in it."""
    shutil.copytree(model, folder)
    for file in case.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copy(file, folder / file.name)
    return folder


def test_a_fixation_exported_twice_is_told_of(case: Case) -> None:
    with pytest.warns(DataWarning, match=r"fixations\.csv: 6 rows say the same as an earlier one .* line \d+"):
        fx.data.own(case("own-duplicates"), page_width=320)


def test_people_called_na_are_people(case: Case) -> None:
    sessions = fx.data.own(case("own-id-NA"), page_width=320)
    assert "NA" in {session.user for session in sessions}


def test_gaze_and_tokens_go_to_the_same_slot(case: Case) -> None:
    sessions = fx.data.own(case("own-nested-slots"), page_width=320)
    page = sessions[0].page
    tokens = assign_slots(page.relative_boxes, 6, 10)
    whole = page.labels.index("Z")
    inner = [i for i in range(page.slots) if i != whole]
    assert (tokens[inner].sum(axis=1) > 0).all(), "what lies inside the whole page has tokens of its own"
    gaze = np.mean([np.asarray(session.gaze) for session in sessions], axis=0)
    assert (gaze[inner] > 0).all()


def test_shares_of_the_page_are_no_pixels(case: Case) -> None:
    with pytest.raises(DataError, match=r"fixations\.csv: all \d+ fixations lie between 0 and 1; are these shares"):
        fx.data.own(case("own-normalised"), page_width=320)
    with pytest.raises(DataError, match=r"slots\.csv, line 2: all boxes lie between 0 and 1, .*are these shares"):
        read_page_set(case("page-normalised-boxes"), width=320)


def test_seconds_are_no_milliseconds(case: Case) -> None:
    folder = case("own-id-NA")
    lines = (folder / "fixations.csv").read_text().splitlines()
    shorter = [",".join([*line.split(",")[:-1], str(int(line.split(",")[-1]) / 1000)]) for line in lines[1:]]
    (folder / "fixations.csv").write_text("\n".join([lines[0], *shorter]) + "\n")
    with pytest.raises(DataError, match=r"fixations\.csv, field 'duration_ms': all times are below 30 .*seconds"):
        fx.data.own(folder, page_width=320)


def test_an_image_too_large_is_named_with_its_size(case: Case) -> None:
    with pytest.raises(DataError, match=r"home\.png: an image of 187,200,000 pixels; 178,956,970 is the limit"):
        read_page_set(case("page-bomb"), width=320)


def test_labels_that_the_font_lacks_are_refused(case: Case) -> None:
    with pytest.raises(DataError, match=r"cannot be drawn, the font .* has no such letter"):
        read_page_set(case("page-cjk-labels"), width=320)
    assert fx.Page(image=Image.new("RGB", (90, 60)), boxes=[(0, 0, 80, 50)], labels=("Ωж é",)).picture()


def test_grey_of_16_bits_stays_grey(case: Case) -> None:
    folder = case("page-grey16")
    (page,) = read_page_set(folder, width=320)
    with Image.open(folder / "home.png") as image:
        expected = np.asarray(image).astype(float).mean() / 257
    assert np.asarray(page.image).mean() == pytest.approx(expected, abs=20), "apart from the labels' plates"
    raw = Image.fromarray(np.full((60, 90), 32768, np.uint16))
    shown = fx.Page(image=raw, boxes=[(0, 0, 80, 50)], labels=("A",), labelled=True).picture()
    assert shown.getpixel((0, 0)) == (127, 127, 127)


def test_a_picture_in_memory_is_not_turned() -> None:
    raw = Image.new("RGB", (90, 60), "teal")
    raw.getexif()[0x0112] = 6  # A camera's note: turn it by a quarter.
    page = fx.Page(image=raw, boxes=[(0, 0, 80, 50)], labels=("A",), labelled=True)
    assert page.picture().size == raw.size, "boxes are given in pixels of the picture as it is"


def test_a_name_is_found_however_its_accents_are_written(case: Case) -> None:
    (page,) = read_page_set(case("page-nfd-name"), width=320)
    assert page.slots == 2


def test_a_page_too_long_is_named(case: Case) -> None:
    with pytest.raises(DataError, match=r"home\.png: 100 × 25000 pixels; a page may be 200 times as long as wide"):
        read_page_set(case("page-ratio-250"), width=320)


def test_a_template_in_a_file_of_its_own_is_read(case: Case, model: Path, tmp_path: Path) -> None:
    directory = over(case("chat-template-json"), model, tmp_path / "other")
    (directory / "chat_template.jinja").unlink()
    assert load_backbone(directory).encoder.tokenizer.chat_template


def test_an_adapter_is_no_model(case: Case) -> None:
    with pytest.raises(CheckpointError, match=r"is an adapter \(LoRA\) of Qwen/Qwen3-VL-2B-Instruct .*merge it"):
        load_backbone(case("lora-adapter"))


def test_quantised_weights_are_named(model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(model, tmp_path / "other"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(CheckpointError, match=r"config\.json: quantization_config says that the weights are quantised"):
        load_backbone(directory)


def test_the_processor_of_another_model_is_refused_at_once(case: Case, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: patch_size 14, .*vision_config says 16"):
        load_backbone(over(case("patch-size-14"), model, tmp_path / "other"))


def same(ours: Backbone, theirs: Backbone) -> None:
    image = Image.new("RGB", (200, 120), "teal")
    assert ours.config == theirs.config and ours.page_processor.grid(200, 120) == theirs.page_processor.grid(200, 120)
    np.testing.assert_array_equal(
        ours.page_processor(image).inputs.patches, theirs.page_processor(image).inputs.patches
    )


def test_a_rope_theta_beside_is_read(case: Case, model: Path, tmp_path: Path) -> None:
    directory = over(case("rope-theta-beside"), model, tmp_path / "other")
    theta = json.loads((directory / "config.json").read_text())["text_config"]["rope_theta"]
    assert load_backbone(directory).config.decoder.rope_theta == theta


def test_limits_by_their_older_names_are_read(case: Case, model: Path, tmp_path: Path) -> None:
    directory = over(case("size-min-max-pixels"), model, tmp_path / "other")
    file = directory / "preprocessor_config.json"
    size = json.loads(file.read_text())["size"]
    limits: dict[str, Any] = {"min_pixels": size["min_pixels"], "max_pixels": size["max_pixels"]}
    same(load_backbone(directory), load_backbone(model, **limits))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": 32, "width": 32}}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: field 'size' = .*give shortest_edge"):
        load_backbone(directory)


def test_an_index_names_files_of_its_folder_alone(model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(model, tmp_path / "other"))
    (directory / "model.safetensors").rename(tmp_path / "x.safetensors")
    for name in ("../x.safetensors", 3, "weights.bin"):
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match=r"weight_map\['a'\] = .* is no safetensors file of this folder"):
            load_backbone(directory)


def test_the_single_file_comes_before_older_shards(model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(model, tmp_path / "other"))
    (directory / "old.safetensors").write_bytes(b"older")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "old.safetensors"}}))
    assert load_backbone(directory).width == load_backbone(model).width
