"""The loop that follows a recipe, and what comes out of it."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from fixate_jax.backbones.loading import Backbone, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.tiny.random import FAMILIES, random_tensors, tensor_shapes, tokenizer_of, write_model
from fixate_jax.backbones.weights.checkpoint import export_tensors, read_json
from fixate_jax.errors import ConfigError
from fixate_jax.lab.experiments.log import MetricsLog
from fixate_jax.lab.experiments.loop import Interrupted, stop_requests
from fixate_jax.lab.pretraining import card
from fixate_jax.lab.pretraining.packing import PackedBatch, Packer, make_packer
from fixate_jax.lab.pretraining.recipe import Recipe, sizes_of
from fixate_jax.lab.pretraining.tasks import KINDS, LEVELS, TRAITS
from fixate_jax.lab.text import csv_text
from fixate_jax.runtime.durable import write_text
from fixate_jax.runtime.progress import bar
from fixate_jax.runtime.versions import versions
from fixate_jax.tuning.checkpoint import CheckpointStore

ARCHITECTURES = {"qwen3_vl": "Qwen3-VL", "internvl": "InternVL"}
"""Their names as people write them."""


class PretrainState(NamedTuple):
    """All that changes."""

    params: nnx.State
    optimizer: Any


def local_graph(backbone: Backbone) -> nnx.GraphDef:
    """The model's structure without the attention of its vision tower, which adds nothing: its projection is zero."""
    config = replace(backbone.config, vision=replace(backbone.config.vision, attends=False))
    return nnx.split(nnx.eval_shape(lambda: backbone.family.build(config, nnx.Rngs(0))))[0]


def _looking_loss(rows: Float[Array, "layers batch branch heads keys"], batch: PackedBatch) -> Float[Array, ""]:
    """How far the attention of ``src``, a mean over heads, is from where it should look, above the least there can be.

    Cross-entropy of the shares of all attention that fall on the slots' tokens that show something to be read, so that
    attention is drawn there as well.
    """
    position = jnp.broadcast_to(
        batch.inputs.visual_position[None, :, None], (*rows.shape[:3], batch.inputs.visual_position.shape[-1])
    )
    tokens = jnp.take_along_axis(rows.mean(3), position, axis=-1)
    legible = batch.slot_matrix * (batch.word_weight.sum(-1) > 0)[:, None]
    slots = jnp.einsum("bnv,lbcv->lbcn", legible, tokens)
    wanted = jnp.broadcast_to(batch.gaze, slots.shape)
    excess = wanted * (jnp.log(jnp.maximum(wanted, 1e-9)) - jnp.log(slots + 1e-6))
    return excess.sum() / wanted.sum()


