"""The screens that synthetic users see: a small catalogue.

The built-in titles are put together from the words below and belong to no film.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, MOVIES
from fixate_jax.data.readers.recgaze.screens import Carousel, Movie, Screen
from tests.data.synthetic.recgaze.people import GENRES

TASKS = 40
"""Screens of the study; the practice screen, 0, is not among them."""
OTHER_GENRES = ("Adventure", "Biography", "Family", "History", "Music", "Mystery", "War", "Western")
"""Genres that films have beside those of the carousels."""
SECOND_GENRE, THIRD_GENRE = 0.85, 0.5
"""Shares of the built-in films with a second genre, and of those with a third."""
YEARS = (1968, 2024)
"""First and last year of a built-in film."""
CAROUSEL_WEIGHT = 0.6
"""How much of a film's genre appeal is its carousel's, the rest being the mean over its own genres."""

NOUNS = {
    "Action": "Convoy Ambush Bridge Pursuit Harpoon Squadron Fuse Outpost Ransom Vanguard Detonator Rampart",
    "Animation": "Teapot Snail Lantern Kite Marmot Puddle Button Balloon Otter Pumpkin Snowflake Cricket",
    "Comedy": "Landlord Wedding Sandwich Roommate Karaoke Mustache Picnic Neighbour Recipe Parade Casserole Elevator",
    "Crime": "Ledger Alibi Safehouse Smuggler Verdict Informer Vault Docklands Forgery Syndicate Witness Getaway",
    "Drama": "Orchard Letter Harvest Daughter Piano Winter Ferry Inheritance Schoolhouse Silence Confession Homecoming",
    "Fantasy": "Sorcerer Amulet Griffin Citadel Prophecy Thornwood Dragonfly Oracle Runestone Kingdom Wyvern Spellbook",
    "Horror": "Cellar Crypt Whisper Scarecrow Asylum Séance Hollow Coffin Swamp Nightmare Mirror Gravedigger",
    "Romance": "Valentine Postcard Vineyard Kiss Ballroom Summer Promise Serenade Lighthouse Proposal Violin Riverside",
    "Sci-Fi": "Orbit Android Nebula Airlock Satellite Clone Terminal Asteroid Colony Signal Reactor Exoplanet",
    "Thriller": "Hostage Stranger Passenger Countdown Decoy Wiretap Blackout Courier Sniper Dossier Hideout Impostor",
}
ADJECTIVES = (
    "Amber Broken Crimson Distant Eleventh Forgotten Golden Hidden Idle Jagged Knotted Lonesome Midnight Northern Open "
    "Paper Quiet Restless Silver Tangled Unlikely Velvet Wandering Yellow Burning Crooked Double Endless Frozen Gentle"
)
PLACES = "Antwerp Bergen Cusco Dunedin Essaouira Funchal Galway Hanoi Izmir Jaipur Kraków Leith"

"""Words, separated by blanks."""

_CATALOGUE = 20240501
"""Seed of the built-in catalogue, the same for everybody's seed."""


def built_in(tasks: Sequence[int]) -> dict[int, Screen]:
    """The built-in screens of some tasks; the same whichever tasks are asked for."""
    rng = np.random.default_rng(_CATALOGUE)
    titles = {genre: rng.permutation(_titles(genre)).tolist() for genre in GENRES}
    return {task: _built_in(task, titles) for task in tasks}


def _titles(genre: str) -> list[str]:
    """More than fifteen titles for each of the forty screens, none twice."""
    nouns, adjectives, places = NOUNS[genre].split(), ADJECTIVES.split(), PLACES.split()
    described = [f"{adjective} {noun}" for adjective in adjectives for noun in nouns]
    somewhere = [f"{noun} of {place}" for place in places for noun in nouns]
    return [f"The {name}" for name in described] + [f"{name} II" for name in described] + somewhere


def _built_in(task: int, titles: dict[str, list[str]]) -> Screen:
    rng = np.random.default_rng([_CATALOGUE, task])
    rows = []
    for carousel, genre in enumerate(rng.permutation(GENRES).tolist(), start=1):
        start = (task - 1) * MOVIES
        films = []
        for place, title in enumerate(titles[genre][start : start + MOVIES], start=1):
            others = rng.permutation([g for g in (*GENRES, *OTHER_GENRES) if g != genre]).tolist()
            more = int(rng.random() < SECOND_GENRE)
            more += more * int(rng.random() < THIRD_GENRE)
            year = int(rng.integers(YEARS[0], YEARS[1] + 1))
            own = tuple(sorted([genre, *others[:more]]))
            films.append(Movie(movie_id(task, carousel, place), f"{title} ({year})", own, None))
        rows.append(Carousel(genre, tuple(films)))
    return tuple(rows)


def movie_id(task: int, carousel: int, place: int) -> int:
    """The number of a movie."""
    return 1000 * task + MOVIES * (carousel - 1) + place


def genre_weights(screen: Screen) -> Float[np.ndarray, "carousels movies genres"]:
    """How much each of ``GENRES`` counts in each film's appeal; a film's weights sum to 1 at most."""
    weights = np.zeros((CAROUSELS, MOVIES, len(GENRES)))
    for row, carousel in enumerate(screen):
        weights[row, :, GENRES.index(carousel.genre)] += CAROUSEL_WEIGHT
        for place, film in enumerate(carousel.movies):
            for genre in film.genres:
                if genre in GENRES:
                    weights[row, place, GENRES.index(genre)] += (1 - CAROUSEL_WEIGHT) / len(film.genres)
    return weights
