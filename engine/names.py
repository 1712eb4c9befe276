"""The names of a run's images: which are done, which came before, and which belong to a shard or a sample."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

from saccade.errors import ConfigError, OutputError

_CACHE_KIB = 1024
_HALF = 2**64


Meeting = Literal["new", "done", "again"]
"""What is known of a name: nothing, that it is done, or that it was met before."""


def digest(name: str) -> bytes:
    """128 bits of a name: among ten million names, two alike are as likely as one in 10^24."""
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of the images found are captioned. An image's name decides, so every run and every machine agree.

    shard, shards : every image belongs to one of `shards` shards, numbered from 0, of about equal sizes
    sample : share of the images, in (0, 1]; a larger share holds all of a smaller one
    limit : the first so many images, done ones included, or None for all
    """

    shard: int = 0
    shards: int = 1
    sample: float = 1.0
    limit: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.shards < 1:
            problems.append(f"the number of shards must be at least 1, got {self.shards}")
        if not 0 <= self.shard < max(self.shards, 1):
            problems.append(f"the shard must be between 0 and {self.shards - 1}, got {self.shard}")
        if not 0 < self.sample <= 1:
            problems.append(f"sample must be above 0 and at most 1, got {self.sample}")
        if self.limit is not None and self.limit < 0:
            problems.append(f"limit must be 0 or more, got {self.limit}")
        if problems:
            raise ConfigError("invalid selection: " + "; ".join(problems))

    def has(self, name: str) -> bool:
        """Whether shard and sample hold the image."""
        if self.shards == 1 and self.sample == 1:
            return True
        found = digest(name)
        first, second = int.from_bytes(found[:8]), int.from_bytes(found[8:])
        return first % self.shards == self.shard and second < self.sample * _HALF


class Names:
    """A set of names that may be larger than memory: beyond a cache it is a temporary file. A context manager."""

    def __init__(self, done: Iterable[str] = ()) -> None:
        """`done` are names that count as done."""
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        for setting in ("journal_mode = OFF", "synchronous = OFF"):  # it ends with the process: nothing to recover
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("BEGIN")
        self._database.execute("CREATE TABLE names (digest BLOB PRIMARY KEY, met INTEGER) WITHOUT ROWID")
        self._lock = threading.Lock()  # SQLite would crash if it were closed beside a query
        with _reported():
            self._database.executemany("INSERT OR IGNORE INTO names VALUES (?, 0)", ((digest(name),) for name in done))

    def meet(self, name: str) -> Meeting:
        """What is known of a name; from now on it was met. Raises OutputError if the file is in trouble."""
        key = (digest(name),)
        with self._lock, _reported():
            if self._database.execute("INSERT OR IGNORE INTO names VALUES (?, 1)", key).rowcount:
                return "new"
            first = self._database.execute("UPDATE names SET met = 1 WHERE digest = ? AND met = 0", key).rowcount
            return "done" if first else "again"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._database.close()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(
            f"the names of the images cannot be kept in a temporary file ({error}): free some space, or set TMPDIR"
        ) from error
