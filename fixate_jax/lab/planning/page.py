"""What `fixate plan` prints."""

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from fixate_jax.backbones.sharding import AXES
from fixate_jax.lab.planning.plan import Plan

GB = 1e9
PLACES = {
    "device": "on each device",
    "host": "in main memory, by each process",
    "disk": "on disk",
    "step": "nowhere: it exceeds every budget, so each step reads its pages again, which is not planned",
}


def describe(name: str, plan: Plan) -> Iterator[str]:
    """The plan of a model in words."""
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
    yield f"{verdict}: {plan.device_bytes / GB:.3g} GB; the largest micro-batch that fits is {plan.largest_batch}"


def memory_table(plan: Plan) -> pd.DataFrame:
    """Gigabytes on each device, part by part."""
    parts = {**plan.parts, "total": plan.device_bytes}
    return pd.DataFrame([{"part": name, "GB": size / GB} for name, size in parts.items() if size])


def flops_table(plan: Plan) -> pd.DataFrame:
    """Tera-operations of an optimizer step, in all and on a device, part by part."""
    parts, devices = {**plan.flops, "total": sum(plan.flops.values())}, math.prod(plan.mesh)
    return pd.DataFrame(
        [{"part": n, "TFLOP a step": c / 1e12, "a device": c / 1e12 / devices} for n, c in parts.items()]
    )


def summary_table(plans: Mapping[str, Plan]) -> pd.DataFrame:
    """Plans of several models, a line each."""
    return pd.DataFrame(
        [
            {
                "model": name,
                "10⁹ parameters": plan.parameters / 1e9,
                "positions": plan.shapes.seq,
                "weights": plan.parts["weights"] / GB,
                "temporaries": plan.parts["temporaries"] / GB,
                "GB a device": plan.device_bytes / GB,
                "fits": "yes" if plan.fits else "no",
                "largest batch": plan.largest_batch,
                "TFLOP a step": sum(plan.flops.values()) / 1e12 or math.nan,
            }
            for name, plan in plans.items()
        ]
    )
