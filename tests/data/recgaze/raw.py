"""Small RecGaze logs, given as rows, and an event-by-event reading of them that follows the rules word by word.

The reading is there to be compared with: it is slow, knows nothing of the reader, and takes its geometry as numbers.
"""

import csv
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AOI = tuple[str, int | None, int | None]
"""Type, carousel and place."""
Row = dict[str, Any]
DETAILS = [
    "type",
    "MovieID",
    "Movie_position_in_carousel",
    "Carousel_position",
    "Carousel_genre",
    "Carousel_genre_is_top_genre",
    "Carousel_genre_is_preferred_genre",
    "Carousel_genre_rating",
]
EVENTS = ["Fixation_AOI_", "Fixation_AOI_Closest_", "Click_AOI_", "Cursor_AOI_"]
KEY = ["UserID", "SubjectID", "TaskID", "StimulusID", "Timestamp"]
PUBLIC = [*KEY, *(e + d for e in EVENTS for d in DETAILS), "Fixation_Duration", "Cursor_Duration"]
NON_PUBLIC = [*PUBLIC, "Fixation_LocY", "Gaze_LocY"]
ITEMS = [
    "TaskID",
    "Carousel_position",
    "Carousel_genre",
    "Movie_position_in_carousel",
    "MovieID",
    "TMDB_title",
    "TMDB_genres",
    "TMDB_poster_path",
]
USERS = ["UserID", "Top_genre", "Preferred_genres", "Drama_rating"]
BACKGROUND: AOI = ("Background", None, None)
SUMMARY, ITEM_FILE, USER_FILE = "summary_feedback.csv", "item_features.csv", "user_features.csv"
OTHER = "non_public_feedback_dataset.csv"
USER = "KInIT_2"


def movie_id(task: int, carousel: int, place: int) -> int:
    """MovieID of a place on a screen of these logs."""
    return 1000 * task + 15 * (carousel - 1) + place


def movie(carousel: int, place: int) -> AOI:
    """A poster as an AOI."""
    return ("Movie", carousel, place)


def event(
    user: str,
    task: int,
    time: float,
    *,
    look: AOI | None = None,
    closest: AOI | None = None,
    ms: float | None = None,
    click: AOI | None = None,
    cursor: AOI | None = None,
    seconds: float | None = None,
    page_y: float | None = None,
) -> Row:
    """A row of both tables."""
    row: Row = {"UserID": user, "SubjectID": 1, "TaskID": task, "StimulusID": "screen", "Timestamp": time}
    for prefix, aoi in zip(EVENTS, (look, closest, click, cursor), strict=True):
        if aoi is None:
            continue
        kind, carousel, place = aoi
        row |= {f"{prefix}type": kind, f"{prefix}Carousel_position": carousel}
        if kind == "Movie" and carousel is not None and place is not None:
            row |= {f"{prefix}Movie_position_in_carousel": place, f"{prefix}MovieID": movie_id(task, carousel, place)}
    return row | {"Fixation_Duration": ms, "Cursor_Duration": seconds, "Fixation_LocY": page_y}


def sample(user: str, task: int, time: float, gaze_y: float | None) -> Row:
    """A row of the non-public table alone: a gaze sample, or with None one that was lost."""
    return {"UserID": user, "TaskID": task, "Timestamp": time, "Gaze_LocY": gaze_y, "sample": True}


def fixation(user: str, task: int, time: float, look: AOI, ms: float, *, scroll: float = 0, **more: Any) -> list[Row]:
    """A fixation in the middle of the viewport and the gaze sample that gives its scroll offset away."""
    here = event(user, task, time, look=look, ms=ms, page_y=scroll + 500, **more)
    return [here, sample(user, task, time + 0.001, 500)]


def click(time: float, carousel: int, place: int, *, user: str = USER, task: int = 2) -> Row:
    return event(user, task, time, click=movie(carousel, place))


def look(
    time: float, carousel: int, place: int, ms: float = 200, *, scroll: float = 0, user: str = USER, task: int = 2
) -> list[Row]:
    return fixation(user, task, time, movie(carousel, place), ms, scroll=scroll)


def swipe(time: float, carousel: int, kind: str = "Forward") -> Row:
    return event(USER, 2, time, click=(kind, carousel, None))


def a_session(user: str = USER, task: int = 2) -> list[Row]:
    """A look at the second poster, the cursor there for half a second, and a click on it."""
    rest = event(user, task, 1.5, cursor=movie(1, 2), seconds=0.5)
    return [*look(1.0, 1, 2, user=user, task=task), rest, click(2.0, 1, 2, user=user, task=task)]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a CSV file; what is None or not there is NA."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["NA" if row.get(c) is None else row[c] for c in columns] for row in rows])


def write_logs(folder: Path, rows: Sequence[Row]) -> None:
    """Write both logs: all rows to the non-public one, all but gaze samples to the public one."""
    write_table(folder / SUMMARY, PUBLIC, [row for row in rows if not row.get("sample")])
    write_table(folder / OTHER, NON_PUBLIC, rows)


