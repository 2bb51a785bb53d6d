"""The raw tables that synthetic users leave."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from fixate_jax.data.readers.recgaze import tables
from fixate_jax.data.readers.recgaze.screens import Screen
from fixate_jax.data.store import natural_order
from fixate_jax.errors import ConfigError
from tests.data.synthetic.recgaze.aims import FIRST_SEMI_FREE_TASK, aim_of
from tests.data.synthetic.recgaze.catalogue import TASKS, built_in, genre_weights
from tests.data.synthetic.recgaze.cursor import cursor_of
from tests.data.synthetic.recgaze.logs import (
    NON_PUBLIC_COLUMNS,
    PUBLIC_COLUMNS,
    task_lines,
    write_items,
    write_users,
)
from tests.data.synthetic.recgaze.people import Person, draw_people
from tests.data.synthetic.recgaze.truth import FIRST_DIRECT_TASK, TICKS, Truth, TruthBook
from tests.data.synthetic.recgaze.walk import Walk

SKIPPED = 0.02
"""Share of the tasks that a person leaves out."""
TASK_SECONDS = 300
"""Time from one task's start to the next one's; longer than any walk."""

_WALK, _ORDER = 2, 3
"""Keep streams of random numbers apart from each other and from the one that people are drawn from."""


def write_recgaze(
    directory: Path,
    *,
    users: int,
    seed: int,
    tasks: Sequence[int] = range(1, TASKS + 1),
    samples: int = 1,
) -> Truth:
    """Write the raw tables of made-up people: public and non-public events, films, people.

    Args:
        directory: where the four files go; made if need be.
        users: people; the first ones are the same whatever the number.
        seed: the same seed gives the same bytes.
        tasks: which of the 40 screens there are; what a person does on one does not depend on the others.
        samples: gaze samples of each fixation in the non-public table.

    Returns:
        What is true of the logs, known to the generator and not read from them.

    Raises:
        ConfigError: fewer than one person, task or sample, or an unknown task.
    """
    wanted = sorted(set(tasks))
    for name, least in {"users": users, "samples": samples, "tasks": len(wanted)}.items():
        if least < 1:
            raise ConfigError(f"{name}: at least 1 is needed")
    if not 1 <= wanted[0] <= wanted[-1] <= TASKS:
        raise ConfigError(f"tasks = {wanted[0]} to {wanted[-1]}: screens are numbered from 1 to {TASKS}")
    pages = built_in(wanted)
    people = draw_people(users, seed)
    index = {person.user_id: place for place, person in enumerate(people)}
    people = tuple(people[index[name]] for name in natural_order(index))
    directory.mkdir(parents=True, exist_ok=True)
    write_items(directory / tables.ITEMS, pages)
    write_users(directory / tables.USERS, people)
    book = TruthBook()
    with (
        (directory / tables.PUBLIC).open("w", encoding="utf-8", newline="") as public,
        (directory / tables.NON_PUBLIC).open("w", encoding="utf-8", newline="") as non_public,
    ):
        public.write(",".join(PUBLIC_COLUMNS) + "\n")
        non_public.write(",".join(NON_PUBLIC_COLUMNS) + "\n")
        for person in people:
            for lines in _live(person, index[person.user_id], pages, book, seed=seed, samples=samples):
                public.writelines(lines[0])
                non_public.writelines(lines[1])
    return book.truth(people)


def _live(
    person: Person, place: int, screens: Mapping[int, Screen], book: TruthBook, *, seed: int, samples: int
) -> Iterator[tuple[list[str], list[str]]]:
    """Lines of the two tables of events for each task that a person does; what is true of them goes into the book."""
    for start, task in _schedule(screens, np.random.default_rng([seed, place, _ORDER])):
        screen, rng = screens[task], np.random.default_rng([seed, place, _WALK, task])
        walk = Walk(person, aim_of(person, genre_weights(screen), task, rng), rng, start=start)
        walk.run()
        cursor = cursor_of(walk, person, rng)
        yield task_lines(
            walk, cursor, person=person, subject=place + 1, task=task, screen=screen, samples=samples, rng=rng
        )
        book.add(person.user_id, task, screen, walk.diary, cursor)


def _schedule(tasks: Collection[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """When a person sees which task: free, semi-free and direct ones after each other, each kind shuffled.

    Returns:
        Starts in ticks and tasks, in order of time. The start of a task is the same whichever others are asked for.
    """
    kinds = [1, FIRST_SEMI_FREE_TASK, FIRST_DIRECT_TASK, TASKS + 1]
    order = [task for low, high in pairwise(kinds) for task in rng.permutation(range(low, high))]
    skipped = rng.random(TASKS) < SKIPPED
    return [
        (place * TASK_SECONDS * TICKS, int(task))
        for place, task in enumerate(order)
        if task in tasks and not skipped[task - 1]
    ]
