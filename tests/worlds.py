"""A tiny random backbone and made-up sessions, for tests of everything above the backbone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from fixate_jax.backbones import Backbone, load_backbone
from fixate_jax.backbones.options import BackboneConfig
from fixate_jax.data.session import StoredSession
from fixate_jax.lab.config import PromptConfig, RunConfig
from fixate_jax.pipeline.features import FeatureStore
from fixate_jax.pipeline.kept import CacheConfig
from fixate_jax.probing.batches import SessionData
from fixate_jax.prompts import PromptParams, init_prompt

USERS = ("u0", "u1", "u2")


def letters(n: int) -> tuple[str, ...]:
    return tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:n])


def numbers(n: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(n))


def made_up_session(
    index: int, *, slots: int, size: tuple[int, int], labels: Callable[[int], tuple[str, ...]], seed: int = 0
) -> tuple[StoredSession, Image.Image]:
    """A session on a page of noise whose slots are a grid of boxes with gaps."""
    rng = np.random.default_rng([seed, index])
    columns = int(np.ceil(np.sqrt(slots)))
    rows = -(-slots // columns)
    corner = np.array([[i % columns / columns, i // columns / rows] for i in range(slots)])
    margin = 0.05 / columns
    boxes = np.concatenate([corner + margin, corner + [1 / columns, 1 / rows] - np.array([margin, margin])], axis=1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    session = StoredSession(
        session_id=f"s{index}",
        user_id=USERS[index % len(USERS)],
        page_id=f"page{index}",
        boxes=boxes,
        labels=labels(slots),
        dwell_ms={"fixation": rng.gamma(1.0, 500.0, slots) + 1},
        click=int(rng.integers(slots)),
        profile="likes films" if index % 2 else "",
        split=("train", "validation", "test")[index % 3],
    )
    return session, image


class World:
    """A backbone, sessions, and a prompt that does something."""

    def __init__(
        self,
        directory: Path,
        *,
        sizes: Sequence[tuple[int, int, int]] = ((3, 320, 192), (6, 192, 160), (4, 320, 192), (5, 256, 256)),
        labels: Callable[[int], tuple[str, ...]] = letters,
        config: RunConfig | None = None,
        max_lengths: int = 1,
        seed: int = 0,
        cache: CacheConfig | None = None,
    ):
        self.config = config or RunConfig(
            backbone=BackboneConfig(tapped_layers=2, attention_block=32), prompt=PromptConfig(basis=3, tokens=4)
        )
        self.backbone: Backbone = load_backbone(self.config.backbone, work=directory)
        made = [made_up_session(i, slots=n, size=(w, h), labels=labels, seed=seed) for i, (n, w, h) in enumerate(sizes)]
        self.sessions = [session for session, _ in made]
        self.images = {session.page_id: image for session, image in made}
        self.features = FeatureStore(
            self.backbone,
            self.images.__getitem__,
            list(self.images),
            cache or CacheConfig(),
            directory=directory / "features",
            batch=2,
        )
        encoded = []
        for s in self.sessions:
            rows, columns = self.features.grids[s.page_id]
            encoded.append(self.backbone.encoder(profile=s.profile, labels=s.labels, rows=rows, columns=columns))
        self.data = SessionData(
            self.sessions,
            encoded,
            {u: i for i, u in enumerate(USERS)},
            features=self.features,
            prompt_tokens=self.config.prompt.tokens,
            position=self.config.prompt.position,
            signal="fixation",
            max_lengths=max_lengths,
        )

    def prompt(self, seed: int = 0) -> PromptParams:
        """A prompt of the size of real embeddings, with users that differ."""
        key, other = jax.random.split(jax.random.key(seed))
        config = replace(self.config.prompt, init_scale=0.5)
        prompt = init_prompt(key, **config.sizes, users=len(USERS), width=self.backbone.width)
        return prompt._replace(coefficients=jax.random.normal(other, prompt.coefficients.shape))

    def batch(self, indices: Sequence[int] | None = None):
        """Sessions as a batch on the device."""
        indices = range(len(self.sessions)) if indices is None else indices
        return jax.device_put(self.data.batch(list(indices)))
