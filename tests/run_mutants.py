"""Does the suite notice small mistakes: apply those of `mutants.toml` to copies of the package and run their tests.

    python -m tests.run_mutants [NAME …] [--jobs N] [--timeout SECONDS]

Each mutant is one snippet of one file, replaced. The working tree is never changed: every mutant gets a copy of the
package and of the tests, and the run fails unless that copy is what the tests imported. The tests listed are first run
on an unchanged copy, since a test that fails anyway notices nothing.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("mutants.toml")
PACKAGE = "fixate_jax"
COPIED = (PACKAGE, "tests")
"""Copied for each mutant; all other files and folders of the repository are linked to."""
Outcome = Literal["caught", "missed", "error"]

GUARD_FILE = "mutant_guard.py"
GUARD = '''\
"""Ends a run with status 70 where its outcome says nothing about the mutant."""

import sys
from pathlib import Path

import pytest

ran, why = 0, ""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    global ran
    ran += (report.when == "call" and report.outcome == "passed") or report.outcome == "failed"


def pytest_exception_interact(call: pytest.CallInfo) -> None:
    global why
    if call.excinfo is not None and call.excinfo.errisinstance((ImportError, NameError, SyntaxError)):
        why = f"no test failed, the code does not run: {call.excinfo.exconly()}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    package = sys.modules.get("PACKAGE")
    told = why
    if session.exitstatus in (0, 1) and not ran:
        told = "every test was skipped"
    elif package is not None and Path(package.__file__).parents[1] != Path(__file__).parent:
        told = f"another package was tested: {package.__file__}"
    elif session.exitstatus in (0, 1) and package is None:
        told = "the tests do not import the package"
    if told:
        print(f"\\nguard: {told}")
        session.exitstatus = 70
'''.replace("PACKAGE", PACKAGE)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A small mistake.

    Attributes:
        name: in a few words.
        file: which is changed, from the root of the repository.
        before: a snippet that occurs in it once.
        after: what stands in its place.
        tests: node ids of the tests of which one has to fail; of functions, without parameters.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a mutant: the outcome, how long it took, and the test that failed or what is wrong."""

    name: str
    outcome: Outcome
    seconds: float
    note: str


def read_mutants(path: Path = LIST) -> list[Mutant]:
    """The mutants of a list."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in table["mutant"]]


def problems(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """What is wrong with a list, if anything: every snippet occurs once, every test is there, names differ."""
    found = [f"{m.name}: the name is taken" for i, m in enumerate(mutants) if m.name in {o.name for o in mutants[:i]}]
    functions: dict[str, set[str]] = {}
    for mutant in mutants:
        path = root / mutant.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (times := text.count(mutant.before)) != 1:
            found.append(f"{mutant.name}: `before` occurs {times} times in {mutant.file}, expected once")
        elif mutant.before == mutant.after:
            found.append(f"{mutant.name}: `after` is the same as `before`")
        else:
            try:
                ast.parse(text.replace(mutant.before, mutant.after))
            except SyntaxError as error:
                found.append(f"{mutant.name}: `after` is no Python: {error}")
        if not mutant.tests:
            found.append(f"{mutant.name}: no tests")
        for test in mutant.tests:
            file, _, function = test.partition("::")
            if file not in functions:
                functions[file] = _functions(root / file)
            if function not in functions[file]:
                found.append(f"{mutant.name}: there is no test {test}")
    return found


def _functions(path: Path) -> set[str]:
    """Names of a file's functions; none where there is no such file."""
    if not path.is_file():
        return set()
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def copy_tree(root: Path, to: Path, *, compiled: bool = False) -> None:
    """A copy of the repository in which package and tests are files of its own, and all else is linked to.

    Args:
        root: what to copy.
        to: must not be there yet.
        compiled: copy compiled modules too, which is quicker; safe where none of the files has changed since.
    """
    to.mkdir(parents=True)
    ignore = None if compiled else shutil.ignore_patterns("__pycache__")
    for path in root.iterdir():
        if path.name in COPIED:
            shutil.copytree(path, to / path.name, ignore=ignore)
        elif not path.name.startswith(".") and path.name != GUARD_FILE:
            (to / path.name).symlink_to(path.absolute())
    if (shared := root.absolute().parent / "shared").is_dir():  # The raw data sets lie next to the repository.
        (to.parent / "shared").symlink_to(shared)
    (to / GUARD_FILE).write_text(GUARD, encoding="utf-8")


def environment(tree: Path, cache: Path) -> dict[str, str]:
    """The variables of a run: the copy comes first in the path, and compiled programs are shared between runs.

    A program that a mutant changes is another program, so that sharing them hides nothing.
    """
    kept = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    # Plugins take time to load, and none of them is needed.
    own = {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "JAX_PLATFORMS": "cpu"}
    return kept | dict(os.environ) | own


