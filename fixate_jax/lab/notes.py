"""What has to be said of results before anybody believes them."""

import warnings
from pathlib import Path

from fixate_jax.backbones.loading import EMBEDDED
from fixate_jax.lab.pretraining.card import RECIPE_FILE

DRAWN = ("human_choice", "synthetic_choice", "synthetic_carousel")
"""Data sets whose pages are of the kinds that tiny backbones have learned to read."""
FEW = 12
"""With fewer people intervals and tests over people say little."""


class ForeignPagesWarning(UserWarning):
    """A backbone is shown pages that it cannot read."""


def tell_of_foreign_pages(backbone: str, pages: str) -> None:
    """Warn where a tiny backbone is shown other pages than those that the library draws.

    Args:
        backbone: ``backbone.path``.
        pages: name of a data set, or where else the pages are from.
    """
    tiny = backbone in EMBEDDED or (Path(backbone) / RECIPE_FILE).exists()
    if tiny and pages not in DRAWN:
        warnings.warn(
            f"{Path(backbone).name} has learned to read choices and carousels that this library draws, and nothing "
            f"else: what is on the pages of {pages} it cannot tell, so its results there show that everything works "
            "and nothing about people; give backbone.path a real checkpoint",
            ForeignPagesWarning,
            stacklevel=3,
        )


def few_people(people: int) -> str:
    """How little so few people can show; empty where they are enough."""
    if people >= FEW:
        return ""
    who = "person is" if people == 1 else "people are"
    least = f"no test over them (Wilcoxon's) can give a p below {2 * 0.5**people:.2g}"
    return f"{people} {who} few: {least}, and intervals over them cannot know how uneven people are."
