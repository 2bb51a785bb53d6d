"""Put the page that a study, comparison or fidelity run wrote between the marks of a page of the documentation.

    python train/fill_page.py runs/ablation-human_choice docs/results/ablation.md

The marks are a line `<!-- begin NAME -->` and a line `<!-- end NAME -->`, NAME being the folder's. Pictures go next to
the page: `figure.png` as `NAME.png`, others as `NAME-….png`.
"""

import re
from pathlib import Path

import tyro

from fixate_jax.errors import ConfigError
from fixate_jax.runtime.durable import replacing, write_text


def fill(folder: Path, page: Path) -> None:
    """Replace what stands between the page's marks.

    Raises:
        ConfigError: there is no page in the folder, or there are no such marks.
    """
    found = sorted(folder.glob("*.md"))
    if len(found) != 1:
        raise ConfigError(f"{folder}: holds {len(found)} Markdown files, one is needed; finish the run first")
    name, text = folder.resolve().name, found[0].read_text(encoding="utf-8")
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    if before.count(begin) != 1 or before.count(end) != 1 or before.index(begin) > before.index(end):
        raise ConfigError(f"{page}: needs one line {begin!r} and after it one line {end!r}")
    for picture in re.findall(r"\]\((\S+\.png)\)", text):
        published = f"{name}.png" if picture == "figure.png" else f"{name}-{picture}"
        with replacing(page.parent / published) as temporary:
            temporary.write_bytes((folder / picture).read_bytes())
        text = text.replace(f"]({picture})", f"]({published})")
    head, rest = before.split(begin)
    write_text(page, f"{head}{begin}\n\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    tyro.cli(fill)
