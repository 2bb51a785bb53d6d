"""The model card of a pretrained backbone: how it was made, what it reads, where to look in it, what it cannot do."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from fixate_jax.lab.report.tables import to_markdown

RECIPE_FILE = "recipe.json"
CONFIGS = {"qwen3_vl": "pretrain_tiny.yaml", "internvl": "pretrain_tiny_internvl.yaml"}
"""Preset of each architecture's recipe."""
READING_FILE, POINTING_FILE = "reading.csv", "pointing.csv"

_CARD = """\
---
license: apache-2.0
library_name: fixate-jax
pipeline_tag: image-text-to-text
---
# {name}

A vision-language model of the {architecture} architecture with {parameters:,} parameters, small enough to come with
fixate-jax. It reads two kinds of drawn pages, and answers with the letter of a slot: carousels of film posters coded by
colour and sign, and three gambles with a chance and an amount in euro. It is there so that the method can be seen to
work on a laptop, and be tested. It knows no other pages, hardly any words, and nothing about the world.

## How it was made

{steps:,} steps of {batch} drawn pages, half of each kind, from random weights, with fixate-jax at commit `{commit}`:

```console
$ fixate pretrain-tiny configs/{config} --run runs/{name}
```

All pages, people and answers are made up by the recipe; no person's data were used. Each page comes with questions: to
read something off (a chance, an amount, a genre), to find where something is, to compare, and, since a system message
describes a made-up person before the page (where the eyes tend to go, what is liked, attitude to risk), what that
person looks at and chooses. Three more losses: every visual token has to name what it shows; the answering position
has to attend to the words that say what is asked for, and in the last {looking_layers} layers to the slot that is
answered or, where a person chooses, to each slot as that person looks at it. **Attention here is trained to follow
made-up eyes**; AttnLRP was never part of a loss. The attention of the vision tower adds nothing (its output projection
is zero), so that a visual token knows only its own part of the page.

`{recipe_file}` holds the whole recipe, the versions, and the SHA-256 of the weights after {early} steps and at the end.
On a CPU of the same kind, with the same versions, a rerun gives the same bits. The weights are shipped in {dtype}.

![training curves](curves.png)

## What it reads

Share of right answers on fresh pages ({pages} of each kind, seeds that training never used); a guess knows the labels:

{reading}

## Where to look in it

The pointing game: of the questions that are answered with a slot's letter, how often the operator's top slot is the one
the model answered ("find": something is to be found; "choice": what the person chooses), and that slot's share of the
slot attention:

{pointing}

## Limits

- Pages of another size, labels that are no capital letters, several pages at once: not seen in training.
- Chances of 5 to 95% and amounts of 1 to 70 €; other numbers are read digit by digit, by luck.
- Its people are a few formulas. That it can be tuned to a real person's gaze is to be measured, not assumed.
- It is no general model: do not use it for anything else.

## Licence

Apache-2.0, as the library.
"""


def write_card(
    *,
    name: str,
    architecture: str,
    parameters: int,
    details: dict[str, Any],
    reading: pd.DataFrame,
    pointing: pd.DataFrame,
) -> str:
    """The card as Markdown.

    Args:
        name: of the backbone.
        architecture: whose.
        parameters: how many.
        details: what ``recipe.json`` holds.
        reading: from :func:`fixate_jax.lab.pretraining.reading.read_outs`.
        pointing: from :func:`fixate_jax.lab.pretraining.reading.pointing_game`.
    """
    recipe = details["recipe"]
    return _CARD.format(
        name=name,
        architecture=architecture,
        config=CONFIGS[recipe.get("family", "qwen3_vl")],
        parameters=parameters,
        steps=recipe["steps"],
        batch=recipe["batch"],
        looking_layers=recipe["looking_layers"],
        commit=details["commit"],
        early=min(map(int, details["fingerprints"])),
        recipe_file=RECIPE_FILE,
        dtype=details["dtype"],
        pages=details["pages"],
        reading=to_markdown(reading),
        pointing=to_markdown(pointing),
    )


def read_details(directory: Path) -> dict[str, Any]:
    """What ``recipe.json`` of a shipped backbone holds."""
    details: dict[str, Any] = json.loads((directory / RECIPE_FILE).read_text(encoding="utf-8"))
    return details
