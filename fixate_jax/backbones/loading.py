"""Opening a backbone: which family, its configuration, its weights, its tokenizer and image processor."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree
from PIL import Image

from fixate_jax.backbones.family import Family, PageProcessor
from fixate_jax.backbones.internvl import model as internvl
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.backbones.processing import SessionEncoder
from fixate_jax.backbones.qwen3_vl import model as qwen3_vl
from fixate_jax.backbones.sharding import ShardingRule, shardings
from fixate_jax.backbones.tiny import random as tiny_random
from fixate_jax.backbones.weights.checkpoint import load_parameters, read_json
from fixate_jax.backbones.weights.hub import download, is_hub_id
from fixate_jax.errors import CheckpointError, FixateError
from fixate_jax.runtime.durable import sha256_all
from fixate_jax.runtime.files import require_ordinary

FAMILIES: dict[str, Family] = {qwen3_vl.MODEL_TYPE: qwen3_vl, **dict.fromkeys(internvl.MODEL_TYPES, internvl)}
"""model_type of ``config.json`` → architecture. A new one is one file (:class:`Family`) and a line here."""

SHIPPED = Path(__file__).parent / "shipped"
"""Where the backbones are that come with the library, each an ordinary model directory."""

EMBEDDED: dict[str, Callable[[Path], Path]] = {
    "tiny-qwen3-vl": lambda work: SHIPPED / "tiny-qwen3-vl",
    "tiny-internvl": lambda work: SHIPPED / "tiny-internvl",
    "tiny-random": lambda work: tiny_random.write_tiny_random(work / "tiny-random"),
}
"""Backbones that need no download, by name → function from a run's directory to the model's."""

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What a model is made of, in its directory."""
EXPERTS = ("num_experts", "num_local_experts")
"""What a mixture of experts has in the text part of its configuration."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen vision-language model: a pytree whose leaves are the weights.

    Attributes:
        config: shape and special tokens.
        graph: the model's structure; ``nnx.merge(graph, params)`` is the model.
        params: the frozen weights, an argument of every jitted function.
        family: its architecture.
        page_processor: image → what the vision tower reads.
        encoder: question → tokens.
        directory: the checkpoint.
        settings: how it was loaded.
    """

    config: Any
    graph: nnx.GraphDef
    params: PyTree
    family: Family
    page_processor: PageProcessor
    encoder: SessionEncoder
    directory: Path
    settings: BackboneConfig

    @property
    def model(self) -> Any:
        """The model with its weights. Inside jit these are constants unless the backbone is an argument."""
        return self.merge(self.params)

    @cached_property
    def checkpoint(self) -> str:
        """A checksum of the checkpoint's files: weights, configuration, tokenizer, chat template, processor."""
        digest = hashlib.sha256()
        paths = checkpoint_files(self.directory)
        for path, found in zip(paths, sha256_all(paths), strict=True):
            digest.update(path.name.encode() + bytes.fromhex(found))
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Changes when something changes that page features depend on: files, type, limits on the page, DeepStack."""
        settings = self.settings
        limits = (settings.min_pixels, settings.max_pixels, settings.max_tiles)
        about = f"{settings.dtype} {limits} {settings.deepstack} {self.checkpoint}"
        return hashlib.sha256(about.encode()).hexdigest()

    @property
    def width(self) -> int:
        """Width of the decoder's residual stream, and of a soft token."""
        return self.config.decoder.width

    @property
    def image_levels(self) -> int:
        """Feature levels of a visual token: 1 + DeepStack levels."""
        return 1 + self.config.decoder.deepstack_levels

    def page_units(self, rows: int, columns: int) -> int:
        """Units (patches, tiles) that the vision tower reads of a page with so many cells."""
        return self.family.page_units(rows, columns, self.config)

    def page_tokens(self, rows: int, columns: int) -> int:
        """Tokens of a page with so many cells, those that are no cell's included."""
        return len(self.family.image_positions(rows, columns, 0, self.config)[0])

    def merge(self, params: nnx.State) -> Any:
        """The model with the given weights (call it inside jit, with the weights as an argument)."""
        return nnx.merge(self.graph, params)


jax.tree_util.register_dataclass(
    Backbone,
    data_fields=["params"],
    meta_fields=["config", "graph", "family", "page_processor", "encoder", "directory", "settings"],
)


