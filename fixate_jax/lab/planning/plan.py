"""What a run would need: mesh, memory of each device, operations of a step. The step is compiled for shapes alone."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax

from fixate_jax.backbones.decoder.decoder_layer import DecoderConfig
from fixate_jax.backbones.sharding import make_mesh, shardings
from fixate_jax.errors import ConfigError
from fixate_jax.lab.config import RunConfig
from fixate_jax.lab.experiments.programs import make_train_step
from fixate_jax.lab.planning import flops
from fixate_jax.lab.planning.abstract import AbstractBackbone, abstract_batch, abstract_state, open_abstract
from fixate_jax.lab.planning.devices import USABLE
from fixate_jax.lab.users.memory import least_effort
from fixate_jax.pipeline.kept import choose_tier
from fixate_jax.pipeline.placement import Placement
from fixate_jax.probing.batches import Shapes

COUNTED = ("attn_lrp", "attention_gradient", "attention")
"""Operators that look at row ``src`` alone, whose operations :mod:`fixate_jax.lab.planning.flops` counts."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Sizes of what is tuned.

    Attributes:
        page: width and height of a page in pixels.
        text: tokens of the chat next to page and soft prompt: template, profile, instruction.
        before: how many of those stand before the page.
        slots: slots of a page.
        answer: tokens of the longest answer.
        users: users.
        pages: different pages, whose features are cached.
    """

    page: tuple[int, int] = (1100, 619)
    text: int = 128
    before: int = 16
    slots: int = 8
    answer: int = 1
    users: int = 64
    pages: int = 1000

    def __post_init__(self) -> None:
        for name in ("text", "slots", "answer", "users", "pages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        if not 0 <= self.before <= self.text:
            raise ConfigError(f"--before {self.before}: must lie between 0 and --text {self.text}")
        if min(self.page) < 1:
            raise ConfigError(f"--page {self.page}: width and height in pixels are needed, each at least 1")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a step needs.

    Attributes:
        parameters: numbers in the model, vision tower included.
        shapes: of a sequence.
        mesh: devices along (data, fsdp, tensor).
        batch: sessions of a micro-batch.
        parts: bytes on each device, by part.
        per_session: bytes that one more session of the micro-batch takes on each device.
        cache: bytes of what is kept of all pages.
        tier: where they are kept.
        cached: what is kept, in words.
        flops: operations of an optimizer step on all devices, by part; nothing where the operator's are not counted.
        page_flops: operations of the vision tower on one page, once in a run.
        device: bytes of a device.
    """

    parameters: int
    shapes: Shapes
    mesh: tuple[int, int, int]
    batch: int
    parts: dict[str, float]
    per_session: float
    cache: int
    tier: str
    cached: str
    flops: dict[str, int]
    page_flops: int
    device: int

    @property
    def device_bytes(self) -> float:
        """All that a device holds during a step."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether that is within what may be filled of a device."""
        return self.device_bytes <= USABLE * self.device

    @property
    def largest_batch(self) -> int:
        """Sessions of the largest micro-batch that fits, in steps of what the mesh asks for; 0 if none does."""
        share = self.mesh[0] * self.mesh[1]
        room = USABLE * self.device - (self.device_bytes - self.batch * self.per_session)
        return max(0, int(room // (share * self.per_session))) * share


def sequence_shapes(backbone: AbstractBackbone, config: RunConfig, work: Workload) -> Shapes:
    """Sizes of a session: soft prompt, chat and page tokens."""
    rows, columns = backbone.pages.grid(*work.page)
    tokens = len(backbone.family.image_positions(rows, columns, 0, backbone.config)[0])
    return Shapes(
        seq=config.prompt.tokens + work.text + tokens,
        visual=tokens,
        slots=work.slots,
        tail=work.answer,
        prompt=config.prompt.tokens,
        # Where the soft prompt follows the page, keys and values up to the page's closing token are cached.
        page=work.before + tokens + 1 if config.prompt.position == "after_image" else 0,
    )


def lower_step(backbone: AbstractBackbone, config: RunConfig, work: Workload) -> Any:
    """The training step on a mesh of the devices here, lowered for shapes and types.

    Raises:
        ConfigError: there are too few devices.
    """
    train, there = config.train, jax.device_count()
    if math.prod(train.mesh) > there:
        raise ConfigError(
            f"train.mesh = {train.mesh}: {math.prod(train.mesh)} devices are needed, and {there} are here"
        )
    shapes, mesh = sequence_shapes(backbone, config, work), make_mesh(train.mesh)
    state = abstract_state(config, users=work.users, width=backbone.config.decoder.width)
    batch = abstract_batch(shapes, backbone.config, rows=train.batch, accumulate=train.accumulate)
    placement = Placement(mesh, shardings(backbone.params, mesh)).with_state(state) if mesh.size > 1 else None
    step = make_train_step(backbone.graph, config, users=work.users, steps=100, placement=placement)
    return step.lower(state, backbone.params, batch)


def make_plan(model: str, config: RunConfig, work: Workload, *, device: int) -> Plan:
    """Compile the step for two sizes of the micro-batch, and read off what it takes.

    A CPU's compiler makes float32 copies of bfloat16 arrays, which an accelerator does not. There a bfloat16 step is
    compiled in float32, and what it holds next to its arguments counts half.

    Args:
        model: see :func:`fixate_jax.lab.planning.abstract.open_abstract`.
        config: the run's settings.
        work: sizes of pages and texts.
        device: bytes of a device.

    Raises:
        ConfigError: there are fewer devices than the mesh asks for.
        CheckpointError: there is no such model.
    """
    backbone = open_abstract(model, config.backbone)
    halved = config.backbone.dtype == "bfloat16" and jax.default_backend() == "cpu"
    compiled = open_abstract(model, replace(config.backbone, dtype="float32")) if halved else backbone
    decoder, shapes, batch = backbone.config.decoder, sequence_shapes(backbone, config, work), config.train.batch

    def temporaries(rows: int) -> float:
        train = replace(config.train, batch=rows, eval_batch=rows)
        found = least_effort(lower_step(compiled, replace(config, train=train), work)).memory_analysis()
        return found.temp_size_in_bytes / (2 if halved else 1)

    held, mesh = temporaries(batch), make_mesh(config.train.mesh)
    weights = placed_bytes(backbone.params, shardings(backbone.params, mesh))
    state = abstract_state(config, users=work.users, width=decoder.width)
    rows = abstract_batch(shapes, backbone.config, rows=batch, accumulate=config.train.accumulate)
    inputs = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(rows)) / mesh.size
    inputs *= config.train.mesh[2]  # Devices along the last axis share rows.
    page = page_bytes(decoder, shapes)
    tier = choose_tier(work.pages * page, config.cache)
    parts: dict[str, float] = {
        "weights": float(weights),
        "prompt and optimizer": float(placed_bytes(state, Placement(mesh, None).with_state(state).state)),
        "batch": inputs,
        "temporaries": held,
        "cache of pages": float(work.pages * page if tier == "device" else 0),
    }
    sessions = batch * config.train.accumulate
    units = backbone.family.page_units(*backbone.pages.grid(*work.page), backbone.config)
    return Plan(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backbone.params)),
        shapes=shapes,
        mesh=config.train.mesh,
        batch=batch,
        parts=parts,
        # What a step takes grows evenly with its batch.
        per_session=(temporaries(2 * batch) - held + inputs) / batch,
        cache=work.pages * page,
        tier=tier,
        cached=f"{'keys and values' if shapes.page else 'features'} of {work.pages} pages",
        flops={name: sessions * part.total for name, part in train_parts(decoder, config, shapes).items()},
        page_flops=flops.encode_page(backbone.config, units=units).total,
        device=device,
    )


