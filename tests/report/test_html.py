"""The report: one file that needs nothing beside it, with everything escaped."""

import base64
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from fixate_jax.errors import DataError
from fixate_jax.report import write_report


class Checker(HTMLParser):
    """Collects tags, and fails on one that is closed out of order."""

    void = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(folder, **changes):
    picture = folder / "figure.png"
    Image.new("RGB", (4, 3), "red").save(picture)
    arguments = {
        "title": "A run <1>",
        "tables": {"Results & more": pd.DataFrame({"method": ["<b>x</b>"], "kl ↓": [0.25]})},
        "figures": [('Session "3"', picture)],
        "config": {"prompt": {"tokens": 16}, "data": {"path": "a&b"}},
        "versions": {"jax": "0.10.2"},
        "notes": ["Costs $5 & counts < 3."],
    }
    return write_report(folder, **(arguments | changes))


def test_the_report_holds_everything_and_is_well_formed(tmp_path):
    path = report(tmp_path)
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert path == tmp_path / "report.html"
    for part in ("A run &lt;1&gt;", "Results &amp; more", "&lt;b&gt;x&lt;/b&gt;", "0.2500", "prompt.tokens", "0.10.2"):
        assert part in text
    assert "Costs $5 &amp; counts &lt; 3." in text
    image = next(attributes for tag, attributes in checker.seen if tag == "img")
    head, data = str(image["src"]).split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == (tmp_path / "figure.png").read_bytes()


def test_the_report_needs_no_network_and_knows_the_dark(tmp_path):
    text = report(tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(DataError, match=r"missing\.png.*do not exist"):
        report(tmp_path, figures=[("gone", tmp_path / "missing.png")])
    assert not (tmp_path / "report.html").exists()
    report(tmp_path)
    report(tmp_path, title="again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "report.html"]
    assert "again" in (tmp_path / "report.html").read_text(encoding="utf-8")