def resolve(path: str, *, work: Path, revision: str | None = None) -> Path:
    """The model directory that a ``backbone.path`` setting means.

    Args:
        path: a directory, the name of an embedded backbone, or a repository on the Hub, which is fetched into
            huggingface_hub's cache.
        work: folder for embedded backbones to be written to.
        revision: branch, tag or commit of the repository.

    Raises:
        CheckpointError: when there is no such directory, name or repository.
    """
    if path in EMBEDDED:
        return EMBEDDED[path](work)
    if is_hub_id(path):
        return download(path, revision)
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(
            f"backbone.path {path!r} is neither a directory nor an embedded backbone ({', '.join(EMBEDDED)}) "
            "nor a repository on the Hub (owner/name)"
        )
    return directory


def family_of(directory: Path) -> Family:
    """The module that knows a model directory's architecture.

    Raises:
        CheckpointError: naming the model type when none does, or the field that makes it a mixture of experts.
    """
    adapter = directory / "adapter_config.json"
    if adapter.exists() and not (directory / "config.json").exists():
        base = read_json(adapter).get("base_model_name_or_path", "another model")
        raise CheckpointError(
            f"{directory}: is an adapter (LoRA) of {base} and no model; merge it into that model first "
            "(merge_and_unload of peft), save the result and give its folder"
        )
    config = read_json(directory / "config.json")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{directory / 'config.json'}: quantization_config says that the weights are quantised; give the "
            "checkpoint in bfloat16 or float32 that they were made from"
        )
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{directory / 'config.json'}: model_type {model_type!r} is not supported; "
            f"supported are {', '.join(FAMILIES)} (dense models only)"
        )
    for section in ("text_config", "llm_config"):
        part = config.get(section)
        found = next((field for field in EXPERTS if isinstance(part, dict) and part.get(field)), None)
        if found:
            raise CheckpointError(
                f"{directory / 'config.json'}: {section}.{found} makes it a mixture of experts; dense models only"
            )
    return FAMILIES[model_type]


def checkpoint_files(directory: Path) -> list[Path]:
    """The files that a model is made of."""
    return sorted({path for pattern in CHECKPOINT_FILES for path in directory.glob(pattern)})


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """While active, what goes wrong is put down to a file whose values fit nothing or each other.

    Raises:
        FixateError: as raised, if it is one; else a ``CheckpointError`` that names the file.
    """
    try:
        yield
    except (FixateError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
        raise CheckpointError(
            f"{path}: is missing, damaged, or holds values that do not fit ({reason:.300}); download the model again"
        ) from error


@lru_cache(maxsize=16)
def abstract_model(family: Family, config: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """A model's structure, and its parameters as shapes and types, which nobody may change: one for each ``config``."""
    return nnx.split(nnx.eval_shape(lambda: family.build(config, nnx.Rngs(0))))


def load_backbone(
    settings: BackboneConfig | Path | str,
    *,
    work: Path = Path("."),
    mesh: Mesh | None = None,
    sharding: ShardingRule = shardings,
    **options: Any,
) -> Backbone:
    """Load a backbone: from a Hugging Face model directory or from the Hub.

    Args:
        settings: which one and how to run it; or which one alone, as :func:`resolve` takes it.
        work: folder for embedded backbones to be written to.
        mesh: devices to share the weights among (None: all of them on the default device).
        sharding: which part of them goes where.
        options: fields of `BackboneConfig`, such as ``tapped_layers=4``.

    Raises:
        CheckpointError: naming the file, field or tensor that is wrong.
        ConfigError: naming a setting that this family does not have.
    """
    if not isinstance(settings, BackboneConfig):
        settings = BackboneConfig(path=str(settings))
    settings = replace(settings, **options)
    directory = resolve(settings.path, work=work, revision=settings.revision)
    for path in checkpoint_files(directory):
        require_ordinary(path, CheckpointError)
    # What can be wrong with settings and small files is found before gigabytes are read.
    with usable(directory / "config.json"):
        family = family_of(directory)
        config = family.read_config(directory, settings)
        graph, abstract = abstract_model(family, config)
    with usable(directory / "preprocessor_config.json"):
        page_processor = family.page_processor(directory, settings, config)
        page_processor(Image.new("RGB", (64, 64)))
    with usable(directory / "tokenizer_config.json"):
        encoder = SessionEncoder(directory, family, config, instruction_role=settings.instruction_role)
    places = None if mesh is None else sharding(abstract, mesh)
    params = load_parameters(
        directory,
        abstract,
        family.rules(config),
        ignored=lambda name: family.ignored_tensor(config, name),
        shardings=places,
    )
    return Backbone(
        config=config,
        graph=graph,
        params=params,
        family=family,
        page_processor=page_processor,
        encoder=encoder,
        directory=directory,
        settings=settings,
    )
