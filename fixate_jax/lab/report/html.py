"""The report of a run: one HTML file that needs nothing beside it, to look at, to click through and to pass on."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from fixate_jax.errors import DataError
from fixate_jax.evaluation.metrics import LOWER_IS_BETTER
from fixate_jax.lab.report.line_charts import training_charts
from fixate_jax.lab.report.tables import arrow, cells, flatten, numeric_columns
from fixate_jax.lab.report.viewer import Viewer, number, viewer_data
from fixate_jax.runtime.durable import write_text

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("base.js", "sessions.js", "users.js", "report.js")
"""Joined in this order."""


def write_report(
    run_dir: Path,
    *,
    title: str,
    tables: Mapping[str, pd.DataFrame],
    figures: Sequence[tuple[str, Path]] = (),
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str] = (),
    viewer: Viewer | None = None,
    improvement: Mapping[str, pd.DataFrame] | None = None,
    training: Mapping[str, pd.DataFrame] | None = None,
    name: str = "report.html",
) -> Path:
    """Write an HTML report into a run's folder: self-contained, light or dark as the reader's system is.

    It may load nothing and run no script but its own, which its content security policy says. Tables, training curves
    and figures can be read without any script.

    Args:
        run_dir: folder of the run; must exist.
        title: heading.
        tables: heading → table, in order; they can be sorted.
        figures: (caption, PNG file), in order; the pictures are put into the file.
        config: the resolved settings, nested.
        versions: package or device → version.
        notes: paragraphs under the heading.
        viewer: sessions that can be chosen and looked at.
        improvement: metric → users in the index and two columns, before and after; drawn as points that choose a user.
        training: name of a run, e.g. "seed 42" → its log, see `fixate_jax.lab.report.line_charts`.
        name: of the file.

    Returns:
        Path of the report.

    Raises:
        DataError: a figure's file is missing, a metric of `improvement` has not two columns, or what a method does
            with a session does not fit its slots.
    """
    missing = [str(path) for _, path in figures if not path.is_file()]
    if missing:
        raise DataError(f"the report's figures {missing} do not exist; draw them before the report is written")
    sections = (
        [] if viewer is None else [_part("sessions", "Sessions", "viewer.html", count=html.escape(viewer.count()))]
    )
    if improvement:
        people = _table(_people(improvement), "Users before and after")
        before, after = (html.escape(str(c)) for c in next(iter(improvement.values())).columns)
        sections.append(_part("people", "Users", "people.html", table=people, before=before, after=after))
    if tables:
        sections.append(_section("tables", "Tables", "\n".join(_titled(head, t) for head, t in tables.items())))
    if charts := training_charts(training or {}):
        sections.append(_section("training", "Training", charts))
    if figures:
        sections.append(_section("figures", "Figures", "\n".join(_figure(caption, path) for caption, path in figures)))
    settings = pd.DataFrame(
        [(name, _without_folders(value)) for name, value in flatten(config).items()], columns=["setting", "value"]
    )
    packages = pd.DataFrame(versions.items(), columns=["package", "version"])
    folded = (("Settings", settings), ("Versions", packages))
    how = "\n".join(f"<details><summary>{head}</summary>{_table(frame, head)}</details>" for head, frame in folded)
    sections.append(_section("settings", "How it was run", how))
    data = {
        "viewer": None if viewer is None else viewer_data(viewer),
        "improvement": [_points(metric, frame) for metric, frame in (improvement or {}).items()],
    }
    path = run_dir / name
    write_text(path, _page(title, notes, sections, data))
    return path


def _page(title: str, notes: Sequence[str], sections: Sequence[tuple[str, str, str]], data: Mapping[str, Any]) -> str:
    style, script = _asset("report.css"), "".join(_asset(file) for file in SCRIPTS)
    return Template(_asset("report.html")).substitute(
        title=html.escape(title),
        policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
        links="\n".join(f'<li><a href="#{anchor}">{head}</a></li>' for anchor, head, _ in sections),
        sections="\n".join(text for *_, text in sections),
        data=_embedded(data),
    )


def _without_folders(value: Any) -> Any:
    """A setting as others may read it: of a path on this machine its last part alone."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _embedded(data: Mapping[str, Any]) -> str:
    """Data as JSON in which nothing can end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _section(anchor: str, head: str, inner: str) -> tuple[str, str, str]:
    start = f'<section id="{anchor}" aria-labelledby="{anchor}-head">'
    text = f'{start}\n<h2 id="{anchor}-head">{head}</h2>\n{inner}\n</section>'
    return anchor, head, text


def _part(anchor: str, head: str, file: str, **texts: str) -> tuple[str, str, str]:
    return _section(anchor, head, Template(_asset(file)).substitute(texts))


def _people(improvement: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each user: every metric before and after."""
    for metric, frame in improvement.items():
        if frame.shape[1] != 2:
            raise DataError(
                f"the improvement in {metric} needs two columns, before and after; got {list(frame.columns)}"
            )
    wide = pd.concat(
        [
            frame.set_axis([f"{arrow(metric)}, {c}" for c in frame.columns], axis=1)
            for metric, frame in improvement.items()
        ],
        axis=1,
    )
    return wide.rename_axis(index="user").reset_index()


def _points(metric: str, frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "metric": metric,
        "lower": metric in LOWER_IS_BETTER,
        "names": [str(name) for name in frame.columns],
        "users": [str(user) for user in frame.index],
        "before": [number(value) for value in frame.iloc[:, 0]],
        "after": [number(value) for value in frame.iloc[:, 1]],
    }


def _titled(head: str, frame: pd.DataFrame) -> str:
    return f"<h3>{html.escape(head)}</h3>\n{_table(frame, head)}"


def _table(frame: pd.DataFrame, label: str) -> str:
    marks = [' class="number"' if numeric else "" for numeric in numeric_columns(frame)]

    def row(tag: str, texts: Sequence[str], scope: str = "") -> str:
        inner = "".join(
            f"<{tag}{mark}{scope}>{html.escape(text)}</{tag}>" for mark, text in zip(marks, texts, strict=True)
        )
        return f"<tr>{inner}</tr>"

    head = row("th", [str(name) for name in frame.columns], ' scope="col"')
    body = "\n".join(row("td", texts) for texts in cells(frame))
    # A box that scrolls has to be within reach of the keyboard.
    box = f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(label)}">'
    return f'{box}<table class="sortable">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _figure(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
