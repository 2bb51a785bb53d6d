"""What a run would need: mesh, memory of each device, operations of a step; from shapes alone, nothing is allocated."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh

from fixate_jax import flops
from fixate_jax.backbones.decoder_layer import DecoderConfig
from fixate_jax.backbones.flash import LANES
from fixate_jax.backbones.sharding import AXES, shardings
from fixate_jax.config import RunConfig
from fixate_jax.devices import USABLE
from fixate_jax.errors import ConfigError
from fixate_jax.memory import Mesh, StepShape, Temporaries, temporaries
from fixate_jax.probing.batches import Shapes
from fixate_jax.tuning.abstract import AbstractBackbone, abstract_batch, abstract_state
from fixate_jax.tuning.features import choose_tier
from fixate_jax.tuning.placement import Placement

OPERATORS = ("attn_lrp", "attention_gradient", "attention")
"""Operators that look at row ``src`` alone, whose step is prefill and tail."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is tuned, as far as sizes go.

    Attributes:
        page: width and height of a page in pixels.
        text: tokens of the chat beside page and soft prompt: template, profile, instruction.
        before: how many of those stand before the page.
        slots: slots of a page.
        answer: tokens of the longest answer.
        users: people.
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
        arguments: bytes of the step's arguments on each device, by part.
        temporaries: bytes that it holds beside them.
        idle: bytes on each device that no step touches, by part.
        cache: bytes of what is kept of all pages.
        tier: where they are kept.
        cached: what is kept, in words.
        flops: operations of an optimizer step on all devices, by part.
        page_flops: operations of the vision tower on one page, once in a run.
        device: bytes of a device.
    """

    parameters: int
    shapes: Shapes
    mesh: Mesh
    arguments: dict[str, int]
    temporaries: Temporaries
    idle: dict[str, int]
    cache: int
    tier: str
    cached: str
    flops: dict[str, int]
    page_flops: int
    device: int

    @property
    def step_bytes(self) -> int:
        """Arguments and temporaries of the compiled step on each device, what XLA's memory analysis counts."""
        return sum(self.arguments.values()) + self.temporaries.total

    @property
    def device_bytes(self) -> int:
        """All that a device holds during a step."""
        return self.step_bytes + sum(self.idle.values())

    @property
    def fits(self) -> bool:
        """Whether that is within what may be filled of a device."""
        return self.device_bytes <= USABLE * self.device


def part_bytes(params: nnx.State, places: nnx.State) -> dict[str, int]:
    """Bytes of each part of a model on each device.

    Args:
        params: weights as shapes and types.
        places: their shardings.
    """
    found: dict[str, int] = {}
    for (path, leaf), (_, place) in zip(nnx.to_flat_state(params), nnx.to_flat_state(places), strict=True):
        found[str(path[0])] = found.get(str(path[0]), 0) + placed_bytes(leaf, place)
    return found


def placed_bytes(tree: Any, places: Any) -> int:
    """Bytes on each device of a tree of shapes and types, given a sharding for each."""
    sizes = jax.tree.map(lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize, tree, places)
    return sum(jax.tree.leaves(sizes))


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes and types."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


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


def make_plan(
    backbone: AbstractBackbone,
    config: RunConfig,
    work: Workload,
    *,
    device: int,
    kernels: bool = True,
) -> Plan:
    """Count everything.

    Args:
        backbone: the model, without weights.
        config: the run's settings.
        work: sizes of pages and texts.
        device: bytes of a device.
        kernels: whether the platform has a flash kernel, which holds no scores of attention (GPUs and TPUs do).

    Raises:
        ConfigError: when the operator's step is not planned.
    """
    _check(config)
    mesh, decoder, shapes = config.train.mesh, backbone.config.decoder, sequence_shapes(backbone, config, work)
    rows, sessions = config.train.batch // (mesh[0] * mesh[1]), config.train.batch * config.train.accumulate
    # A mesh without devices is enough for shapes.
    grid: Any = AbstractMesh(mesh, AXES)
    weights = part_bytes(backbone.params, shardings(backbone.params, grid))
    state = abstract_state(config, users=work.users, width=decoder.width)
    batch = abstract_batch(shapes, backbone.config, rows=rows, accumulate=config.train.accumulate)
    page = page_bytes(decoder, shapes)
    cache = work.pages * page
    tier = choose_tier(cache, config.cache)
    parts = train_parts(decoder, config, shapes)
    return Plan(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backbone.params)),
        shapes=shapes,
        mesh=mesh,
        arguments={
            "decoder weights": weights["decoder"],
            "prompt and optimizer": placed_bytes(state, Placement(grid, None).with_state(state).state),
            "batch": tree_bytes(batch),
        },
        temporaries=temporaries(decoder, step_shape(decoder, config, shapes, kernels=kernels)),
        idle={
            "vision tower weights": sum(size for name, size in weights.items() if name != "decoder"),
            "cache of pages": cache if tier == "device" else 0,
        },
        cache=cache,
        tier=tier,
        cached=f"{'keys and values' if shapes.page else 'features'} of {work.pages} pages",
        flops={name: sessions * part.total for name, part in parts.items()},
        page_flops=flops.encode_page(backbone.config, units=_units(backbone, work)).total,
        device=device,
    )