def run_tests(tests: Sequence[str], tree: Path, cache: Path, *, first: bool, timeout: float) -> tuple[int, str]:
    """Exit status and output of pytest on a copy; 124 after too long a time.

    Args:
        tests: node ids.
        tree: from `copy_tree`.
        cache: for compiled programs.
        first: stop at the first failure.
        timeout: in seconds.
    """
    # Without the checks of shapes and types, which take longer than most of the tests: behaviour has to tell.
    options = ["-q", "-o", "addopts=--strict-markers --strict-config", "-p", "no:cacheprovider", "-p", "mutant_guard"]
    command = [sys.executable, "-m", "pytest", *options, *(["-x"] if first else []), *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment(tree, cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return 124, f"took over {timeout:.0f} seconds"
    return done.returncode, done.stdout


def outcome_of(status: int, output: str) -> tuple[Outcome, str]:
    """What pytest's exit status says about a mutant: 1, some test failed; 0, none did; all else is no answer."""
    lines = output.splitlines()
    if status == 1:
        failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
        return "caught", failed[0].split(" ", 1)[1].split(" - ")[0] if failed else ""
    if status == 0:
        return "missed", "every test listed passed"
    guard = [line.removeprefix("guard: ") for line in lines if line.startswith("guard: ")]
    raised = [line.removeprefix("E ").strip() for line in lines if line.startswith("E ")]
    return "error", next(iter(guard or raised[-1:] or lines[-1:]), "") or f"status {status}"


def try_mutant(mutant: Mutant, *, unchanged: Path, scratch: Path, timeout: float) -> Verdict:
    """Apply a mutant to a copy of the unchanged copy, and run its tests there."""
    begin, tree = time.perf_counter(), Path(tempfile.mkdtemp(dir=scratch)) / "tree"
    copy_tree(unchanged, tree, compiled=True)
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.before) == 1
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        stale.unlink()  # Python tells changes by size and second alone.
    outcome, note = outcome_of(*run_tests(mutant.tests, tree, scratch / "compiled", first=True, timeout=timeout))
    shutil.rmtree(tree.parent)
    return Verdict(name=mutant.name, outcome=outcome, seconds=time.perf_counter() - begin, note=note)


def try_all(
    mutants: Sequence[Mutant], *, root: Path = ROOT, jobs: int = 1, timeout: float = 600, say: bool = True
) -> list[Verdict]:
    """Try mutants, and before them the tests on an unchanged copy, which is the first verdict.

    Args:
        mutants: from `read_mutants`.
        root: of the repository.
        jobs: how many at a time.
        timeout: seconds for each.
        say: print each verdict as it is reached.
    """
    with tempfile.TemporaryDirectory(prefix="fixate-mutants-") as folder:
        scratch, begin = Path(folder), time.perf_counter()
        tree = scratch / "unchanged" / "tree"
        copy_tree(root, tree)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        status, output = run_tests(tests, tree, scratch / "compiled", first=False, timeout=timeout * len(tests))
        note = f"{len(tests)} tests pass on the unchanged package" if status == 0 else output[-2000:]
        seconds = time.perf_counter() - begin
        first = Verdict(name="unchanged", outcome="missed" if status == 0 else "error", seconds=seconds, note=note)
        if say:
            print(f"unchanged: {note} ({seconds:.0f} s)", flush=True)
        if status != 0:
            return [first]

        def one(mutant: Mutant) -> Verdict:
            verdict = try_mutant(mutant, unchanged=tree, scratch=scratch, timeout=timeout)
            if say:
                print(f"{verdict.outcome:6}  {verdict.seconds:4.0f} s  {verdict.name}: {verdict.note}", flush=True)
            return verdict

        with ThreadPoolExecutor(jobs) as pool:
            return [first, *pool.map(one, mutants)]


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts of the mutants as lines of text, and their count."""
    width = max(len(v.name) for v in verdicts)
    lines = [f"{v.name:{width}}  {v.outcome:6}  {v.seconds:5.1f} s  {v.note}" for v in verdicts]
    counts = {kind: sum(v.outcome == kind for v in verdicts) for kind in ("caught", "missed", "error")}
    return "\n".join(
        [*lines, "", f"{len(verdicts)} mutants: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())]
    )


def chosen(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """The mutants of which some names are a part; all without names."""
    return [m for m in mutants if not names or any(name in m.name for name in names)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; status 1 unless every mutant is caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.run_mutants", description="Mutants that the tests catch.")
    parser.add_argument("names", nargs="*", help="only mutants whose name has one of these in it")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: 1)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each (default: 600)")
    parser.add_argument("--list", action="store_true", help="print the names and do nothing")
    options = parser.parse_args(arguments)
    mutants = read_mutants()
    if wrong := problems(mutants):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    mutants = chosen(mutants, options.names)
    if not mutants:
        print(f"no mutant has {' or '.join(options.names)} in its name; see --list", file=sys.stderr)
        return 1
    if options.list:
        print("\n".join(m.name for m in mutants))
        return 0
    begin = time.perf_counter()
    unchanged, *verdicts = try_all(mutants, jobs=options.jobs, timeout=options.timeout)
    if unchanged.outcome == "error":
        print("some tests fail on the unchanged package: fix those first", file=sys.stderr)
        return 1
    print(f"\n{table(verdicts)}; {(time.perf_counter() - begin) / 60:.1f} minutes")
    return int(any(v.outcome != "caught" for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
