"""Made-up people on made-up result pages, written as AdSERP's raw files.

A stand-in that can be shipped, for tests and trials; nothing in it is taken from real people. A person has a habit of
how far down to read, an eye (or none) for the right column, an aversion to ads, and tastes for sites. They look,
scroll, look again and click at the last stop; the click is drawn from a softmax in which gaze share, taste and rank
count.

What happened is known while it is made up; ``Truth`` holds it, in the columns of the reader's sessions. Now and then
something odd happens that the reader has to cope with: no scrolling at all, or without a pause; a click on nothing, no
other one or before the choice; nothing looked at; scrolling after the click; a jolt of the page just before it; a click
whose element tells no rank, or a wrong one; a click by touch, without a cursor.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fixate_jax.data.readers.adserp.files import ADS, FOLDERS, file_of
from fixate_jax.data.readers.adserp.reader import COLUMNS, PARTICIPANTS, TRAITS, assign_splits, profile_text
from fixate_jax.data.readers.adserp.stops import BY_RANK, CONTRADICTED, LATER
from tests.data.synthetic.adserp.pages import SITES, Area, ResultsPage, draw_screenshot, make_page
from tests.data.synthetic.adserp.people import CSS, LEAST_SEEN, Recording, View, area_under, make_person

USERS, TRIALS = 20, 24
"""People, if `data.max_users` does not say, and how often each searches."""

PAGES = 40
"""Result pages in the pool; people who search for the same see the same page."""
REPEAT = 0.1
"""How often a person's next query is the one before."""
TRIALS_IN_BLOCK = 10
GAZE_BONUS, TASTE_BONUS, RANK_MALUS = 4.0, 1.0, 0.15
"""What a share of gaze, taste and each further place from the top count in the click."""
ODD = {
    "no click": 0.02,
    "nothing": 0.02,
    "missed": 0.05,
    "blind": 0.02,
    "hurried": 0.04,
    "unscrolled": 0.05,
    "jolted": 0.05,
    "touched": 0.05,
}
"""How often something odd happens."""
RANKLESS, MISCOUNTED = 0.15, 0.15
"""How often the clicked element tells no rank, and how often one too many."""
NOWHERE = (20, 500)
"""A place of the screen where no area ever is."""
START_MS = 1_600_000_000_000
TRIAL_STREAM = 3
"""Keeps the random numbers of trials apart from those of pages and people."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What happened, as ``adserp.AdSerp`` tells it; the split is that of the reader's default seed."""

    sessions: pd.DataFrame
    dropped: dict[str, int]
    noted: dict[str, int]


def write_adserp(directory: Path, *, users: int, trials: int, seed: int) -> Truth:
    """Write the raw files of made-up people; the same arguments give the same bytes.

    Args:
        directory: gets ``participants.csv`` and the folders of trials.
        users: people.
        trials: trials of each.
        seed: of pages, people and trials.
    """
    for folder, _ in FOLDERS.values():
        (directory / folder).mkdir(parents=True, exist_ok=True)
    people = {f"p{user + 4:03d}": make_person(user, seed) for user in range(users)}
    lines = [[name, *(person.traits[trait] for trait in TRAITS)] for name, person in people.items()]
    _write_csv(directory / PARTICIPANTS, ["participant_id", *TRAITS], lines)
    pages: dict[int, tuple[ResultsPage, bytes]] = {}
    rows, dropped, noted = [], Counter[str](), Counter[str]()
    for user, (name, person) in enumerate(people.items()):
        rng = np.random.default_rng([seed, user, TRIAL_STREAM])
        index = int(rng.integers(PAGES))
        for trial in range(trials):
            if rng.random() >= REPEAT:
                index = int(rng.integers(PAGES))
            if index not in pages:
                page = make_page(index, seed)
                pages[index] = page, draw_screenshot(page)
            page, png = pages[index]
            block, number = trial // TRIALS_IN_BLOCK + 1, trial % TRIALS_IN_BLOCK + 1
            trial_id = f"{name}-b{block}-t{number}"
            recording = Recording(page, person, rng, START_MS + 10**6 * trial)
            seen = _live(recording)
            _write_trial(directory, trial_id, recording, png)
            if isinstance(seen, str):
                dropped[seen] += 1
                continue
            noted.update(seen.pop("noted"))
            query = page.query.replace("-", " ")
            about = {"query": query, "profile": profile_text(query, person.traits)}
            rows.append({"session_id": trial_id, "user_id": name, "block": block, "trial": number} | about | seen)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["split"] = assign_splits(frame, seed=0)
    return Truth(sessions=frame, dropped=dict(dropped), noted=dict(noted))