def write_features(folder: Path, *, tasks: Collection[int], users: Sequence[str]) -> None:
    """Write the screens of tasks, and the people."""
    places = [(t, c, p) for t in tasks for c in range(1, 11) for p in range(1, 16)]
    values = [(t, c, "Drama", p, movie_id(t, c, p), f"Film, the {c}.{p}", "Drama, War", "x.jpg") for t, c, p in places]
    write_table(folder / ITEM_FILE, ITEMS, [dict(zip(ITEMS, v, strict=True)) for v in values])
    people = [{"UserID": u, "Top_genre": "Drama", "Preferred_genres": "Drama, War"} for u in users]
    write_table(folder / USER_FILE, USERS, people)


def write_folder(folder: Path, rows: Sequence[Row]) -> Path:
    """Write all four files, with screens and people as the rows need them."""
    folder.mkdir(exist_ok=True)
    write_logs(folder, rows)
    people = sorted({row["UserID"] for row in rows if row["UserID"]})
    write_features(folder, tasks=sorted({row["TaskID"] for row in rows}), users=people)
    return folder


def write_value(path: Path, line: int, column: str, value: Any) -> None:
    """Put something else into a field of a table without quotes; lines are counted as in an editor."""
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = lines[line - 1].split(",")
    fields[lines[0].split(",").index(column)] = "NA" if value is None else str(value)
    lines[line - 1] = ",".join(fields)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# What follows reads logs without the library.

TOPS = [176, 516, 855, 1195, 1534, 1874, 2213, 2553, 2892, 3232]
"""Upper edges of the posters of every carousel as measured; posters are 193 px high."""


@dataclass
class Visit:
    """A page visit being read."""

    number: int
    start: float
    scroll: float
    rows: tuple[int, ...]
    full: tuple[int, ...]
    pages: tuple[int, ...]
    looked: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    pointed: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    clicks: list[tuple[int, int]] = field(default_factory=list)


def split(task: int) -> str:
    """The split as documented."""
    rng = random.Random(42)
    free, semi = list(range(1, 31)), list(range(31, 36))
    test = rng.sample(free, 5) + rng.sample(semi, 1)
    rest = [t for t in free if t not in test], [t for t in semi if t not in test]
    validation = rng.sample(rest[0], 3) + rng.sample(rest[1], 1)
    return "test" if task in test else "validation" if task in validation else "train"


def read_plainly(
    folder: Path,
    definition: str,
    *,
    span: tuple[int, int] = (87, 1032),
    without: Collection[int] = (),
    without_non_public: Collection[int] = (),
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Counter[str]]:
    """Sessions, visits and counts of good logs, leaving out rows on some lines (the header is line 1)."""
    logs = _by_screen(folder / SUMMARY, without)
    others = _by_screen(folder / OTHER, without_non_public) if definition == "page" else {}
    dropped, sessions, visits = Counter[str](), [], []

    def natural(screen: tuple[str, int]) -> tuple[str, int, int]:
        match = re.fullmatch(r"(\D*)(\d+)", screen[0])
        assert match is not None
        return match[1], int(match[2]), screen[1]

    for user, task in sorted(logs, key=natural):
        if task == 0:
            dropped["practice task"] += 1
            continue
        if task > 35:
            dropped["direct-search task"] += 1
            continue
        rows = [row for row in logs[user, task] if not row["bad"]]
        if definition == "page":
            reading = _page(rows, others.get((user, task), []), dropped, span)
            visits += [
                {
                    "user_id": user,
                    "task_id": task,
                    "visit": v.number,
                    "start": v.start,
                    "scroll_px": v.scroll,
                    "rows": v.rows,
                    "full_rows": v.full,
                    "horizontal_pages": v.pages,
                    "fixation_ms": dict(v.looked),
                    "clicks": tuple(v.clicks),
                }
                for v in reading[0]
            ]
        else:
            reading = _screen(rows)
        session = _session(user, task, reading[1], reading[2], dropped) if rows else None
        sessions += [session] if session else []
    return sessions, visits, dropped


