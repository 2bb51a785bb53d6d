"""What `fixate plan` prints."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from fixate_jax.backbones.sharding import AXES
from fixate_jax.config import RunConfig
from fixate_jax.tuning.plan import Plan

GB = 1e9


def describe(name: str, plan: Plan, largest: int) -> Iterator[str]:
    """A plan in words.

    Args:
        name: of the model.
        plan: the plan.
        largest: the largest micro-batch that fits.
    """
    shapes, devices = plan.shapes, math.prod(plan.mesh)
    along = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, plan.mesh, strict=True))
    yield f"model: {name}, {plan.parameters / 1e9:.3f} billion parameters"
    yield f"mesh: {along} = {devices} device{'s' if devices > 1 else ''} of {plan.device / GB:.4g} GB"
    yield (
        f"a session: {shapes.seq} positions = {shapes.prompt} soft tokens + {shapes.visual} page tokens + "
        f"{shapes.seq - shapes.prompt - shapes.visual} of the chat"
    )
    yield f"cache: {plan.cache / GB:.3g} GB of {plan.cached}, kept {PLACES[plan.tier]}"
    yield f"vision tower: {plan.page_flops / 1e12:.3g} TFLOP a page, once in a run"
    verdict = "fits" if plan.fits else "does not fit"
    yield f"{verdict}: {plan.device_bytes / GB:.3g} GB; the largest micro-batch that fits is {largest}"


PLACES = {
    "device": "on each device",
    "host": "in main memory, by each process",
    "disk": "on disk",
    "step": "nowhere: it is more than every budget, so pages are read again in each step, which is not planned",
}


def memory_table(plan: Plan) -> pd.DataFrame:
    """Gigabytes on each device, part by part."""
    held = plan.temporaries
    lines = {
        **plan.arguments,
        "activations kept for the way back": held.kept,
        "keys, values of the tapped layers": held.tapped,
        "one layer on its way back": held.working,
        "logits": held.logits,
        "weights put together (fsdp)": held.gathered,
        "pages' keys and values in order": held.page,
        **plan.idle,
    }
    shown = {name: size / GB for name, size in lines.items() if size}
    shown["all together"] = plan.device_bytes / GB
    return pd.DataFrame({"part": list(shown), "GB": list(shown.values())})


def flops_table(plan: Plan, config: RunConfig) -> pd.DataFrame:
    """Tera-operations of an optimizer step, of a session and on a device, part by part."""
    parts = {**plan.flops, "all together": sum(plan.flops.values())}
    sessions = config.train.batch * config.train.accumulate
    step = [count / 1e12 for count in parts.values()]
    return pd.DataFrame(
        {
            "part": list(parts),
            "TFLOP a step": step,
            "a session": [count / sessions for count in step],
            "a device": [count / math.prod(plan.mesh) for count in step],
        }
    )


def summary_table(plans: Mapping[str, tuple[Plan, int]]) -> pd.DataFrame:
    """Plans of several models, a line each, with the largest micro-batch that fits."""
    return pd.DataFrame([_line(name, plan, largest) for name, (plan, largest) in plans.items()])


def _line(name: str, plan: Plan, largest: int) -> dict[str, Any]:
    weights = plan.arguments["decoder weights"] + plan.idle["vision tower weights"]
    kept = plan.temporaries.kept
    return {
        "model": name,
        "10⁹ parameters": plan.parameters / 1e9,
        "positions": plan.shapes.seq,
        "weights": weights / GB,
        "activations": kept / GB,
        "other": (plan.device_bytes - kept - weights) / GB,
        "GB a device": plan.device_bytes / GB,
        "fits": "yes" if plan.fits else "no",
        "largest batch": largest,
        "TFLOP a step": sum(plan.flops.values()) / 1e12,
    }