def placed_bytes(tree: Any, places: Any) -> int:
    """Bytes on each device of a tree of shapes and types, given a sharding for each."""
    sizes = jax.tree.map(lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize, tree, places)
    return sum(jax.tree.leaves(sizes))


def page_bytes(decoder: DecoderConfig, shapes: Shapes) -> int:
    """What is cached of a page: its tokens' features, or keys and values of its positions in every layer."""
    if shapes.page:
        return 2 * decoder.layers * shapes.page * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize
    return shapes.visual * (1 + decoder.deepstack_levels) * decoder.width * decoder.dtype.itemsize


def train_parts(decoder: DecoderConfig, config: RunConfig, shapes: Shapes) -> dict[str, flops.Flops]:
    """Operations of one session; nothing where the operator's are not counted."""
    aligned = config.objective.alignment != "none"
    if aligned and config.operator.name not in COUNTED:
        return {}
    second = aligned and config.operator.name != "attention"
    return flops.train_parts(decoder, seq=shapes.seq, answer=shapes.tail, aligned=second, cached=shapes.page)


def require_devices(mesh: tuple[int, int, int], devices: int | None) -> None:
    """Check that a mesh takes all devices of a job.

    Raises:
        ConfigError: naming both numbers.
    """
    if devices is not None and math.prod(mesh) != devices:
        raise ConfigError(
            f"train.mesh = {mesh}: names {math.prod(mesh)} devices, and there are {devices}; all of them have to be "
            f"used, as in --train.mesh 1 {devices} 1"
        )
