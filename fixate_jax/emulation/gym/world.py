"""What happens when a recommender fills part of a carousel page and an emulated user clicks: no gymnasium in here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import ImageDraw

import fixate_jax
from fixate_jax.data.carousel import COLUMNS, GENRES, ROWS, SHADES, Poster, draw_carousels, poster_boxes
from fixate_jax.data.options import COLDEST, NARROWEST_PAGE
from fixate_jax.data.readers.synthetic.carousel import LABELS, PROFILE
from fixate_jax.emulation.emulator import UserEmulator
from fixate_jax.emulation.pages import Page
from fixate_jax.emulation.versions import item_name
from fixate_jax.emulation.visits import Visits
from fixate_jax.errors import ConfigError

PLACES = ROWS * COLUMNS
"""Slots of a page."""
ITEMS = tuple(Poster(genre, shade) for shade in range(SHADES) for genre in GENRES)
"""Everything that can be shown; the first ten have all genres, and so have the next ten."""
Reward = Literal["click", "value"]
NOTHING = -1
"""Stands for an item where there is none yet."""


@runtime_checkable
class Emulator(Protocol):
    """Who visits pages: a :class:`UserEmulator`, or anything else with users and visits."""

    @property
    def users(self) -> tuple[str, ...]:
        """Their names."""

    def visit(self, users: Sequence[str], pages: Sequence[Page]) -> Visits:
        """Show one page to each user."""


@dataclass(kw_only=True)
class Episode:
    """Where one user is in a row of pages; changed by each visit.

    Attributes:
        rng: draws the user, the house's items and the clicks.
        user: row of the user among the emulator's.
        recent: the items clicked last, the latest at the end, ``NOTHING`` before the first.
        visits: pages seen.
        shown: items on the last page, None before the first.
        slot: clicked on it.
    """

    rng: np.random.Generator
    user: int
    recent: Int[np.ndarray, " history"]
    visits: int = 0
    shown: tuple[int, ...] | None = None
    slot: int | None = None


class Outcome(NamedTuple):
    """What came of one visit.

    Attributes:
        reward: of the recommender.
        over: whether this was the episode's last page.
        info: ``user``; ``shown``, the item in each slot; ``slot`` and ``item`` clicked; ``probabilities`` of a click
            on each slot; ``attention`` on each.
    """

    reward: float
    over: bool
    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class CarouselWorld:
    """Pages of 3 × 5 film posters, some slots filled by a recommender, the others by the house.

    The house takes what the recommender did not, at random and without repeats. Which items it takes, and how lucky a
    click is, depends on the episode's random numbers alone and not on what the recommender did before: two recommenders
    with one seed meet the same house, so differences between them are paired.

    Attributes:
        emulator: who clicks.
        items: size of the catalogue, the first so many of ``ITEMS``.
        slots: which the recommender fills, in the order of its action; 0 to 14 in reading order.
        steps: pages in an episode.
        reward: "click" is 1 if the user clicks one of the recommender's slots, else 0. "value" is what the clicked item
            is worth to the user, whoever put it there.
        values: what each item is worth to each user, rows in the order of the emulator's; for reward "value" only.
        features: of each user, for observations to tell; None leaves them out.
        history: how many recent clicks observations tell.
        page_width: of pages in pixels; `open_world` takes the width that the prompts were tuned at.
        temperature: of clicks, see :meth:`fixate_jax.emulation.Visits.probabilities`.
    """

    emulator: Emulator
    items: int = len(ITEMS)
    slots: tuple[int, ...] = tuple(range(COLUMNS))
    steps: int = 20
    reward: Reward = "click"
    values: Float[np.ndarray, "users items"] | None = None
    features: Float[np.ndarray, "users features"] | None = None
    history: int = 5
    page_width: int = 320
    temperature: float = 1.0

    def __post_init__(self) -> None:
        users, own = len(self.emulator.users), self.slots
        _require(PLACES <= self.items <= len(ITEMS), "items", self.items, f"choose {PLACES} to {len(ITEMS)}")
        proper = own and set(own) <= set(range(PLACES)) and len(set(own)) == len(own)
        _require(proper, "slots", own, f"name at least one of 0 to {PLACES - 1}, none twice")
        _require(self.steps >= 2, "steps", self.steps, "an episode has at least 2 pages")
        everything = self.reward == "click" and len(own) == PLACES
        _require(not everything, "reward", self.reward, "would always be 1; leave slots to the house, or take value")
        _require(self.history >= 1, "history", self.history, "at least 1 is needed")
        wide = self.page_width >= NARROWEST_PAGE
        _require(wide, "page_width", self.page_width, f"at least {NARROWEST_PAGE} pixels are needed")
        finite = self.temperature >= COLDEST and math.isfinite(self.temperature)
        _require(finite, "temperature", self.temperature, f"must be at least {COLDEST}, and finite")
        if (self.values is not None) != (self.reward == "value"):
            needs = "needs them" if self.reward == "value" else "reads none"
            raise ConfigError(f"values: reward={self.reward!r} {needs}")
        if self.values is not None and self.values.shape != (users, self.items):
            raise ConfigError(f"values: shape {self.values.shape} for {users} users and {self.items} items")
        if self.features is not None and len(self.features) != users:
            raise ConfigError(f"features: {len(self.features)} rows for {users} users; give one for each")
        for name in ("values", "features"):
            table = getattr(self, name)
            if table is not None and not np.isfinite(table).all():
                raise ConfigError(f"{name}: not all are finite numbers")

    @cached_property
    def item_names(self) -> tuple[str, ...]:
        """What the items are called in pages."""
        return tuple(item_name(poster) for poster in ITEMS[: self.items])

    @cached_property
    def genres(self) -> Float[np.ndarray, "items genres"]:
        """Genre of each item, as ones and zeros in the order of ``GENRES``."""
        return np.eye(len(GENRES))[[list(GENRES).index(poster.genre) for poster in ITEMS[: self.items]]]

    def begin(self, rng: np.random.Generator, user: str | None = None) -> Episode:
        """A user who has seen nothing yet.

        Args:
            rng: of the whole episode.
            user: who (None: drawn).

        Raises:
            ConfigError: the user is not known.
        """
        drawn = int(rng.integers(len(self.emulator.users)))
        if user is not None:
            if user not in self.emulator.users:
                raise ConfigError(f"user {user!r}: choose among {', '.join(self.emulator.users[:12])}")
            drawn = self.emulator.users.index(user)
        return Episode(rng=rng, user=drawn, recent=np.full(self.history, NOTHING, np.int64))

    def shown(self, action: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """The items that an action really puts on the page.

        A page has no item twice: one that the action names again gives way to the next number that is not taken,
        counting on from 0 after the last.

        Raises:
            ConfigError: the action has too few or too many items, or one that is not in the catalogue.
        """
        wanted = np.asarray(action)
        if wanted.shape != (len(self.slots),) or not np.issubdtype(wanted.dtype, np.integer):
            raise ConfigError(f"action: {wanted.dtype} of shape {wanted.shape}; give {len(self.slots)} item numbers")
        if not ((wanted >= 0) & (wanted < self.items)).all():
            raise ConfigError(f"action: {wanted.tolist()}; items are 0 to {self.items - 1}")
        taken: list[int] = []
        for item in wanted.tolist():
            while item in taken:
                item = (item + 1) % self.items
            taken.append(item)
        return tuple(taken)

    def visit(self, episodes: Sequence[Episode], actions: Sequence[Any] | np.ndarray) -> list[Outcome]:
        """Show each episode's user a page: one call of the emulator for all of them.

        Args:
            episodes: carried on by this visit.
            actions: items for the recommender's slots, for each episode.

        Raises:
            ConfigError: an action is none.
        """
        layouts = [
            self._layout(self.shown(action), episode.rng) for episode, action in zip(episodes, actions, strict=True)
        ]
        users = [self.emulator.users[episode.user] for episode in episodes]
        visits = self.emulator.visit(users, [self.page(layout) for layout in layouts])
        probabilities = visits.probabilities(self.temperature).astype(np.float64)
        outcomes = []
        for row, (episode, layout) in enumerate(zip(episodes, layouts, strict=True)):
            # The last slot ends at 1, whatever rounding says.
            slot = int((np.cumsum(probabilities[row])[:-1] <= episode.rng.random()).sum())
            episode.shown, episode.slot, episode.visits = layout, slot, episode.visits + 1
            episode.recent = np.append(episode.recent[1:], layout[slot])
            info = {
                "user": users[row],
                "shown": np.array(layout),
                "slot": slot,
                "item": layout[slot],
                "probabilities": probabilities[row],
                "attention": visits.attention[row].astype(np.float64),
            }
            outcomes.append(Outcome(self._reward(episode, slot), episode.visits >= self.steps, info))
        return outcomes

    def observe(self, episode: Episode) -> dict[str, Any]:
        """What a recommender knows before it fills the next page."""
        seen: dict[str, Any] = {"user": episode.user, "recent": episode.recent.copy()}
        if self.features is not None:
            seen["profile"] = self.features[episode.user].astype(np.float32)
        return seen

    def page(self, layout: Sequence[int]) -> Page:
        """The page that shows some items, one in each slot."""
        return Page(
            relative=True,
            labelled=True,
            name="-".join(map(str, layout)),
            image=draw_carousels([ITEMS[item] for item in layout], LABELS, width=self.page_width),
            boxes=poster_boxes(),
            labels=LABELS,
            items=tuple(self.item_names[item] for item in layout),
            profile=PROFILE,
        )

    def picture(self, episode: Episode) -> UInt8[np.ndarray, "height width 3"]:
        """The page seen last with a frame around what was clicked; an empty one before the first."""
        posters = [None] * PLACES if episode.shown is None else [ITEMS[item] for item in episode.shown]
        image = draw_carousels(posters, LABELS, width=self.page_width)
        if episode.slot is not None:
            corners = (poster_boxes()[episode.slot] * np.tile(image.size, 2)).tolist()
            ImageDraw.Draw(image).rectangle(corners, outline=(255, 255, 255), width=max(2, self.page_width // 100))
        return np.asarray(image)

    def _layout(self, own: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
        """Item in each slot. The house's order does not depend on the action, so that neither does any later draw."""
        house = iter([item for item in rng.permutation(self.items).tolist() if item not in own])
        mine = dict(zip(self.slots, own, strict=True))
        return tuple(mine[place] if place in mine else next(house) for place in range(PLACES))

    def _reward(self, episode: Episode, slot: int) -> float:
        if self.values is None:
            return float(slot in self.slots)
        assert episode.shown is not None
        return float(self.values[episode.user, episode.shown[slot]])


def open_world(emulator: Emulator | Path | str, *, envs: int, **options: Any) -> CarouselWorld:
    """A world with emulated users that answer so many visits in one batch.

    Args:
        emulator: users, or where a run or a bundle has them, or the name of some that come with the library.
        envs: visits in a step.
        options: fields of :class:`CarouselWorld`.

    Raises:
        ConfigError: an option is unknown or has a bad value.
        FixateError: what opening the emulator raises.
    """
    known = [field.name for field in fields(CarouselWorld) if field.name != "emulator"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such option; there are {', '.join(known)}")
    users = fixate_jax.open_emulator(emulator) if isinstance(emulator, str | Path) else emulator
    if isinstance(users, UserEmulator):
        # A batch that is filled up would be work for nothing, at every step.
        parts = math.prod(users.mesh_shape[:2])
        users = users.with_batch(-(-envs // parts) * parts)
        options.setdefault("page_width", users.page_width)
    reward = options.get("reward", "click")
    _require(reward in get_args(Reward), "reward", reward, "choose click or value")
    if "slots" in options:
        options["slots"] = tuple(options["slots"])
    return CarouselWorld(emulator=users, **options)


def _require(holds: object, name: str, value: object, advice: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value!r}: {advice}")
