"""Names that would be commands, markup or mathematics somewhere stay names wherever they are written."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fixate_jax.lab.bundles.card import Origin, model_card
from fixate_jax.lab.cli.commands import main
from fixate_jax.lab.report.figures import save_figure
from fixate_jax.lab.report.tables import print_table, to_markdown
from fixate_jax.lab.text import code, csv_text, markdown, say, visible

FORMULA, COLOUR, TAG, LINK = (
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\x1b[0m",
    "<script>alert(1)</script>",
    "[x](javascript:a)",
)


def test_a_spreadsheet_takes_no_cell_for_a_formula() -> None:
    frame = pd.DataFrame({"user": [FORMULA, "+1+1", "@x", "\t=1", "-x", "u1"], "kl": [-0.5, 1, 2, 3, 4, 5]})
    rows = list(csv.reader(io.StringIO(csv_text(frame))))
    assert [row[0] for row in rows[1:]] == [f"'{FORMULA}", "'+1+1", "'@x", "'\t=1", "'-x", "u1"]
    assert [row[1] for row in rows[1:]] == ["-0.5", "1.0", "2.0", "3.0", "4.0", "5.0"]


def test_numbers_and_gaps_are_no_formulas() -> None:
    frame = pd.DataFrame(
        {"user": ["-1", "+2.5e-3", None, "-.5"], "kind": pd.Series(["a", "b", "a", "b"], dtype="category")}
    )
    assert csv_text(frame) == "user,kind\n-1,a\n+2.5e-3,b\n,a\n-.5,b\n"
    assert csv_text(pd.DataFrame({"=1+1": ["-", "–"]})) == "'=1+1\n-\n–\n"


def test_a_name_does_not_move_the_cursor() -> None:
    assert visible(COLOUR) == "\\x1b[31mred\\x1b[0m" and visible("a\u202eb\x00") == "a\\u202eb\\x00"
    assert visible("Zoë, 東京,\ttab\nline") == "Zoë, 東京,\ttab\nline"


def test_tables_and_lines_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(pd.DataFrame({COLOUR: ["[b]x[/b]", COLOUR]}), title="of [/i] " + COLOUR)
    say("written: a[/b]x.csv " + COLOUR)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[b]x[/b]" in out and "of [/i]" in out and "written: a[/b]x.csv" in out


def test_an_error_names_a_file_as_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["emulate", "demo-users", "a[/b]" + COLOUR, "--out", "[/b].csv"])
    error = capsys.readouterr().err
    assert "a[/b]\\x1b[31mred" in error and "\x1b" not in error


def test_a_page_has_no_links_and_tags_but_ours() -> None:
    table = to_markdown(pd.DataFrame({TAG: [LINK, "a|b\nc", "`x`", "5 < 6"]}))
    head, _, *rows = table.splitlines()
    assert head == r"| \<script\>alert(1)\</script\> |"
    assert rows == [r"| \[x\](javascript:a) |", r"| a\|b c |", r"| \`x\` |", r"| 5 \< 6 |"]
    assert code("a`b|c") == "`a'b/c`" and markdown("user_1 is 3 * 4") == r"user_1 is 3 \* 4"


def test_a_model_card_says_what_it_is_given_and_no_more() -> None:
    settings = {"backbone": {"positions": "mrope"}, "operator": {"name": TAG}, "objective": {"alignment": "a|b"}}
    facts = {
        **{"backbone": "a`b|<i>", "architecture": "qwen3_vl", "width": 8, "fingerprint": "f", "tokens": 2, "seed": 1},
        **{"settings": settings, "users": ["u"], "made_with": "x", "position": "before"},
    }
    card = model_card(facts, Origin(data=TAG, seed=1, licence=f"{LINK}\n# Big", note=f"One {TAG}.\n\n{LINK}"))
    assert "<script>" not in card and "<i>" not in card.replace("`a'b/<i>`", "") and "[x](javascript" not in card
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        r"# Soft prompts of 1 person on \<script\>alert(1)\</script\>",
        *("## Files", "## Use", "## Limits", "## About the people"),
    ]


def test_a_dollar_in_a_figure_is_a_dollar(tmp_path: Path) -> None:
    figure = Figure()
    axis, powers = figure.subplots(1, 2)
    axis.set_title("user $a_$ and $\\badcommand$")
    axis.set_yticks([0, 1], ["$x_$", "$\\frac$"])
    axis.plot([0, 1], [0, 1], label="$_$")
    axis.legend()
    powers.plot([1, 1e5], [0, 1])
    powers.set_xscale("log")
    save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert all(not text.get_parse_math() for text in axis.findobj(Text))
    assert all(text.get_parse_math() for text in powers.xaxis.get_ticklabels())