def _listening_loss(row: Float[Array, "batch branch heads keys"], batch: PackedBatch) -> Float[Array, ""]:
    """How little of the attention of ``src``, a mean over half of the heads, goes to the words that say what is asked.

    One has to know what to look for before one can look: asked of the layer below those that look.
    """
    tail = row[:, :, : row.shape[2] // 2].mean(2)[..., -batch.asked.shape[-1] :]
    share = jnp.where(batch.asked, tail, 0).sum(-1)
    there = batch.asked.any(-1)
    return -jnp.where(there, jnp.log(share + 1e-6), 0).sum() / there.sum()


def question_losses(
    params: nnx.State, graph: nnx.GraphDef, batch: PackedBatch, recipe: Recipe
) -> tuple[
    Float[Array, ""], tuple[Float[Array, "batch branch"], Float[Array, "batch branch"], dict[str, Float[Array, ""]]]
]:
    """Mean cross-entropy over questions; of each question its excess over the least there can be, and its hit.

    A hit is a most probable next token that is an answer (any one of several), at every position of it.
    """
    model = nnx.merge(graph, params)
    inputs = batch.inputs._replace(features=model.encode_pages(batch.pages))
    shown = jax.nn.log_softmax(model.decoder.logits(inputs.features[:, :, 0]), axis=-1)
    named = jnp.take_along_axis(shown, batch.word_ids, axis=-1)
    naming = -(batch.word_weight * named).sum() / batch.word_weight.sum()
    nothing = jnp.zeros((inputs.token_ids.shape[0], 0, model.config.decoder.width))
    tail = model.tail(model.prefill(inputs, nothing, False))
    logits, rows = tail.logits, tail.rows[..., -1, :]
    looking = _looking_loss(rows[-recipe.looking_layers :], batch)
    listening = _listening_loss(rows[-recipe.looking_layers - 1], batch)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    inner = jnp.take_along_axis(log_probs, batch.next_ids[..., None], axis=-1)[..., 0]
    outer = jnp.take_along_axis(log_probs[:, :, -1], batch.answer_ids, axis=-1)
    weight = batch.answer_weight
    loss = -jnp.where(batch.next_mask, inner, 0).sum(-1) - (weight * outer).sum(-1)
    entropy = -(weight * jnp.log(jnp.maximum(weight, 1e-9))).sum(-1)
    top = logits.argmax(-1)
    best = jnp.where(top[:, :, -1, None] == batch.answer_ids, weight, 0).max(-1) >= weight.max(-1) - 1e-6
    hit = best & ((top == batch.next_ids) | ~batch.next_mask).all(-1)
    total = loss.mean() + recipe.naming_weight * naming + recipe.looking_weight * (looking + listening)
    return total, (
        loss - entropy,
        hit.astype(jnp.float32),
        {"naming": naming, "looking": looking, "listening": listening},
    )


def make_optimizer(recipe: Recipe, params: nnx.State) -> optax.GradientTransformation:
    """AdamW for everything but the projection of the vision tower's attention, which stays zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup, recipe.steps, recipe.learning_rate / 100
    )

    def kind(path: Any, leaf: Any) -> str:
        name = ".".join(str(part.key) for part in path if hasattr(part, "key"))
        if name.startswith(("vision.stacks.", "vision.layers.")) and ".proj." in name:
            return "frozen"
        return "matrix" if name.endswith("kernel") else "other"

    labels = jax.tree_util.tree_map_with_path(kind, params)
    adam = dict(b1=0.9, b2=0.98)
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.multi_transform(
            {
                "frozen": optax.set_to_zero(),
                "matrix": optax.adamw(schedule, weight_decay=recipe.weight_decay, **adam),
                "other": optax.adam(schedule, **adam),
            },
            labels,
        ),
    )


_ATTENTION_OUTPUT = (".attn.proj.", ".attention.projection_layer.")
"""The projection of the vision tower's attention, in the names of either architecture."""


def first_tensors(recipe: Recipe) -> dict[str, np.ndarray]:
    """Weights of step 0: small random matrices, norms that do nothing, no bias, vision attention that adds nothing."""
    tensors, decoder = random_tensors(sizes_of(recipe), seed=recipe.seed), FAMILIES[recipe.family].DECODER
    for name, value in tensors.items():
        if name.endswith("bias") or any(part in name for part in _ATTENTION_OUTPUT):
            value[...] = 0
        elif "norm" in name.split(".")[-2] or ".lambda_" in name:
            value[...] = 1
        elif name.startswith(decoder) and name.endswith("q_proj.weight") and recipe.matched:
            key = tensors[name.replace("q_proj", "k_proj")].reshape(sizes_of(recipe).kv_heads, 1, -1)
            groups = sizes_of(recipe).heads // sizes_of(recipe).kv_heads
            value[...] = np.broadcast_to(key, (len(key), groups, key.shape[-1])).reshape(value.shape)
    _derive_traits(recipe, tensors[f"{decoder}.embed_tokens.weight"])
    return tensors


def _derive_traits(recipe: Recipe, embedding: Float[np.ndarray, "vocab width"]) -> None:
    """Let a trait's word ("horrorF") start as what it is about (" horror") and, along one direction, its level."""
    ids = tokenizer_of(sizes_of(recipe)).get_vocab()
    level = embedding[ids["Ġlook"]].copy()
    for trait in TRAITS:
        for i, letter in enumerate(LEVELS):
            embedding[ids[f"Ġ{trait}{letter}"]] = embedding[ids[f"Ġ{trait}"]] + (2 * i / (len(LEVELS) - 1) - 1) * level


def draw_batch(recipe: Recipe, packer: Packer, step: int) -> PackedBatch:
    """The batch of a step: half gambles, half carousels, the same whenever it is asked for."""
    rng = np.random.default_rng([recipe.seed, step])
    kinds = list(KINDS.values())
    return packer([kinds[i % len(kinds)](rng, width=recipe.page_width) for i in range(recipe.batch)])


def fingerprint(params: nnx.State) -> str:
    """SHA-256 of every weight."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _claim(directory: Path, recipe: Recipe) -> None:
    """Note the recipe in a run's directory, or make sure that it is the one there."""
    path, now = directory / card.RECIPE_FILE, asdict(recipe)
    if not path.exists():
        write_text(path, json.dumps(now, indent=2) + "\n")
        return
    before = read_json(path)
    differing = [f"{k}: {before.get(k)} there, {v} now" for k, v in now.items() if before.get(k) != v]
    if differing:
        raise ConfigError(f"{directory} follows another recipe ({'; '.join(differing)}); choose another --run")


class Pretraining:
    """A pretraining run on disk: ``start/`` (the model of step 0), ``checkpoints/``, ``metrics.jsonl``, ``model/``.

    Args:
        recipe: what to do.
        directory: where; a run that is there already is gone on with.

    Raises:
        ConfigError: naming the fields, when the run that is there follows another recipe.
    """

    def __init__(self, recipe: Recipe, directory: Path):
        self.recipe, self.directory = recipe, directory
        _claim(directory, recipe)
        start = write_model(directory / "start", sizes_of(recipe), first_tensors(recipe))
        # Row blocks everywhere, so that the weights' bits do not depend on which kernel a platform has.
        settings = BackboneConfig(path=str(start), tapped_layers=recipe.layers, unroll=True, attention="blocked")
        self.backbone = load_backbone(settings)
        self.packer = make_packer(self.backbone, page_width=recipe.page_width, seq=recipe.seq, tail=recipe.tail)
        self.optimizer = make_optimizer(recipe, self.backbone.params)
        self.state = PretrainState(self.backbone.params, self.optimizer.init(self.backbone.params))
        self.checkpoints = CheckpointStore(directory / "checkpoints", keep=2)
        self.fingerprints: dict[str, str] = {}
        self.step, lines = 0, 0
        restored = self.checkpoints.restore(self.state)
        if restored is not None:
            self.state, self.step, lines = restored.state, restored.step, restored.meta["lines"]
            self.fingerprints = restored.meta["fingerprints"]
        self.log = MetricsLog(directory / "metrics.jsonl", keep_lines=lines)
        self._update = jax.jit(self._make_update(), donate_argnums=0)

    def _make_update(self) -> Any:
        graph, optimizer = local_graph(self.backbone), self.optimizer

        def update(state: PretrainState, batch: PackedBatch) -> tuple[PretrainState, dict[str, Array]]:
            (loss, (excess, hit, others)), gradient = jax.value_and_grad(question_losses, has_aux=True)(
                state.params, graph, batch, self.recipe
            )
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
            parts = {"loss": loss, **others, "gradient": optax.global_norm(gradient)}
            for i, kind in enumerate(KINDS):
                rows = slice(i, None, len(KINDS))
                parts |= {f"{kind}/excess": excess[rows].mean(0), f"{kind}/hit": hit[rows].mean(0)}
            return PretrainState(optax.apply_updates(state.params, updates), optimizer_state), parts

        return update

    def _batches(self, until: int) -> Iterator[PackedBatch]:
        """Batches from the current step on, each drawn while the one before is trained on."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting = pool.submit(draw_batch, self.recipe, self.packer, self.step)
            for step in range(self.step, until):
                batch = waiting.result()
                if step + 1 < until:
                    waiting = pool.submit(draw_batch, self.recipe, self.packer, step + 1)
                yield batch

    def save(self) -> None:
        """Write a checkpoint that everything can be continued from."""
        self.log.flush()
        self.checkpoints.save(self.step, self.state, {"lines": self.log.lines, "fingerprints": self.fingerprints})

    def run(self, until: int | None = None) -> str:
        """Train up to a step (None: the recipe's last).

        Returns:
            The fingerprint of the weights there.

        Raises:
            Interrupted: after SIGINT or SIGTERM, once the state is saved.
        """
        until = self.recipe.steps if until is None else until
        with stop_requests() as asked, bar("Pretraining", until, done=self.step) as (progress, task):
            for batch in self._batches(until):
                self.state, parts = self._update(self.state, jax.device_put(batch))
                self.step += 1
                self.log.add({"step": self.step, **_flat(parts)})
                progress.update(task, completed=self.step)
                if self.step in (self.recipe.early, self.recipe.steps):
                    self.fingerprints[str(self.step)] = fingerprint(self.state.params)
                if asked:
                    self.save()
                    raise Interrupted(f"{asked[0]}: saved after step {self.step}; the same command goes on")
                if self.step % self.recipe.checkpoint_every == 0:
                    self.save()
        self.save()
        return fingerprint(self.state.params)

    def export(self, directory: Path, *, extra: dict[str, str | bytes] | None = None) -> Path:
        """Write the weights as a Hugging Face directory, rounded to bfloat16."""
        sizes = replace(sizes_of(self.recipe), dtype="bfloat16")
        tensors = export_tensors(
            self.state.params, self.backbone.family.rules(self.backbone.config), tensor_shapes(sizes)
        )
        rounded = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
        return write_model(directory, sizes, rounded, extra=extra)

    def publish(self, directory: Path, *, commit: str, pages: int = 256) -> Path:
        """Export the weights, examine them on fresh pages, and write recipe, figures and model card beside them.

        Args:
            directory: of the model; must not exist yet.
            commit: of the code that trained it.
            pages: fresh pages of each kind.
        """
        from fixate_jax.lab.pretraining import reading
        from fixate_jax.lab.report.curves import pretraining_curves

        plain = self.export(self.directory / "plain")
        settings = BackboneConfig(path=str(plain), tapped_layers=self.recipe.layers, unroll=True)
        size = {"page_width": self.recipe.page_width, "seq": self.recipe.seq}
        asked = reading.examine(load_backbone(settings), pages=pages, **size)
        read, pointing = reading.read_outs(asked), reading.pointing_game(asked)
        details = {
            "recipe": asdict(self.recipe),
            "fingerprints": self.fingerprints,
            "commit": commit,
            "dtype": "bfloat16",
            "pages": pages,
            "versions": versions(),
        }
        curves = pretraining_curves(self.directory / "curves.png", self.log.frame())
        text = card.write_card(
            name=directory.name,
            architecture=ARCHITECTURES[self.recipe.family],
            parameters=sum(int(np.prod(shape)) for shape in tensor_shapes(sizes_of(self.recipe)).values()),
            details=details,
            reading=read,
            pointing=pointing,
        )
        return self.export(
            directory,
            extra={
                "README.md": text,
                card.RECIPE_FILE: json.dumps(details, indent=2) + "\n",
                card.READING_FILE: csv_text(read),
                card.POINTING_FILE: csv_text(pointing),
                curves.name: curves.read_bytes(),
            },
        )


def _flat(parts: dict[str, Array]) -> dict[str, Array]:
    flat: dict[str, Array] = {}
    for name, value in parts.items():
        if value.ndim:
            flat |= {f"{name}{i}": value[i] for i in range(value.shape[0])}
        else:
            flat[name] = value
    return flat
