"""What README and documentation say can be done, can be done."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixate_jax.lab.cli import commands as cli
from fixate_jax.lab.cli.main import main
from tests import environment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLE_SECONDS = 300
"""Far above what it takes (20 to 60), for machines that are busy with other tests."""


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Every `fixate …` line with its page: console blocks, and lines set as code that name a preset or a flag."""
    found = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        lines = [line.strip() for block in blocks(page, "console") for line in block.splitlines()]
        found += [(name, line.removeprefix("$ ")) for line in lines if line.startswith("$ fixate ")]
        inline = re.findall(r"`(fixate [^`\n]+)`", page.read_text(encoding="utf-8"))
        found += [(name, line) for line in inline if "configs/" in line or "--" in line]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_line_parses(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line, comments=True)[1:]
    if "--help" in arguments[1:]:
        with pytest.raises(SystemExit) as left:
            cli.parse(arguments)
        assert left.value.code == 0
        assert "usage: fixate" in capsys.readouterr().out
    elif arguments[0].startswith("--"):
        main(arguments)
        assert capsys.readouterr().out
    else:
        assert type(cli.parse(arguments)).__name__.lower() == arguments[0].replace("-", "")


def test_all_commands_are_shown() -> None:
    lines = [line for page, line in commands() if page == "README.md"]
    every = set(re.findall(r"^\| `fixate ([\w-]+)` \|", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), re.M))
    assert len(every) >= 10
    assert {line.split()[1] for line in lines} >= every


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for preset in re.findall(r"configs/[\w.-]+\.yaml", text):
        assert (ROOT / preset).is_file(), f"{page.name} names {preset}"
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for line in re.findall(r"(?:\$ |`)make ([a-z-]+)", page.read_text(encoding="utf-8")):
            assert line in targets, f"{page.name} names make {line}"


def build_docs(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Build a copy of the documentation, with this text behind its first page, by the command of `make docs`.

    The settings are those of mkdocs.yml, but API pages are left as they are written: they take most of the time.
    """
    pytest.importorskip("mkdocs")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^\t.*\$\(BIN\)/mkdocs (.*)$", makefile, re.MULTILINE)
    shutil.copytree(ROOT / "docs", folder / "docs")
    with (folder / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{text}\n")
    settings = {"INHERIT": str(ROOT / "mkdocs.yml"), "plugins": {"mkdocstrings": {"enabled": False}}}
    (folder / "mkdocs.yml").write_text(json.dumps(settings), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *shlex.split(recipe)],
        cwd=folder,
        env=environment.of_child(NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
        timeout=EXAMPLE_SECONDS,
    )


def test_documentation_is_built_without_a_warning(tmp_path: Path) -> None:
    # The README is no page of it. Its links into docs/, sections too, are looked at as links of the first page.
    links = re.findall(r"\]\(docs/([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert any("#" in link for link in links)
    done = build_docs(tmp_path, " ".join(f"[{link}]({link})" for link in links))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "howto" / "own_data" / "index.html").is_file()


def test_a_broken_link_fails_the_documentation(tmp_path: Path) -> None:
    broken = ("nowhere.md", "concepts.md#nowhere", "#nowhere", "nowhere.png", "/concepts.md")
    done = build_docs(tmp_path, " ".join(f"[a link]({link})" for link in broken))
    assert done.returncode == 1
    assert f"Aborted with {len(broken)} warnings" in done.stdout
    for link in broken:
        assert f"'{link}'" in done.stderr, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    assert len(example.splitlines()) <= 16
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=environment.of_child(),
        capture_output=True,
        text=True,
        timeout=EXAMPLE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "fixate" in done.stdout
    assert "backbone" in done.stdout
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def own_data_example(folder: Path) -> list[list[str]]:
    """Make the folder that the page about one's own data makes; the arguments of its commands, in order."""
    page = ROOT / "docs" / "howto" / "own_data.md"
    exec(blocks(page, "python")[0], {})
    assert len(list((folder / "my_study" / "pages").iterdir())) == 12
    lines = [line.removeprefix("$ fixate ") for line in blocks(page, "console")[0].splitlines()]
    (folder / "configs").symlink_to(ROOT / "configs")
    return [shlex.split(line) for line in lines]


def test_the_example_of_own_data_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in own_data_example(tmp_path)[:2]:
        assert cli.parse(arguments).run() == 0, arguments
    assert (tmp_path / "analyses" / "own" / "analysis.html").is_file()
    (store,) = (tmp_path / "stores").iterdir()
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["splits"] == {"train": 48, "validation": 12, "test": 12}
    assert manifest["slot_feature_names"] == ["price"] and manifest["dropped"] == {}


@pytest.mark.slow
def test_the_example_of_own_data_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fixate_jax.backbones.loading import SHIPPED

    if not (SHIPPED / "tiny-qwen3-vl").is_dir():
        pytest.skip("no weights are in this copy")
    monkeypatch.chdir(tmp_path)
    _, _, train, probe = own_data_example(tmp_path)
    assert cli.parse([*train, "--train.epochs", "2"]).run() == 0
    assert cli.parse(probe).run() == 0
    assert (tmp_path / "page.png").is_file()


def test_the_operator_of_the_documentation_is_an_operator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import numpy as np

    from fixate_jax import probing
    from fixate_jax.lab.config import OperatorConfig
    from fixate_jax.lab.parts import operator_of
    from fixate_jax.probing.passes import target_logit, with_features
    from fixate_jax.prompts import soft_prompt
    from tests.worlds import World

    names: dict[str, Any] = {"__name__": "my_module"}
    for block in blocks(ROOT / "docs" / "howto" / "operator.md", "python"):
        exec(block, names)
    monkeypatch.setitem(sys.modules, "my_module", SimpleNamespace(**names))  # type: ignore[arg-type]
    operator = operator_of(OperatorConfig(name="my_module:last_layer", settings=("power=1.0",)))

    world = World(tmp_path, sizes=((3, 192, 128),))
    batch = world.batch()
    model = world.backbone.merge(world.backbone.params)
    inputs = with_features(model, batch)
    prefix = model.prefill(inputs, soft_prompt(world.prompt(), batch.user))
    target = target_logit(batch.answer_ids, batch.answer_mask)
    found = operator(probing.Trace(model, prefix, target))
    np.testing.assert_allclose(found.relevance.sum(-1), 1, rtol=1e-5)


def test_the_examples_of_composing_run(capsys: pytest.CaptureFixture[str]) -> None:
    from fixate_jax.backbones.loading import SHIPPED

    if not (SHIPPED / "tiny-qwen3-vl").is_dir():
        pytest.skip("no weights are in this copy")
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "howto" / "compose.md", "python"):
        exec(block, names)
    assert (names["losses"][-1] < names["losses"][0]).all()
    assert names["visits"].attention.shape == (2, 1, 3)


def test_the_examples_of_probing_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fixate_jax.backbones.loading import SHIPPED

    if not (SHIPPED / "tiny-qwen3-vl").is_dir():
        pytest.skip("no weights are in this copy")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "howto" / "probe.md", "python"):
        exec(block, names)
    assert names["heat"].shape == names["image"].size[::-1]
    assert [found.target for found in names["many"]] == [s.click for s in names["store"].sessions[:4]]