def _live(recording: Recording) -> dict[str, Any] | str:
    """A trial happens; what is true of its session, or why it gives none."""
    rng, person = recording.rng, recording.person
    odd = str(rng.choice([*ODD, ""], p=[*ODD.values(), 1 - sum(ODD.values())]))
    if odd == "touched":
        recording.person = replace(person, follows=(0.0, 0.0))
    if odd == "hurried":
        for _ in range(int(rng.integers(2, 5))):
            recording.fixate(int(rng.integers(100, 900)), int(rng.integers(*recording.view.crop)), ms=120)
            recording.scroll(int(rng.integers(40, max(41, min(300, recording.room())))))
    else:
        for _ in range(0 if odd == "unscrolled" else int(rng.poisson(person.depth))):
            recording.look(int(rng.integers(5, 14)))
            if recording.room() >= 40:
                recording.scroll(int(rng.integers(40, min(700, recording.room()) + 1)))
        if odd == "blind":
            for _ in range(4):
                recording.fixate(int(rng.integers(1150, 1270)), int(rng.integers(*recording.view.crop)))
        else:
            recording.look(int(rng.integers(8, 20)))
    if odd == "missed":
        recording.move(*NOWHERE)
        recording.point("click", *NOWHERE, "//*[@id='rcnt']")
    target = _choose(recording)
    place = NOWHERE if odd == "nothing" else recording.aim(target)
    wanted = None if odd == "nothing" else recording.view.seen[target][0]
    if odd != "touched":
        recording.move(*place)
    if odd == "jolted" and recording.room() >= 40:
        recording.scroll(40)
    if odd == "no click":
        return "no click"
    seen = _click(recording, place, wanted)
    if odd == "missed" and not isinstance(seen, str):
        seen["noted"].append(LATER)
    return seen


def _choose(recording: Recording) -> int:
    """The area that the person wants."""
    seen, gaze = recording.view.seen, np.array(recording.view.gaze, float)
    tops = sorted({box[1] for _, box in seen})
    value = [
        GAZE_BONUS * share
        + TASTE_BONUS * recording.person.tastes[SITES.index(area.site)]
        - RANK_MALUS * tops.index(box[1])
        for (area, box), share in zip(seen, gaze / max(gaze.sum(), 1.0), strict=True)
    ]
    readable = [box[3] - box[1] >= LEAST_SEEN for _, box in seen]
    return int(np.argmax(np.where(readable, np.array(value) + recording.rng.gumbel(size=len(seen)), -np.inf)))


def _click(recording: Recording, at: tuple[int, int], wanted: Area | None) -> dict[str, Any] | str:
    """A click somewhere on the screen, by touch if no cursor is there; what is true of the session, or why none is."""
    rng = recording.rng
    rank, xpath = 0, "//*[@id='rcnt']"
    if wanted is not None and rng.random() >= RANKLESS:
        rank = wanted.rank
        child = "div" if rank == 1 and rng.random() < 0.5 else f"div[{rank}]"
        ads = {"native_ad": "//*[@id='tads']/div[2]/div/a", "dd_right": "//*[@id='rhs']/div[1]"}
        if rank and rng.random() < MISCOUNTED:
            rank += 1
            child = f"div[{rank}]"
        xpath = f"//*[@id='rso']/{child}/div/div/a/h3" if rank else ads.get(wanted.kind, "//*[@id='tvcap']/div[1]/div")
    for event in ("mousedown", "mouseup"):
        recording.pass_time(int(rng.integers(20, 60)))
        if recording.cursor is not None:
            recording.point(event, *at, xpath)
    recording.pass_time(int(rng.integers(2, 8)))
    recording.end_view()
    recording.point("click", *at, xpath)
    stop = recording.paused or recording.opening._replace(end=recording.now)
    place = at[0] * CSS, (at[1] + recording.view.offset) * CSS
    seen = _true_session(recording.page, stop, rank, place)
    _afterwards(recording)
    return seen


