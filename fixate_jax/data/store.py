"""Prepared sessions on disk: one parquet file, page images under the hash of their bytes, a manifest.

A store is written into a folder beside its final place and renamed when it is whole, so a killed or failed run leaves
nothing under the final name. Writing the same sessions again gives the same bytes.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from fixate_jax.data.session import SPLITS, StoredSession
from fixate_jax.errors import DataError, DiskError, StoreError
from fixate_jax.runtime.durable import remove_leftovers, staging_name, writing
from fixate_jax.runtime.files import read_json, require_ordinary

FORMAT = 1
SESSIONS, MANIFEST, IMAGES = "sessions.parquet", "manifest.json", "images"
_PAGE_ID = re.compile(r"[0-9a-f]{64}")
_FLOATS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("user_id", pa.string()),
        ("page_id", pa.string()),
        ("boxes", pa.list_(_FLOATS)),
        ("labels", pa.list_(pa.string())),
        ("dwell_ms", pa.map_(pa.string(), _FLOATS)),
        ("click", pa.int64()),
        ("profile", pa.string()),
        ("split", pa.string()),
        ("slot_features", pa.list_(_FLOATS)),
    ]
)


def encode_image(image: Image.Image) -> bytes:
    """PNG bytes of a page; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def page_id(png: bytes) -> str:
    """Name of a page: the SHA-256 of its PNG bytes."""
    return hashlib.sha256(png).hexdigest()


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted with numbers in them compared as numbers: u2 before u10."""

    def key(name: str) -> tuple[list[tuple[bool, int | str]], str]:
        parts = re.split(r"(\d+)", name)
        # The name itself settles ties such as "1" and "01", so that the order of a set never shows.
        return [(i % 2 == 1, int(part) if i % 2 else part) for i, part in enumerate(parts)], name

    return sorted(names, key=key)


def _sync(path: Path) -> None:
    """Have the disk keep a file, or a folder's list of files, through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True, kw_only=True)
