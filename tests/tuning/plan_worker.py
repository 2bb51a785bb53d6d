"""What `test_plan.py` runs on simulated devices: python -m tests.tuning.plan_worker MODEL BATCH D F T; prints JSON."""

import json
import sys

from fixate_jax.config import BackboneConfig
from fixate_jax.tuning.abstract import open_abstract
from fixate_jax.tuning.plan import Workload, make_plan
from tests.abstract_steps import compiled_bytes, compiled_step, settings


def main(model: str, batch: str, data: str, fsdp: str, tensor: str) -> None:
    """Ours ÷ XLA's bytes of each device: all, and temporaries; and the share of temporaries in XLA's."""
    work = Workload(page=(448, 448), slots=3)
    config = settings(batch=int(batch), mesh=(int(data), int(fsdp), int(tensor)))
    backbone = open_abstract(model, BackboneConfig())
    plan = make_plan(backbone, config, work, device=10**12, kernels=False)
    whole, temporary = compiled_bytes(compiled_step(backbone, config, work))
    ratios = {"whole": plan.step_bytes / whole, "temporary": plan.temporaries.total / temporary}
    print(json.dumps({**ratios, "temporary share": temporary / whole, "GB": whole / 1e9}))


if __name__ == "__main__":
    main(*sys.argv[1:])
