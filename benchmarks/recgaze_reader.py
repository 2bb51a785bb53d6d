"""Reading RecGaze logs of full size: seconds, memory and rows a second, beside going through the rows one by one.

python -m benchmarks.recgaze_reader               under 2 minutes on 2 free cores, 0.6 GB in a temporary folder
python -m benchmarks.recgaze_reader --users 9     a quick look

The logs are random numbers in the right columns. Going through the rows is timed on two people and scaled up.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from rich.console import Console
from rich.table import Table

from fixate_jax.data.readers.recgaze import read_recgaze
from fixate_jax.data.readers.recgaze.geometry import CAROUSELS, MOVIES, POSTER, SEEN, SHOWN, poster_top
from fixate_jax.data.readers.recgaze.logs import CLICK, CLOSEST, CURSOR, EVENTS, FIXATION, KEY, NUMBERS, TEXTS
from fixate_jax.data.readers.recgaze.tables import ITEMS, NON_PUBLIC, PUBLIC, USERS
from fixate_jax.data.readers.recgaze.visits import MOVING_S
from fixate_jax.runtime.progress import track

PEOPLE, TASKS, PART = 87, 40, 2
EVENT_ROWS, SAMPLE_ROWS = 172, 2130
"""Public rows of a screen, and further rows of it in the non-public table: 0.6 and 8 million in all."""
UNREAD = [
    "SubjectID",
    "StimulusID",
    *(
        f"{event}Carousel_genre{rest}"
        for event in EVENTS
        for rest in ("", "_is_top_genre", "_is_preferred_genre", "_rating")
    ),
]
ROWS, PAGEWISE = "row by row (itertuples)", "read_recgaze"


def write_logs(folder: Path, *, users: int, seed: int = 0) -> Path:
    """Write logs of random fixations, cursor rests, swipes and clicks, and what belongs to them."""
    rng = np.random.default_rng(seed)
    names = [f"KInIT_{i + 1}" for i in range(users)]
    pd.DataFrame({"UserID": names, "Top_genre": "Drama", "Preferred_genres": "Drama"}).to_csv(
        folder / USERS, index=False
    )
    places = pd.MultiIndex.from_product([range(1, TASKS + 1), range(1, CAROUSELS + 1), range(1, MOVIES + 1)])
    items = places.to_frame(index=False, name=["TaskID", "Carousel_position", "Movie_position_in_carousel"])
    told = {"Carousel_genre": "Drama", "TMDB_title": "Film", "TMDB_genres": "Drama", "TMDB_poster_path": ""}
    items.assign(MovieID=range(len(items)), **told).to_csv(folder / ITEMS, index=False)
    columns = [*TEXTS, *NUMBERS, *UNREAD]
    public, whole = (
        pa.csv.CSVWriter(folder / name, pa.schema([(c, _type(c)) for c in own]))
        for name, own in ((PUBLIC, columns), (NON_PUBLIC, [*columns, "Fixation_LocY", "Gaze_LocY"]))
    )
    with public, whole:
        for name in names:
            rows = _rows_of_a_person(name, rng)
            happened = ~np.isnan(rows["Gaze_LocY"])
            table = {c: _column(c, rows) for c in (*columns, "Fixation_LocY", "Gaze_LocY")}
            whole.write_table(pa.table(table))
            public.write_table(pa.table({c: table[c] for c in columns}).filter(~happened))
    return folder


def _type(column: str) -> pa.DataType:
    return pa.string() if column in TEXTS or column in UNREAD else pa.float64()


def _column(column: str, rows: dict[str, np.ndarray]) -> pa.Array:
    count = len(rows["TaskID"])
    return pa.array(rows[column], _type(column), from_pandas=True) if column in rows else pa.nulls(count, _type(column))


def _rows_of_a_person(name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    each = EVENT_ROWS + SAMPLE_ROWS
    count, task = TASKS * each, np.repeat(np.arange(1, TASKS + 1), each)
    # Every so manieth row is an event, the others are gaze samples.
    event = np.zeros(each, bool)
    event[np.linspace(0, each - 4, EVENT_ROWS).astype(int)] = True
    happened = np.tile(event, TASKS)
    kind = np.where(happened, rng.choice(4, count, p=[0.45, 0.5, 0.02, 0.03]), -1)
    looked, rested, swiped, clicked = (kind == k for k in range(4))
    scroll = np.repeat(np.round(rng.choice(2400, count // 20 + 1) / 7, 1), 20)[:count]
    carousel, place = (np.clip(rng.integers(1, high + 1, count), 1, high) for high in (4, SHOWN))
    rows: dict[str, Any] = {
        "UserID": np.full(count, name, object),
        "TaskID": task.astype(float),
        "Timestamp": np.tile(np.round(np.arange(each) / 120, 4), TASKS),
        "Fixation_Duration": np.where(looked, np.round(rng.gamma(2.0, 110.0, count), 1), np.nan),
        "Cursor_Duration": np.where(rested, np.round(rng.gamma(1.0, 0.4, count), 3), np.nan),
        "Gaze_LocY": np.where(happened, np.nan, 500.0),
        "Fixation_LocY": np.where(looked, 500 + scroll, np.nan),
    }
    movie = ((task - 1) * CAROUSELS + carousel - 1) * MOVIES + place - 1
    for prefix, mine in ((FIXATION, looked), (CLOSEST, looked), (CURSOR, rested), (CLICK, swiped | clicked)):
        poster = mine & ~swiped
        rows[f"{prefix}type"] = np.where(
            mine, np.where(swiped, "Forward", "Movie").astype(object), np.array(None, object)
        )
        rows[f"{prefix}Carousel_position"] = np.where(mine, carousel, np.nan)
        rows[f"{prefix}Movie_position_in_carousel"] = np.where(poster, place, np.nan)
        rows[f"{prefix}MovieID"] = np.where(poster, movie, np.nan)
    return rows


def read_row_by_row(folder: Path) -> int:
    """The page definition with a loop over rows; returns the number of sessions."""
    key = ["UserID", *KEY]
    public = pd.read_csv(folder / PUBLIC, usecols=[*TEXTS, *NUMBERS])
    other = pd.read_csv(folder / NON_PUBLIC, usecols=[*key, "Fixation_LocY", "Gaze_LocY"])
    for frame in (public, other):
        frame["occurrence"] = frame.groupby(key).cumcount()
    rows = other.merge(public, how="left", on=[*key, "occurrence"]).query("TaskID <= 35")
    sessions = 0
    for _, screen in rows.groupby(["UserID", "TaskID"]):
        sessions += _ends_in_session(list(screen.itertuples(index=False)))
    return sessions


def _ends_in_session(rows: list[Any]) -> bool:
    pages, view, began, dwell, ends = [0] * CAROUSELS, None, 0.0, dict[tuple[int, int], float](), False
    moved = [-float("inf")] * CAROUSELS
    for i, row in enumerate(rows):
        if isinstance(row.Fixation_AOI_type, str):
            closest = row.Fixation_AOI_type == "Background"
            place = [getattr(row, f"{CLOSEST if closest else FIXATION}{c}") for c in ("type", *_PLACE)]
            if place[0] == "Movie":
                pages[int(place[1]) - 1] = (int(place[2]) - 1) // SHOWN
            gaze = [r.Gaze_LocY for r in rows[i + 1 : i + 4] if r.Gaze_LocY == r.Gaze_LocY]
            if not gaze:
                continue
            scroll = round(row.Fixation_LocY - gaze[0], 6)
            tops = [poster_top(c) - scroll for c in range(1, CAROUSELS + 1)]
            seen = [min(t + POSTER[1], SEEN[1]) - max(t, SEEN[0]) for t in tops]
            now = tuple((c, pages[c]) for c in range(CAROUSELS) if seen[c] >= 3)
            if now != view or (row.Fixation_Duration >= 150 and round(abs(scroll - began), 6) > 17):
                view, began, dwell = now, scroll, {}
                full = [c for c in range(CAROUSELS) if seen[c] >= POSTER[1] - 0.5]
                slots = {(c + 1, pages[c] * SHOWN + p) for c in full for p in range(1, SHOWN + 1)}
            if place[0] == "Movie":
                poster = (int(place[1]), int(place[2]))
                dwell[poster] = dwell.get(poster, 0.0) + row.Fixation_Duration
        if row.Click_AOI_type == "Movie":
            poster = (int(row.Click_AOI_Carousel_position), int(row.Click_AOI_Movie_position_in_carousel))
            ends_now = (view, poster, dwell, slots) if view is not None else None
            ends = ends_now is not None and poster in slots
            final = ends_now
        elif row.Click_AOI_type in ("Forward", "Backward"):
            carousel = int(row.Click_AOI_Carousel_position) - 1
            if round(row.Timestamp - moved[carousel], 6) < MOVING_S:
                continue
            moved[carousel] = row.Timestamp
            pages[carousel] = (pages[carousel] + (1 if row.Click_AOI_type == "Forward" else -1)) % 3
    return bool(ends and final and sum(ms for p, ms in final[2].items() if p in final[3]) > 0)


_PLACE = ("Carousel_position", "Movie_position_in_carousel")


def read_alone(how: str, folder: Path) -> None:
    """The process that :func:`measure` starts."""
    start, busy = time.perf_counter(), time.process_time()
    read = read_recgaze(folder, definition="page") if how == PAGEWISE else None
    sessions = len(read.sessions) if read is not None else read_row_by_row(folder)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "sessions": sessions}))


def measure(how: str, folder: Path) -> dict[str, float]:
    """Seconds on the clock and of all threads, peak resident bytes, sessions: of a reading in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.recgaze_reader", "--one", how, "--folder", str(folder)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    """Write logs, read them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=PEOPLE, help="people; each has 40 tasks")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        read_alone(arguments.one, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folders = {users: Path(temporary) / str(users) for users in (PART, arguments.users)}
        for users, folder in track(list(folders.items()), "Writing logs"):
            folder.mkdir(exist_ok=True)
            write_logs(folder, users=users)
        part, ours = measure(ROWS, folders[PART]), measure(PAGEWISE, folders[PART])
        if part["sessions"] != ours["sessions"]:
            raise SystemExit(f"the two readings differ: {part['sessions']} and {ours['sessions']} sessions")
        whole = measure(PAGEWISE, folders[arguments.users])
        size = (folders[arguments.users] / NON_PUBLIC).stat().st_size / 1e9
    show(whole, part, users=arguments.users, gigabytes=size)


def show(whole: dict[str, float], part: dict[str, float], *, users: int, gigabytes: float) -> None:
    """Print how long it took."""
    public, other = (users * TASKS * n / 1e6 for n in (EVENT_ROWS, EVENT_ROWS + SAMPLE_ROWS))
    title = f"{users} people × {TASKS} tasks: {public:.2f} and {other:.1f} million rows ({gigabytes:.2f} GB)"
    table = Table("", "s", "CPU s", "peak memory, GB", "million rows/s", "sessions", title=title)
    for how, row, times in ((PAGEWISE, whole, 1.0), (f"{ROWS}, {PART} people scaled up", part, users / PART)):
        seconds, cpu = times * row["seconds"], times * row["cpu"]
        memory, sessions = (f"{row['peak'] / 1e9:.2f}", f"{row['sessions']:.0f}") if row is whole else ("–", "–")
        table.add_row(how, f"{seconds:.1f}", f"{cpu:.1f}", memory, f"{(public + other) / seconds:.3f}", sessions)
    Console().print(table)


if __name__ == "__main__":
    main()
