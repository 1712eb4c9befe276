"""The results folder: committed parts, failures, and what the run was.

    run.json               the fingerprint of the run: bundle, preprocessing, options, versions
    part-00000.jsonl       one record a line, written whole and renamed
    part-00000.stats.json  the commit marker of the part: written last
    failures.jsonl         one line per image that could not be read
    .lock                  held by the run that writes

A part without its marker never happened. Failures are appended before the marker, which says how many lines count.
One run at a time writes to a folder; the system lets go of it when that process ends, however it ends. A run over
several machines has a folder for each shard, shard-0003-of-0016 and so on, in one folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from engine.records import Failure, Record, json_line
from saccade.errors import OutputError
from saccade.files import differences, write_atomically, write_json
from saccade.structure import structure

RUN, FAILURES, LOCK = "run.json", "failures.jsonl", ".lock"

SHARD = re.compile(r"shard-(\d{4,})-of-(\d{4,})")
"""Folder of one shard's results."""

_PART = re.compile(r"part-(\d+)\.(jsonl|stats\.json)")
_TEMPORARY = re.compile(rf"\.({re.escape(RUN)}|{re.escape(FAILURES)}|{_PART.pattern})\..+")
"""What a write that was killed leaves behind."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Totals:
    """Images captioned and images failed, in committed parts."""

    captioned: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """part-*.stats.json: what the part holds, and the failures in it and all parts before it."""

    records: int
    failures: int
    failures_total: int


class ResultsWriter:
    """Adds parts to a results folder, continuing after the last committed one. A context manager: it holds the folder.

    fingerprint : what must be equal for two runs to belong together
    details : what else run.json tells (versions, the options as they were given)
    overwrite : throw away the results that the folder holds; other files in it stay
    retry_failures : images that failed so far do not count as done; their lines stay, but are read no more
    Raises OutputError where the folder holds another run's results, another run is writing to it, or it cannot be
    written.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Mapping[str, Any],
        details: Mapping[str, Any],
        *,
        overwrite: bool = False,
        retry_failures: bool = False,
    ) -> None:
        self.folder = folder
        with ExitStack() as stack:
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                if not (folder / RUN).is_file() and any(not _is_ours(file) for file in folder.iterdir()):
                    raise OutputError(f"{folder} is not empty and holds no results: choose another --out")
                stack.enter_context(_held(folder))
                self._prepare(dict(fingerprint), dict(details), overwrite)
                parts = committed_parts(folder)
                self._next_part = len(parts)
                self._failures = parts[-1].failures_total if parts else 0
                self._captioned = sum(part.records for part in parts)
                self._drop_uncommitted()
                if retry_failures:
                    self.note(failures_from=self._failures)
                self._failures_from = _failures_from(folder)
            self._holding = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._holding.close()

    @property
    def totals(self) -> Totals:
        """What is committed so far."""
        return Totals(self._captioned, self._failures - self._failures_from)

    def done(self) -> Iterator[str]:
        """Names of the images that were captioned or failed, one after the other."""
        return done_names(self.folder)

    def commit(self, results: Sequence[Record | Failure]) -> None:
        """Write one part; it counts once this returns. Raises OutputError if it cannot be written."""
        with _writing(self.folder):
            self._commit(results)

    def note(self, **details: Any) -> None:
        """Add to run.json. Raises OutputError if it cannot be written."""
        with _writing(self.folder):
            write_json(self.folder / RUN, read_run(self.folder) | details)

    def _commit(self, results: Sequence[Record | Failure]) -> None:
        records = [result for result in results if isinstance(result, Record)]
        failures = [result for result in results if isinstance(result, Failure)]
        if failures:
            with (self.folder / FAILURES).open("a", encoding="utf-8") as file:
                file.writelines(json_line(failure.as_json()) for failure in failures)
                file.flush()
                os.fsync(file.fileno())
        name = f"part-{self._next_part:05d}"
        write_atomically(self.folder / f"{name}.jsonl", "".join(json_line(record.as_json()) for record in records))
        marker = Marker(records=len(records), failures=len(failures), failures_total=self._failures + len(failures))
        write_json(self.folder / f"{name}.stats.json", asdict(marker))
        self._failures += len(failures)
        self._captioned += len(records)
        self._next_part += 1

    def _prepare(self, fingerprint: dict[str, Any], details: dict[str, Any], overwrite: bool) -> None:
        run = self.folder / RUN
        if run.is_file() and not overwrite:
            refuse_other(self.folder, fingerprint)
            return
        with suppress(OutputError):  # what is no run, or a damaged one, is replaced below
            if _failures_from(self.folder):
                self.note(failures_from=0)  # were the run killed here, there would be fewer failures than that
        self._drop_parts(0)
        write_json(run, {"fingerprint": fingerprint} | details)

    def _drop_uncommitted(self) -> None:
        self._drop_parts(self._next_part)
        for file in self.folder.iterdir():
            if _TEMPORARY.fullmatch(file.name):
                file.unlink()
        failures = self.folder / FAILURES
        if failures.is_file():
            with failures.open("rb+") as lines:
                for _ in range(self._failures):
                    lines.readline()
                if lines.tell() < failures.stat().st_size:
                    lines.truncate()

    def _drop_parts(self, first: int) -> None:
        """Remove parts from number `first` on, backwards and each after its marker: it may be killed at any point."""
        for file in sorted(self.folder.glob("part-*"), reverse=True):
            part = _PART.fullmatch(file.name)
            if part and int(part[1]) >= first:
                file.unlink()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder until the block, or the process, ends. Raises OutputError where another process does."""
    # A file object, not a handle: wherever an interruption strikes, it is closed with the last reference.
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise OutputError(
                f"another run (process {file.read(32) or 'unknown'}) is writing to {folder}: wait for it, or choose "
                "another --out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _is_ours(file: Path) -> bool:
    return file.name == LOCK or _TEMPORARY.fullmatch(file.name) is not None


def refuse_other(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Raise OutputError where the folder holds the results of a run with another fingerprint."""
    different = differences(read_run(folder).get("fingerprint", {}), dict(fingerprint))
    if different:
        raise OutputError(
            f"{folder} holds results of another run ({', '.join(different)}): "
            "choose another --out, or start anew with --overwrite"
        )


