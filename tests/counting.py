"""A pytest plugin: what the suite costs, by directory of tests, in compilations and processor seconds.

Compilations that the persistent cache answers are not counted. Processor seconds include those of child processes;
compilations do not. `--record-seconds` writes what each file took to `tests/seconds.json`, by which the files are
ordered, the longest first.
"""

import gc
import json
import resource
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SECONDS = Path(__file__).with_name("seconds.json")
counted: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-seconds", action="store_true", help=f"Write what each file took to {SECONDS.name}.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Ledger(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no worker is left alone with one; a new file counts as a minute."""
    seconds = json.loads(SECONDS.read_text()) if SECONDS.exists() else {}
    items.sort(key=lambda item: -seconds.get(item.nodeid.split("::")[0], 60))


def pytest_collection_finish() -> None:
    """Listen to jax; here, because by now the environment is what conftest makes it."""
    # Tracing makes millions of objects that live on; searching them for cycles took a quarter of its time.
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    from jax import monitoring

    def compiled(event: str, duration_secs: float, **about: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counted["compilations"] += 1

    def found(event: str, **about: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            counted["compilations"] -= 1

    monitoring.register_event_duration_secs_listener(compiled)
    monitoring.register_event_listener(found)


def spent() -> Counter[str]:
    """Everything so far in this process and its children that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return counted + Counter({"seconds": sum(u.ru_utime + u.ru_stime for u in usages)})


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    item.stash[BEFORE] = spent()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Attach to a phase's report what was spent since the one before."""
    report = yield
    now = spent()
    report.spent = dict(now - item.stash[BEFORE])
    item.stash[BEFORE] = now
    return report


BEFORE = pytest.StashKey[Counter[str]]()


class Ledger:
    """Adds up the reports of all workers, and prints the sums at the end."""

    def __init__(self, config: pytest.Config):
        self.record = config.getoption("--record-seconds")
        self.files: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = self.files.setdefault(report.nodeid.split("::")[0], Counter())
        file.update(getattr(report, "spent", {}))
        file["tests"] += report.when == "call"

    def pytest_terminal_summary(self, terminalreporter: "pytest.TerminalReporter") -> None:
        directories: dict[str, Counter[str]] = {}
        for file, sums in self.files.items():
            parts = Path(file).parts
            directories.setdefault("/".join(parts[: 2 if len(parts) > 2 else 1]), Counter()).update(sums)
        terminalreporter.section("compilations and processor seconds")
        terminalreporter.write_line(f"{'':20s}{'tests':>8s}{'compilations':>14s}{'seconds':>10s}")
        total: Counter[str] = sum(directories.values(), Counter())
        for name, sums in [*sorted(directories.items()), ("all", total)]:
            terminalreporter.write_line(
                f"{name:20s}{sums['tests']:8d}{sums['compilations']:14d}{sums['seconds']:10.0f}"
            )
        if self.record:
            seconds = {file: round(float(sums["seconds"]), 1) for file, sums in sorted(self.files.items())}
            SECONDS.write_text(json.dumps(seconds, indent=1) + "\n")