def _by_screen(path: Path, without: Collection[int]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    screens = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as handle:
        for line, texts in enumerate(csv.DictReader(handle), start=2):
            row: dict[str, Any] = {name: None if text in ("NA", "") else text for name, text in texts.items()}
            screens[row["UserID"], int(row["TaskID"])].append(row | {"bad": line in without})
    for rows in screens.values():
        rows.sort(key=lambda row: float(row["Timestamp"]))
        seen = Counter[float]()
        for row in rows:
            time = float(row["Timestamp"])
            row["occurrence"] = seen[time]
            seen[time] += 1
    return screens


def _poster(row: dict[str, Any], prefix: str) -> tuple[int, int] | None:
    if row[f"{prefix}type"] != "Movie":
        return None
    return int(row[f"{prefix}Carousel_position"]), int(row[f"{prefix}Movie_position_in_carousel"])


def _looked_at(row: dict[str, Any]) -> tuple[int, int] | None:
    background = row["Fixation_AOI_type"] == "Background"
    return _poster(row, "Fixation_AOI_Closest_" if background else "Fixation_AOI_")


def _scroll(partner: dict[str, Any], later: list[dict[str, Any]]) -> float | None:
    for row in later[:3]:
        if row["Gaze_LocY"] is not None:
            height = None if partner["Fixation_LocY"] is None else float(partner["Fixation_LocY"])
            return None if height is None else round(height - float(row["Gaze_LocY"]), 6)
    return None


def _page(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], dropped: Counter[str], span: tuple[int, int]
) -> tuple[list[Visit], Visit | None, tuple[int, int] | None]:
    """The visits, the one of the final movie click, and that click."""
    others = [row for row in others if not row["bad"]]
    pages, visits, final, moved = [0] * 10, list[Visit](), None, [-math.inf] * 10
    last: Visit | None = None
    for row in rows:
        same = ("Timestamp", "occurrence")
        found = [i for i, o in enumerate(others) if all(float(o[k]) == float(row[k]) for k in same)]
        if row["Fixation_AOI_type"] is not None:
            poster = _looked_at(row)
            if poster is not None:
                pages[poster[0] - 1] = (poster[1] - 1) // 5
            scroll = _scroll(others[found[0]], others[found[0] + 1 :]) if found else None
            if scroll is None:
                dropped["fixation without scroll offset"] += 1
            else:
                visit = visits[-1] if visits else None
                if visit is None or _is_new(visit, scroll, pages, float(row["Fixation_Duration"]), span):
                    visible, full = _rows_at(scroll, span)
                    visit = Visit(len(visits), float(row["Timestamp"]), scroll, visible, full, tuple(pages))
                    visits.append(visit)
                if poster is not None:
                    visit.looked[poster] += float(row["Fixation_Duration"])
        poster = _poster(row, "Cursor_AOI_")
        if poster is not None and visits:
            visits[-1].pointed[poster] += round(1000 * float(row["Cursor_Duration"]), 6)
        poster = _poster(row, "Click_AOI_")
        if poster is not None:
            final, last = poster, visits[-1] if visits else None
            if visits:
                visits[-1].clicks.append(poster)
        if row["Click_AOI_type"] in ("Forward", "Backward"):
            carousel, time = int(row["Click_AOI_Carousel_position"]) - 1, float(row["Timestamp"])
            if round(time - moved[carousel], 6) < 0.5:
                continue
            moved[carousel] = time
            pages[carousel] = (pages[carousel] + (1 if row["Click_AOI_type"] == "Forward" else -1)) % 3
    return visits, last, final


def _rows_at(scroll: float, span: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    seen = [min(top + 193, scroll + span[1]) - max(top, scroll + span[0]) for top in TOPS]
    visible = [i + 1 for i in range(10) if round(seen[i], 6) >= 3]
    return tuple(visible[:4]), tuple(i + 1 for i in range(10) if round(seen[i], 6) >= 192.5)


def _is_new(visit: Visit, scroll: float, pages: list[int], ms: float, span: tuple[int, int]) -> bool:
    rows, _ = _rows_at(scroll, span)
    if rows != visit.rows or any(pages[c - 1] != visit.pages[c - 1] for c in rows):
        return True
    return ms >= 150 and round(abs(scroll - visit.scroll), 6) > 17


def _screen(rows: list[dict[str, Any]]) -> tuple[list[Visit], Visit, tuple[int, int] | None]:
    visit, final = Visit(0, math.nan, 0.0, (1, 2, 3), (1, 2, 3), (0,) * 10), None
    for row in rows:
        poster = _looked_at(row) if row["Fixation_AOI_type"] is not None else None
        if poster is not None:
            visit.looked[poster] += float(row["Fixation_Duration"])
        poster = _poster(row, "Cursor_AOI_")
        if poster is not None:
            visit.pointed[poster] += round(1000 * float(row["Cursor_Duration"]), 6)
        final = _poster(row, "Click_AOI_") or final
    return [], visit, final


def _session(
    user: str, task: int, visit: Visit | None, final: tuple[int, int] | None, dropped: Counter[str]
) -> dict[str, Any] | None:
    if final is None:
        dropped["no movie click"] += 1
        return None
    if visit is None:
        dropped["no visit before the final click"] += 1
        return None
    slots = tuple((c, 5 * visit.pages[c - 1] + p) for c in visit.full for p in range(1, 6))
    if final not in slots:
        dropped["final click off the slots"] += 1
        return None
    fixation_ms = tuple(visit.looked.get(slot, 0.0) for slot in slots)
    if sum(fixation_ms) == 0:
        dropped["no dwell on the slots"] += 1
        return None
    return {
        "session_id": f"{user}/{task}",
        "user_id": user,
        "task_id": task,
        "split": split(task),
        "visit": visit.number,
        "scroll_px": visit.scroll,
        "horizontal_pages": visit.pages,
        "slots": slots,
        "movie_ids": tuple(movie_id(task, *slot) for slot in slots),
        "fixation_ms": fixation_ms,
        "cursor_ms": tuple(visit.pointed.get(slot, 0.0) for slot in slots),
        "click": slots.index(final),
    }
