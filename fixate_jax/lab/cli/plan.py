"""The subcommand `fixate plan`: what a run would need, before anything is downloaded or allocated."""

import math
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro

from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.text import say


@dataclass(frozen=True)
class Plan:
    """Say what a run would need: mesh, memory of each device, operations of a step. Nothing is loaded or allocated."""

    preset: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET.yaml")] = None
    """Settings to start from, e.g. configs/human_choice.yaml; flags override them, the same as for `fixate train`."""
    models: tuple[str, ...] = ()
    """Published sizes (qwen3-vl-4b, internvl3.5-8b, …; all: each of them), directories with a config.json, or embedded
    backbones (none: the settings' backbone.path)."""
    device: str = "h100-80gb"
    """The accelerator: a100-40gb, a100-80gb, h100-80gb, h200, b200, l4, l40s, rtx-4090, tpu-v4, tpu-v5e, tpu-v5p or
    tpu-v6e; any other name with `device_gb`."""
    device_gb: float | None = None
    """Memory of one device in gigabytes (None: what is known by its name)."""
    devices: int | None = None
    """How many there are (None: as many as train.mesh names)."""
    page: tuple[int, int] = (1100, 619)
    """Width and height of a page in pixels."""
    text: int = 128
    """Tokens of the chat next to page and soft prompt."""
    before: int = 16
    """How many of those stand before the page."""
    slots: int = 8
    """Slots of a page."""
    answer: int = 1
    """Tokens of the longest answer."""
    users: int = 64
    """Users."""
    pages: int = 1000
    """Different pages, whose features are cached."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def run(self) -> int:
        """Run the command; 1 if a model does not fit."""
        import jax

        from fixate_jax.lab.planning.devices import memory_of
        from fixate_jax.lab.planning.page import describe, flops_table, memory_table, summary_table
        from fixate_jax.lab.planning.plan import Workload, make_plan, require_devices
        from fixate_jax.lab.planning.published import PUBLISHED
        from fixate_jax.lab.report.tables import print_table

        sizes = {field.name: getattr(self, field.name) for field in fields(Workload)}
        work, settings = Workload(**sizes), self.settings
        device, mesh = memory_of(self.device, self.device_gb), settings.train.mesh
        require_devices(mesh, self.devices)
        # Devices that are not here are simulated: shapes take no room on them.
        with suppress(RuntimeError):  # JAX has begun to use those it found.
            jax.config.update("jax_num_cpu_devices", math.prod(mesh))
        models = PUBLISHED if self.models == ("all",) else self.models or (settings.backbone.path,)
        plans = {model: make_plan(model, settings, work, device=device) for model in models}
        if len(plans) > 1:
            title = f"{self.device}, mesh {mesh}, micro-batches of {settings.train.batch}, GB of each device"
            print_table(summary_table(plans), title=title, digits=2)
        for model, plan in plans.items() if len(plans) == 1 else ():
            for line in describe(model, plan):
                say(line)
            print_table(memory_table(plan), title="Memory of each device", digits=3)
            if plan.flops:
                print_table(flops_table(plan), title="Operations of a step", digits=3)
        return 0 if all(plan.fits for plan in plans.values()) else 1
