"""The report of a run: one HTML file that needs nothing beside it."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from fixate_jax.durable import write_text
from fixate_jax.errors import DataError
from fixate_jax.report.tables import cells, flatten, numeric_columns

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1c1e21; --back: #ffffff; --soft: #f3f4f6; --line: #d5d8dd; --dim: #5b616a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --back: #16181c; --soft: #22262c; --line: #3a3f47; --dim: #a0a7b1; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
  max-width: 1200px; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, figcaption { color: var(--dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--soft); } .number { text-align: right; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #ffffff; border-radius: 6px; padding: 6px;
  border: 1px solid var(--line); }
details { margin-top: 1rem; } summary { cursor: pointer; font-weight: 600; }
</style>
</head>
<body>
<h1>$title</h1>
$notes
$tables
$figures
<h2>How it was run</h2>
$settings
</body>
</html>
""")


def write_report(
    run_dir: Path,
    *,
    title: str,
    tables: Mapping[str, pd.DataFrame],
    figures: Sequence[tuple[str, Path]],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    notes: Sequence[str] = (),
    name: str = "report.html",
) -> Path:
    """Write an HTML report into a run's folder: self-contained, light or dark as the reader's system is.

    Args:
        run_dir: folder of the run; must exist.
        title: heading.
        tables: heading → table, in order.
        figures: (caption, PNG file), in order; the pictures are put into the file.
        config: the resolved settings, nested.
        versions: package or device → version.
        notes: paragraphs under the heading.
        name: of the file.

    Returns:
        Path of the report.

    Raises:
        DataError: a figure's file is missing.
    """
    missing = [str(path) for _, path in figures if not path.is_file()]
    if missing:
        raise DataError(f"the report's figures {missing} do not exist; draw them before the report is written")
    settings = pd.DataFrame(flatten(config).items(), columns=["setting", "value"])
    packages = pd.DataFrame(versions.items(), columns=["package", "version"])
    text = _PAGE.substitute(
        title=html.escape(title),
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
        tables="\n".join(f"<h2>{html.escape(head)}</h2>\n{_table(frame)}" for head, frame in tables.items()),
        figures="\n".join(_figure(caption, path) for caption, path in figures),
        settings=f"<details><summary>Settings</summary>{_table(settings)}</details>\n"
        f"<details><summary>Versions</summary>{_table(packages)}</details>",
    )
    path = run_dir / name
    write_text(path, text)
    return path


def _table(frame: pd.DataFrame) -> str:
    marks = [' class="number"' if numeric else "" for numeric in numeric_columns(frame)]

    def row(tag: str, texts: Sequence[str]) -> str:
        inner = "".join(f"<{tag}{mark}>{html.escape(text)}</{tag}>" for mark, text in zip(marks, texts, strict=True))
        return f"<tr>{inner}</tr>"

    head = row("th", [str(name) for name in frame.columns])
    body = "\n".join(row("td", texts) for texts in cells(frame))
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _figure(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
