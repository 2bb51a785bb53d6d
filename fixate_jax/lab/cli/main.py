"""The ``fixate`` command. What can be said without JAX is said at once; a subcommand loads what it needs."""

import importlib.metadata
import sys

DESCRIPTION = "Make a frozen vision-language model look at a page, and click, the way one particular person does."
COMMANDS = {
    "prepare": "Read a raw data set, draw its pages and write the session store.",
    "train": "Tune prompts, evaluate them, write tables, pictures and a report.",
    "tune-users": "Tune each user alone, many side by side, then evaluate.",
    "ablate": "Tune a preset without each of its parts, and say which earn their place.",
    "sweep": "Tune a preset at many values of some settings, measured on validation.",
    "transfer": "Train a basis on half of the people and fit the others from a few sessions.",
    "evaluate": "Evaluate a run's best prompts again: tables, pictures, report.",
    "emulate": "Show screenshots to emulated users: a table of where they look and what they click.",
    "compare": "Show versions of the same pages to emulated users: what gains or loses looks and clicks.",
    "fidelity": "Ask how good a run's emulated users are, on held-out sessions of their people.",
    "controls": "Say why tuned prompts look where they look: placebo gaze, blank and rearranged pages.",
    "export": "Write users' prompts as a bundle that others can use: safetensors, settings, model card.",
    "probe": "Draw where the model looks on one session's page, with and without the user's prompt.",
    "faithfulness": "Mask what operators point at and watch the answer: deletion, insertion, pointing game.",
    "verify": "Compare our forward pass with transformers' on your own checkpoint, layer by layer (needs torch).",
    "analyze": "Describe a data set before tuning: is gaze personal and stable, does it go with clicks.",
    "plan": "Say what a run would need: mesh, memory of each device, operations of a step.",
    "pretrain-tiny": "Train a tiny backbone that reads drawn pages, from nothing.",
    "read": "Ask a backbone questions about freshly drawn pages: what it can read, and where operators point in it.",
}
"""Name of each subcommand → the first sentence of its help."""


def overview() -> str:
    """What ``fixate --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    usage = "usage: fixate [--help] [--version] COMMAND ..."
    return "\n".join([usage, "", DESCRIPTION, "", *lines, "", "fixate COMMAND --help lists the options of a command."])


def main(arguments: list[str] | None = None) -> None:
    """Entry point, see :func:`fixate_jax.lab.cli.commands.main`."""
    words = sys.argv[1:] if arguments is None else arguments
    if words in (["--version"], ["-V"]):
        print(f"fixate-jax {importlib.metadata.version('fixate-jax')}")
    elif words in ([], ["--help"], ["-h"]):
        print(overview())
    else:
        from fixate_jax.lab.cli import commands

        commands.main(words)
