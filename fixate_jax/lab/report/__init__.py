"""Tables, figures and the HTML report of a run."""

from fixate_jax.lab.report.curves import training_curves
from fixate_jax.lab.report.figures import page_figure, user_improvement
from fixate_jax.lab.report.html import write_report
from fixate_jax.lab.report.tables import comparison_table, print_table, results_table, to_markdown
from fixate_jax.lab.report.viewer import Look, SessionView, Viewer

__all__ = [
    "Look",
    "SessionView",
    "Viewer",
    "comparison_table",
    "page_figure",
    "print_table",
    "results_table",
    "to_markdown",
    "training_curves",
    "user_improvement",
    "write_report",
]