def shards_in(folder: Path) -> list[tuple[int, int]]:
    """Number of each shard whose folder is in this one, and how many there should be, in order."""
    matches = (SHARD.fullmatch(path.name) for path in folder.glob("shard-*-of-*"))
    return sorted((int(match[1]), int(match[2])) for match in matches if match)


def results_folders(folder: Path, *, partial: bool = False) -> list[Path]:
    """The folder, or the folders of all shards in it, in order.

    partial : of the shards, those that are there will do
    Raises OutputError where one is missing, or they are not of one number of shards.
    """
    shards = [] if (folder / RUN).is_file() else shards_in(folder)
    if not shards:
        return [folder]
    counts = {count for _, count in shards}
    missing = [str(number) for number in sorted(set(range(max(counts))) - {shard for shard, _ in shards})]
    if len(counts) > 1:
        raise OutputError(f"{folder} holds shards of {len(counts)} different numbers: give one shard's folder")
    if missing and not partial:
        raise OutputError(
            f"{folder} lacks shards {', '.join(missing)} of {max(counts)}: caption them, or give one shard's folder"
        )
    return [folder / shard_name(shard, count) for shard, count in shards]


def shard_name(shard: int, shards: int) -> str:
    """The name of a shard's folder inside the folder of results."""
    return f"shard-{shard:04d}-of-{shards:04d}"


def committed_parts(folder: Path) -> list[Marker]:
    """Commit markers in order, up to the first gap."""
    markers: list[Marker] = []
    while (path := folder / f"part-{len(markers):05d}.stats.json").is_file():
        markers.append(structure(_read_json(path), Marker, source=str(path), error=OutputError))
    return markers


def read_run(folder: Path) -> dict[str, Any]:
    """run.json. Raises OutputError where the folder holds no results."""
    if not (folder / RUN).is_file():
        raise OutputError(f"{folder} holds no results (no {RUN}): give a folder that `saccade caption --out` wrote")
    values: dict[str, Any] = structure(
        _read_json(folder / RUN), dict[str, Any], source=str(folder / RUN), error=OutputError
    )
    return values


def read_records(folder: Path) -> Iterator[Record]:
    """Every committed record, in the order it was written."""
    for number, marker in enumerate(committed_parts(folder)):
        yield from _read_lines(folder / f"part-{number:05d}.jsonl", marker.records, Record.from_json)


def read_failures(folder: Path) -> Iterator[Failure]:
    """Every committed failure that was not tried again."""
    parts = committed_parts(folder)
    first, last = _failures_from(folder), parts[-1].failures_total if parts else 0
    if last > first:
        lines = _read_lines(folder / FAILURES, last, lambda values: Failure(**values))
        yield from islice(lines, first, None)


def done_names(folder: Path, *, with_failures: bool = True) -> Iterator[str]:
    """Names in committed records and failures, one after the other."""
    yield from (record.path for record in read_records(folder))
    yield from (failure.path for failure in read_failures(folder)) if with_failures else ()


def _failures_from(folder: Path) -> int:
    """Lines of failures.jsonl that count no more, because their images were tried again."""
    first: int = structure(
        read_run(folder).get("failures_from", 0), int, source=f"{folder / RUN}: failures_from", error=OutputError
    )
    return first


def _read_lines(path: Path, count: int, parse: Callable[[Any], T]) -> Iterator[T]:
    """The first `count` lines of a file, which has at least so many."""
    found = 0
    try:
        with path.open(encoding="utf-8") as file:
            for line in islice(file, count):
                yield parse(json.loads(line))
                found += 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{path} is damaged at line {found + 1} ({error}): run again with --overwrite") from error
    if found < count:
        raise OutputError(f"{path} is damaged: {found} lines, expected {count}: run again with --overwrite")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read as JSON ({error}): run again with --overwrite") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}): free some space or choose another --out, "
            "then run the same command again"
        ) from error