def _true_session(page: ResultsPage, stop: View, rank: int, place: tuple[float, float]) -> dict[str, Any] | str:
    told = next((i for i, (area, _) in enumerate(stop.seen) if rank and area.rank == rank), None)
    under = area_under(stop.seen, *place)
    click = told if under is None else under
    if click is None:
        return "click on no visible area"
    if not any(stop.gaze):
        return "no fixation on a slot"
    return {
        "scroll_px": stop.offset * CSS,
        "start_ms": stop.start,
        "end_ms": stop.end,
        "page_height": round(page.height / CSS) * CSS,
        "crop": stop.crop,
        "kinds": tuple(area.kind for area, _ in stop.seen),
        "ranks": tuple(area.rank for area, _ in stop.seen),
        "boxes": tuple(box for _, box in stop.seen),
        "fixation_ms": tuple(float(ms) for ms in stop.gaze),
        "cursor_ms": tuple(float(ms) for ms in stop.rest),
        "click": click,
        "noted": [BY_RANK] if under is None else [CONTRADICTED] if told not in (None, under) else [],
    }


def _afterwards(recording: Recording) -> None:
    """What the devices still log after the click, which counts for nothing."""
    recording.pass_time(30)
    recording.log("blur", 0, 0, "/")
    if recording.rng.random() < 0.3:
        recording.scroll(-min(200, recording.view.offset))
    recording.look(2)
    if recording.rng.random() < 0.2:
        recording.point("click", *NOWHERE, "//*[@id='rcnt']")


def _write_csv(path: Path, header: list[str], lines: list[Any]) -> None:
    text = "".join(",".join(str(value) for value in line) + "\n" for line in [header, *lines])
    path.write_text(text, encoding="utf-8", newline="")


def _write_trial(directory: Path, trial_id: str, recording: Recording, png: bytes) -> None:
    """The six files of a trial."""
    page = recording.page
    file_of(directory, "screenshot", trial_id).write_bytes(png)
    fixations = file_of(directory, "fixations", trial_id)
    _write_csv(fixations, ["timestamp", "FPOGX", "FPOGY", "FPOGD"], recording.fixations)
    mouse = file_of(directory, "mouse", trial_id)
    _write_csv(mouse, ["timestamp", "xpos", "ypos", "event", "xpath"], recording.events)
    size = f"{round(1280 / CSS) - 19}x{round(page.height / CSS)}"
    block, number = trial_id.split("-")[1:]
    task = f"batch_{block[1:]}_trial_{number[1:]} | {page.query}"
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<data>", " <screen>1280x1024</screen>"]
    lines += [" <window>1422x1137</window>", f" <document>{size}</document>", f" <task>{task}</task>", "</data>"]
    file_of(directory, "metadata", trial_id).write_text("\n".join(lines) + "\n", encoding="utf-8")
    organic, ads = list[dict[str, Any]](), {kind: list[dict[str, Any]]() for kind in ADS}
    for area in page.areas:
        x0, y0, x1, y1 = area.box
        if area.kind == "organic":
            corners = {"x_left": x0, "y_top": y0, "x_right": x1, "y_bot": y1}
            organic.append({"rank": area.rank, "title": area.title, "site": area.site} | corners)
        else:
            size_of = {"height": y1 - y0, "width": x1 - x0}
            ads[area.kind].append({"location": {"x": x0, "y": y0}, "size": size_of})
    for kind, data in (("organic", {"organic": organic}), ("ads", ads)):
        file_of(directory, kind, trial_id).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