def page_bytes(decoder: DecoderConfig, shapes: Shapes) -> int:
    """What is cached of a page: its tokens' features, or keys and values of its positions in every layer."""
    if shapes.page:
        return 2 * decoder.layers * shapes.page * decoder.kv_heads * decoder.head_dim * decoder.dtype.itemsize
    return shapes.visual * (1 + decoder.deepstack_levels) * decoder.width * decoder.dtype.itemsize


def step_shape(decoder: DecoderConfig, config: RunConfig, shapes: Shapes, *, kernels: bool) -> StepShape:
    """One device's share of a micro-batch."""
    data, fsdp, tensor = config.train.mesh
    takes = shapes.seq >= LANES and decoder.dtype == jnp.bfloat16 and decoder.head_dim <= LANES and not shapes.page
    return StepShape(
        rows=config.train.batch // (data * fsdp),
        seq=shapes.seq,
        tail=shapes.tail * _branches(config, shapes),
        cached=shapes.page,
        flash=kernels and takes and config.backbone.attention == "auto",
        tensor=tensor,
        fsdp=fsdp,
    )


def _branches(config: RunConfig, shapes: Shapes) -> int:
    """Tails of a session in training: the clicked label's, or all where the model's own answer is asked for."""
    own = config.objective.alignment != "none" and config.objective.relevance == "own"
    return shapes.slots if own and shapes.tail > 1 else 1


def _units(backbone: AbstractBackbone, work: Workload) -> int:
    return backbone.family.page_units(*backbone.pages.grid(*work.page), backbone.config)


def train_parts(decoder: DecoderConfig, config: RunConfig, shapes: Shapes) -> dict[str, flops.Flops]:
    """Operations of one session."""
    second = config.operator.name != "attention" and config.objective.alignment != "none"
    return flops.train_parts(decoder, seq=shapes.seq, answer=shapes.tail, aligned=second, cached=shapes.page)


def _check(config: RunConfig) -> None:
    if config.operator.name not in OPERATORS and config.objective.alignment != "none":
        raise ConfigError(
            f"operator.name = {config.operator.name!r}: its step is not planned; planned are {', '.join(OPERATORS)}"
        )


def require_devices(mesh: Mesh, devices: int | None) -> None:
    """Check that a mesh takes all devices of a job.

    Raises:
        ConfigError: naming both numbers.
    """
    if devices is not None and math.prod(mesh) != devices:
        raise ConfigError(
            f"train.mesh = {mesh}: names {math.prod(mesh)} devices, and there are {devices}; all of them have to be "
            f"used, as in --train.mesh 1 {devices} 1"
        )


def largest_batch(backbone: AbstractBackbone, config: RunConfig, work: Workload, **how: Any) -> int:
    """Sessions of the largest micro-batch that fits, in steps of what the mesh asks for; 0 if none does.

    Args:
        backbone: the model, without weights.
        config: the run's settings; their own batch does not count.
        work: sizes of pages and texts.
        how: `device` and `kernels`, as in :func:`make_plan`.
    """
    share = config.train.mesh[0] * config.train.mesh[1]

    def held(count: int) -> int:
        train = replace(config.train, batch=count * share, eval_batch=share)
        return make_plan(backbone, replace(config, train=train), work, **how).device_bytes

    # Whatever depends on the batch grows evenly with it.
    one, two = held(1), held(2)
    room = USABLE * how["device"] - (2 * one - two)
    return max(0, int(room // (two - one))) * share
