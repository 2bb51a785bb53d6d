"""The report: one file that needs nothing beside it, with everything escaped."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from fixate_jax.errors import DataError
from fixate_jax.lab.report import write_report
from tests.report import samples


class Checker(HTMLParser):
    """Collects tags, and fails on one that is closed out of order."""

    void = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


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


def test_where_files_lie_is_not_told(tmp_path):
    path = report(tmp_path, config={"data": {"path": "/home/somebody/gaze"}, "cache": {"directory": "runs/own"}})
    text = path.read_text(encoding="utf-8")
    assert "somebody" not in text and ">gaze<" in text and "runs/own" in text


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


def checked(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def test_the_report_loads_nothing_and_runs_its_own_script_alone(tmp_path):
    text = samples.report(tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w+\.\w|<link|@import|url\(|<iframe|\bsrc=\"(?!data:)", text)
    checker = checked(text)
    (policy,) = [str(a["content"]) for tag, a in checker.seen if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy
    (style,), (data, script) = checker.texts["style"], checker.texts["script"]
    for inner in (style, script):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'" in policy
    assert not any({"style", "onclick", "onload", "onerror"} & set(a) for _, a in checker.seen)
    assert json.loads(data)["viewer"]["users"][1]["name"] == samples.HOSTILE, "names come through whole"


def test_names_cannot_leave_their_place(tmp_path):
    text = samples.report(tmp_path).read_text(encoding="utf-8")
    assert samples.HOSTILE not in text and "<img src=x" not in text
    assert text.count("</script>") == 2 and text.count("<script") == 2
    assert len({tag for tag, _ in checked(text).seen} & {"b", "iframe"}) == 0


def test_only_what_there_is_has_a_part(tmp_path):
    full = checked(samples.report(tmp_path).read_text(encoding="utf-8"))
    parts = [a["id"] for tag, a in full.seen if tag == "section"]
    assert parts == ["sessions", "people", "tables", "training", "settings"]
    assert [a["href"] for tag, a in full.seen if tag == "a"][1:6] == [f"#{part}" for part in parts]
    plain = checked(report(tmp_path).read_text(encoding="utf-8"))
    assert [a["id"] for tag, a in plain.seen if tag == "section"] == ["tables", "figures", "settings"]


def test_improvement_needs_before_and_after(tmp_path):
    frame = samples.improvement()["kl"][["FixATE"]]
    with pytest.raises(DataError, match=r"improvement in kl needs two columns, before and after; got \['FixATE'\]"):
        samples.report(tmp_path, improvement={"kl": frame})


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(DataError, match=r"missing\.png.*do not exist"):
        report(tmp_path, figures=[("gone", tmp_path / "missing.png")])
    assert not (tmp_path / "report.html").exists()
    report(tmp_path)
    report(tmp_path, title="again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "report.html"]
    assert "again" in (tmp_path / "report.html").read_text(encoding="utf-8")
