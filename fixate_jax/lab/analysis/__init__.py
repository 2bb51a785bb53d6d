"""What a data set says before anything is tuned.

Is a person's gaze their own and stable, does gaze go with the clicks, and how much of both is known without any model?
"""

from fixate_jax.lab.analysis.layouts import AnalysisSettings, Layout, Selection, select_sessions
from fixate_jax.lab.analysis.measures import (
    click_relation,
    correlation_interval,
    identified,
    mean_of_others,
    over_users,
    people_differ,
    random_halves,
    spearman_brown,
    split_half_correlation,
    user_means,
)
from fixate_jax.lab.analysis.tables import (
    Analysis,
    analyse,
    click_bounds,
    click_tables,
    gaze_bounds,
    slot_gaze,
    stability,
)
from fixate_jax.lab.analysis.write import write_analysis

__all__ = [
    "Analysis",
    "AnalysisSettings",
    "Layout",
    "Selection",
    "analyse",
    "click_bounds",
    "click_relation",
    "click_tables",
    "correlation_interval",
    "gaze_bounds",
    "identified",
    "mean_of_others",
    "over_users",
    "people_differ",
    "random_halves",
    "select_sessions",
    "slot_gaze",
    "spearman_brown",
    "split_half_correlation",
    "stability",
    "user_means",
    "write_analysis",
]
