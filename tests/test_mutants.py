"""The list of mutants fits the code, and the tool that tries them tells caught from missed and from no answer."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.run_mutants import Mutant, chosen, problems, read_mutants, table, try_all

ADD = "def add(a, b):\n    return a + b\n"
TESTS = """
import pytest
from fixate_jax.sums import add


def test_add():
    assert add(2, 3) == 5


def test_zero():
    assert add(0, 0) == 0


def test_skipped():
    pytest.skip("not here")
"""
WRONG = Mutant(
    name="minus", file="fixate_jax/sums.py", before="a + b", after="a - b", tests=("tests/test_sums.py::test_add",)
)


def test_the_list_fits_the_code() -> None:
    mutants = read_mutants()
    assert problems(mutants) == []
    assert len(mutants) >= 40


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one function and its tests."""
    root = tmp_path_factory.mktemp("repository")
    for folder, name, text in (("fixate_jax", "sums.py", ADD), ("tests", "test_sums.py", TESTS)):
        (root / folder).mkdir()
        (root / folder / "__init__.py").touch()
        (root / folder / name).write_text(text)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    return root


def test_caught_missed_and_no_answer(small: Path) -> None:
    of_zero, skipped = (("tests/test_sums.py::test_" + name,) for name in ("zero", "skipped"))
    mutants = [
        WRONG,
        replace(WRONG, name="unseen", tests=of_zero),
        replace(WRONG, name="skipped", tests=skipped),
        replace(WRONG, name="no import", before="def add", after="def plus"),
        replace(WRONG, name="no name", after="a + c"),
    ]
    unchanged, *verdicts = try_all(mutants, root=small, say=False)
    assert unchanged.outcome == "missed"
    assert [v.outcome for v in verdicts] == ["caught", "missed", "error", "error", "error"]
    assert verdicts[0].note == "tests/test_sums.py::test_add"
    assert verdicts[2].note == "every test was skipped"
    assert "ImportError" in verdicts[3].note and "NameError" in verdicts[4].note
    assert (small / "fixate_jax" / "sums.py").read_text() == ADD, "the tree itself is never changed"
    assert table(verdicts).endswith("5 mutants: 1 caught, 1 missed, 3 error")


def test_tests_that_fail_anyway_notice_nothing(small: Path, tmp_path: Path) -> None:
    (root := tmp_path / "broken").mkdir()
    for path in small.iterdir():
        (root / path.name).symlink_to(path)
    (root / "tests").unlink()
    (root / "tests").mkdir()
    (root / "tests" / "test_sums.py").write_text("import fixate_jax\n\n\ndef test_add():\n    assert False\n")
    (only,) = try_all([WRONG], root=root, say=False)
    assert only.outcome == "error" and "assert False" in only.note


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"before": "a * b"}, "minus: `before` occurs 0 times in fixate_jax/sums.py, expected once"),
        ({"before": "a"}, "minus: `before` occurs 3 times in fixate_jax/sums.py, expected once"),
        ({"after": "a + b"}, "minus: `after` is the same"),
        ({"after": "a +"}, "minus: `after` is no Python"),
        ({"file": "fixate_jax/products.py"}, "minus: `before` occurs 0 times in fixate_jax/products.py"),
        ({"tests": ("tests/test_sums.py::test_other",)}, "minus: there is no test tests/test_sums.py::test_other"),
        ({"tests": ("tests/test_products.py::test_add",)}, "minus: there is no test tests/test_products.py::test_add"),
        ({"tests": ()}, "minus: no tests"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(small: Path, change: dict[str, str], told: str) -> None:
    (only,) = problems([replace(WRONG, **change)], small)  # type: ignore[arg-type]
    assert only.startswith(told)


def test_names_are_taken_once_and_choose_by_a_part(small: Path) -> None:
    assert problems([WRONG, WRONG], small) == ["minus: the name is taken"]
    other = replace(WRONG, name="times")
    assert chosen([WRONG, other], ["im"]) == [other] and chosen([WRONG, other], []) == [WRONG, other]