class SessionStore:
    """A validated store.

    Attributes:
        directory: where it is.
        manifest: what it was made from: data set, settings, counts, reasons for what was left out.
        sessions: all sessions, in the order they were written.
    """

    directory: Path
    manifest: Mapping[str, Any]
    sessions: Sequence[StoredSession]

    @classmethod
    def open(cls, directory: Path) -> "SessionStore":
        """Open and validate a store.

        Raises:
            StoreError: naming the file, row or field: missing, altered, of another version, or not a valid session.
        """
        manifest = _read_manifest(directory)
        path = directory / SESSIONS
        require_ordinary(path, StoreError)
        if not path.exists():
            raise StoreError(f"{path}: not found; prepare the store again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["sessions_sha256"]:
            raise StoreError(f"{path}: altered or truncated since it was written; prepare the store again")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path}: not readable as parquet ({error}); prepare the store again") from error
        if table.schema.names != SCHEMA.names or not table.schema.equals(SCHEMA):
            found = {f.name: f for f in table.schema}
            wrong = [f.name for f in SCHEMA if f.name not in found or found[f.name] != f]
            wrong += sorted(found.keys() - set(SCHEMA.names))
            problem = (
                f"columns {', '.join(wrong)} are missing, unknown or of another type" if wrong else "columns moved"
            )
            raise StoreError(f"{path}: {problem}; prepare the store again")
        for name in SCHEMA.names:
            if table.column(name).null_count:
                row = table.column(name).is_null().to_pylist().index(True) + 1
                raise StoreError(f"{path}, row {row}, field {name!r}: is empty; prepare the store again")
        names = manifest["slot_feature_names"]
        sessions = [_from_row(path, i, row, len(names)) for i, row in enumerate(table.to_pylist())]
        seen: set[str] = set()
        pages = {p.name for p in (directory / IMAGES).glob("*.png")}
        for i, session in enumerate(sessions):
            if session.session_id in seen:
                raise StoreError(f"{path}, row {i + 1}, field 'session_id': {session.session_id!r} is given twice")
            seen.add(session.session_id)
            if not _PAGE_ID.fullmatch(session.page_id):
                raise StoreError(f"{path}, row {i + 1}, field 'page_id': {session.page_id!r} is no SHA-256")
            if f"{session.page_id}.png" not in pages:
                image = directory / IMAGES / f"{session.page_id}.png"
                raise StoreError(f"{path}, row {i + 1}, field 'page_id': image {image} is missing")
        return cls(directory=directory, manifest=manifest, sessions=sessions)

    @property
    def users(self) -> tuple[str, ...]:
        """All users, in natural order; a user's place here is the row of their coefficients."""
        return tuple(natural_order({s.user_id for s in self.sessions}))

    @property
    def slot_feature_names(self) -> tuple[str, ...]:
        """Names of the columns of every session's slot features."""
        return tuple(self.manifest["slot_feature_names"])

    @property
    def hidden_features(self) -> tuple[str, ...]:
        """Slot features that neither the page nor the profile shows, so that a model cannot know them."""
        return tuple(self.manifest.get("hidden_features", ()))

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many rows of the raw data were left out, by reason."""
        return self.manifest["dropped"]

    @property
    def noted(self) -> Mapping[str, int]:
        """What was put right in the raw data or is in doubt, and how often."""
        return self.manifest.get("noted", {})

    def image(self, page: str) -> Image.Image:
        """A page as RGB.

        Raises:
            StoreError: naming the file when it is missing, truncated or altered.
        """
        path = self.directory / IMAGES / f"{page}.png"
        require_ordinary(path, StoreError)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(f"{path}: not found; prepare the store again") from None
        if page_id(data) != page:
            raise StoreError(f"{path}: truncated or altered since it was written; prepare the store again")
        try:
            return Image.open(io.BytesIO(data)).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise StoreError(f"{path}: not readable as an image ({error})") from error

    def select(self, *, split: str | None = None, users: Iterable[str] | None = None) -> list[StoredSession]:
        """Sessions of a split and of some users (None: all).

        Raises:
            StoreError: when a user is not in the store.
        """
        wanted = None if users is None else set(users)
        if wanted is not None and (unknown := wanted - set(self.users)):
            raise StoreError(f"{self.directory}: no user {natural_order(unknown)[0]!r}; it has {', '.join(self.users)}")
        return [
            s for s in self.sessions if (split is None or s.split == split) and (wanted is None or s.user_id in wanted)
        ]


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = read_json(path, StoreError, "prepare the store again")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{directory}: no session store there ({MANIFEST} is missing); run `fixate prepare`") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise StoreError(f"{path}: store format {found!r}, this release reads {FORMAT}; prepare the store again")
    missing = [k for k in ("name", "settings", "slot_feature_names", "dropped", "sessions_sha256") if k not in manifest]
    if missing:
        raise StoreError(f"{path}: fields {', '.join(missing)} are missing; prepare the store again")
    kinds = {"settings": dict, "slot_feature_names": list, "dropped": dict}
    wrong = [k for k, kind in kinds.items() if not isinstance(manifest[k], kind)]
    if wrong:
        raise StoreError(f"{path}: fields {', '.join(wrong)} are of another type; prepare the store again")
    return manifest


def _from_row(path: Path, index: int, row: Mapping[str, Any], features: int) -> StoredSession:
    if any(len(values) != features for values in row["slot_features"]):
        raise StoreError(f"{path}, row {index + 1}, field 'slot_features': the manifest names {features} columns")
    if any(len(box) != 4 for box in row["boxes"]):
        raise StoreError(f"{path}, row {index + 1}, field 'boxes': a box is four numbers, x0, y0, x1, y1")
    if row["split"] not in SPLITS:
        raise StoreError(f"{path}, row {index + 1}, field 'split': {row['split']!r} is not one of {SPLITS}")
    try:
        return StoredSession(
            session_id=row["session_id"],
            user_id=row["user_id"],
            page_id=row["page_id"],
            boxes=np.array(row["boxes"], np.float64).reshape(-1, 4),
            labels=tuple(row["labels"]),
            dwell_ms={signal: np.array(values, np.float64) for signal, values in row["dwell_ms"]},
            click=row["click"],
            profile=row["profile"],
            split=row["split"],
            slot_features=np.array(row["slot_features"], np.float64).reshape(-1, features)
            if features
            else np.zeros((len(row["slot_features"]), 0)),
        )
    except (DataError, TypeError, ValueError) as error:
        raise StoreError(f"{path}, row {index + 1}: {error}") from error


def _to_row(session: StoredSession) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "user_id": session.user_id,
        "page_id": session.page_id,
        "boxes": session.boxes.tolist(),
        "labels": list(session.labels),
        "dwell_ms": [(signal, values.tolist()) for signal, values in sorted(session.dwell_ms.items())],
        "click": int(session.click),
        "profile": session.profile,
        "split": session.split,
        "slot_features": session.slot_features.tolist(),
    }


class StoreWriter:
    """Writes a store; a context manager that leaves a whole store behind, or nothing.

    Args:
        directory: where the store will be; must not exist yet.
        name: the data set.
        settings: what it is made from, as plain values; two stores with equal settings hold equal sessions.
        slot_feature_names: names of the columns of every session's slot features.

    Raises:
        StoreError: when ``directory`` exists, or another run finishes it first.
    """

    def __init__(
        self, directory: Path, *, name: str, settings: Mapping[str, Any], slot_feature_names: Sequence[str]
    ) -> None:
        if directory.exists():
            raise StoreError(f"{directory}: exists already; remove it or choose another place")
        self.directory, self.temporary = directory, staging_name(directory)
        self.slot_feature_names = list(slot_feature_names)
        self.manifest = {
            "format": FORMAT,
            "name": name,
            "settings": dict(settings),
            "slot_feature_names": self.slot_feature_names,
        }
        self.sessions: list[StoredSession] = []
        self.pages: set[str] = set()
        self.dropped: dict[str, int] = {}
        self.noted: dict[str, int] = {}
        self.hidden_features: tuple[str, ...] = ()

    def __enter__(self) -> "StoreWriter":
        try:
            with writing(self.directory):
                self.directory.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.directory)
                (self.temporary / IMAGES).mkdir(parents=True)
        except DiskError:
            shutil.rmtree(self.temporary, ignore_errors=True)
            raise
        return self

    def add_image(self, png: bytes) -> str:
        """Keep a page image; returns its page id."""
        name = page_id(png)
        if name not in self.pages:
            path = self.temporary / IMAGES / f"{name}.png"
            with writing(self.directory):
                path.write_bytes(png)
                _sync(path)
            self.pages.add(name)
        return name

    def add(self, session: StoredSession) -> None:
        """Keep a session whose page image was added.

        Raises:
            DataError: naming the session and the field that does not fit this store.
        """
        if session.page_id not in self.pages:
            raise DataError(f"session {session.session_id!r}, field 'page_id': add the page's image first")
        names = self.slot_feature_names
        if session.slot_features.shape[1] != len(names):
            raise DataError(
                f"session {session.session_id!r}, field 'slot_features': {session.slot_features.shape[1]} columns "
                f"for the {len(names)} names {names}"
            )
        self.sessions.append(session)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            return
        try:
            with writing(self.directory):
                self._finish()
        except BaseException:
            shutil.rmtree(self.temporary, ignore_errors=True)
            raise

    def _finish(self) -> None:
        repeated = [i for i, n in Counter(s.session_id for s in self.sessions).items() if n > 1]
        if repeated:
            raise DataError(f"{self.manifest['name']}: session_id {repeated[0]!r} is given more than once")
        if not self.sessions:
            raise DataError(f"{self.manifest['name']}: no session is left; dropped by reason: {self.dropped}")
        table = pa.Table.from_pylist([_to_row(s) for s in self.sessions], schema=SCHEMA)
        path = self.temporary / SESSIONS
        pq.write_table(table, path, compression="zstd")
        splits = Counter(s.split for s in self.sessions)
        manifest = self.manifest | {
            "sessions": len(self.sessions),
            "users": len({s.user_id for s in self.sessions}),
            "pages": len({s.page_id for s in self.sessions}),
            "splits": dict(sorted(splits.items())),
            "signals": sorted({signal for s in self.sessions for signal in s.dwell_ms}),
            "dropped": dict(sorted(self.dropped.items())),
            "sessions_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        if self.hidden_features:
            manifest["hidden_features"] = list(self.hidden_features)
        if self.noted:
            manifest["noted"] = dict(sorted(self.noted.items()))
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (self.temporary / MANIFEST).write_text(text, encoding="utf-8")
        for file in (path, self.temporary / MANIFEST, self.temporary / IMAGES, self.temporary):
            _sync(file)
        try:
            os.rename(self.temporary, self.directory)
        except OSError as error:
            if self.directory.exists():
                raise StoreError(f"{self.directory}: another run has written it meanwhile") from error
            raise
        _sync(self.directory.parent)


def sessions_frame(sessions: Sequence[StoredSession]) -> pd.DataFrame:
    """Sessions as a table, for looking at them."""
    return pd.DataFrame([_to_row(s) for s in sessions])
