"""What commands show of their results in a terminal."""

from pathlib import Path

from fixate_jax.lab.text import say

SHOWN_RESULTS = ("method", "mode", "kl", "csh@1", "log_loss", "accuracy")
SHOWN_COMPARISON = ("kl", "accuracy")
"""What fits into 80 columns of a terminal; the report and the CSV files hold every metric."""
SHOWN_ANALYSIS = {
    "stability": ("measure", "value", "low", "high", "sd", "chance", "p"),
    "clicks": ("measure", "chance", "micro", "macro", "low", "high", "better", "p"),
    "bounds": ("predictor", "measure", "micro", "macro", "better", "p"),
}
"""The same for `fixate analyze`."""


def print_analysis(analysis: object, out: Path) -> None:
    """The tables of `fixate analyze`."""
    from fixate_jax.lab.analysis import Analysis
    from fixate_jax.lab.analysis.write import HEADINGS, REPORT
    from fixate_jax.lab.report.tables import print_table

    assert isinstance(analysis, Analysis)
    for note in analysis.notes:
        say(note, wrap=True)
    for row in analysis.tables["left_out"].itertuples():
        say(f"left out of {row.tables}: {row.sessions} sessions of {row.people} people ({row.reason})", wrap=True)
    for name, columns in SHOWN_ANALYSIS.items():
        table = analysis.tables[name]
        # The others are in the files.
        table = table[table["layout"] == 1] if "layout" in table else table
        print_table(table[list(columns)], title=HEADINGS[name], digits=3)
    say(f"everything: {out / REPORT}")


def print_results(results: object) -> None:
    """What an evaluation found: means, and the comparison over people."""
    from fixate_jax.lab.experiments.experiment import Results
    from fixate_jax.lab.report.tables import print_table

    assert isinstance(results, Results)
    shown = [name for name in results.results.columns if name.split()[0] in SHOWN_RESULTS]
    means = results.results[results.results["average"] == "micro"]
    print_table(means[shown], title="Results: means over sessions", digits=3)
    free = results.comparison[(results.comparison["mode"] == "FR")]
    free = (
        free[free["metric"].str.split().str[0].isin(SHOWN_COMPARISON)]
        .drop(columns=["mode", "low", "high"])
        .rename(columns={"difference": "diff"})
    )
    print_table(free, title="FixATE, free-running, against each method over users", digits=3)
    say(f"everything: {results.report}")
