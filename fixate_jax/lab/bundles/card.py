"""The model card of a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fixate_jax.lab.text import code, markdown

PLACES = {"before": "before the whole input", "after_image": "right behind the page's tokens"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What prompts were made from, as only their owner knows it.

    Attributes:
        data: name of the data set.
        seed: of the tuning.
        licence: of the prompts.
        note: a sentence or more about the people and their consent; may be empty.
    """

    data: str
    seed: int
    licence: str = "not stated"
    note: str = ""


def model_card(facts: Mapping[str, Any], about: Origin) -> str:
    """Markdown for people, from what ``bundle.json`` says to programs.

    Args:
        facts: content of ``bundle.json``.
        about: data, licence, and a note on the people.
    """
    settings = facts["settings"]
    users = len(facts["users"])
    named = markdown(f"{settings['operator']['name']}, {settings['objective']['alignment']}")
    lines = [
        f"# Soft prompts of {users} {'person' if users == 1 else 'people'} on {markdown(about.data)}",
        "",
        "Each prompt makes a frozen vision-language model look at a page, and answer which item it would click, more "
        "like one person. They were tuned with FixATE (fixation-aligned tuning for user emulation), from where that "
        "person's eyes rested and what they clicked.",
        "",
        "| | |",
        "| --- | --- |",
        f"| backbone | {code(facts['backbone'])} ({facts['architecture']}, width {facts['width']}) |",
        f"| fingerprint of its files | {code(facts['fingerprint'])} |",
        f"| prompt | {facts['tokens']} soft tokens {PLACES[facts['position']]} |",
        f"| positions | {settings['backbone']['positions']} |",
        f"| operator, loss | {named} |",
        f"| seed | {facts['seed']} |",
        f"| made with | {facts['made_with']} |",
        f"| licence | {markdown(about.licence)} |",
        "",
        "## Files",
        "",
        "- `prompts.safetensors`: `prompts` (users × tokens × width, float32, in the order of `users` in "
        "`bundle.json`), `population` (tokens × width), and `basis` and `coefficients`, of which "
        "`prompts[u] = Σ_m softmax(coefficients[u])_m basis[m]`.",
        "- `bundle.json`: users, backbone and all settings.",
        *(
            [
                "- `habits`, another tensor (users × slots): each person's mean gaze by slot, which the calibration in "
                "`bundle.json` mixes in (`fixate emulate --calibrated`)."
            ]
            if "calibration" in facts
            else []
        ),
        "",
        "## Use",
        "",
        "```console",
        "$ fixate emulate PATH_OF_THIS_FOLDER my_pages --out clicks.parquet",
        "```",
        "",
        "A prompt is a sequence of input embeddings: any program that can put embeddings before a text can use it.",
        "",
        "## Limits",
        "",
        "- These are models of people, not people. Compare them with held-out behaviour (`fixate fidelity`) before you "
        "conclude anything from what they click.",
        "- They mean something to this backbone with these weights alone.",
        "- **A gaze prompt is personal data.** It is made from one person's eye movements and choices, it tells people "
        "apart, and a pseudonym does not undo that. Pass it on only as that person's consent and the law allow.",
    ]
    if about.note:
        paragraphs = (markdown(part) for part in about.note.split("\n\n"))
        lines += ["", "## About the people", "", "\n\n".join(paragraphs)]
    return "\n".join(lines) + "\n"
