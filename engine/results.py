"""The results folder: committed parts, failures, and what the run was.

    run.json               the fingerprint of the run: bundle, preprocessing, options, versions
    part-00000.jsonl       one record a line, written whole and renamed
    part-00000.stats.json  the commit marker of the part: written last
    failures.jsonl         one line per image that could not be read

A part without its marker never happened. Failures are appended before the marker, which says how many lines count.
One run at a time may write to a folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from engine.records import Failure, Record
from saccade.errors import OutputError
from saccade.files import differences, write_atomically, write_json
from saccade.structure import structure

RUN, FAILURES = "run.json", "failures.jsonl"

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
    """Adds parts to a results folder, continuing after the last committed one.

    fingerprint : what must be equal for two runs to belong together
    details : what else run.json tells (versions, the options as they were given)
    overwrite : throw away the results that the folder holds; other files in it stay
    Raises OutputError where the folder holds another run's results, or cannot be written.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], details: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.folder = folder
        with _writing(folder):
            self._prepare(dict(fingerprint), dict(details), overwrite)
            parts = committed_parts(folder)
            self._next_part = len(parts)
            self._failures = parts[-1].failures_total if parts else 0
            self._captioned = sum(part.records for part in parts)
            self._drop_uncommitted()

    @property
    def totals(self) -> Totals:
        """What is committed so far."""
        return Totals(self._captioned, self._failures)

    def done(self) -> set[str]:
        """Paths that a committed part or failure names."""
        return {record.path for record in read_records(self.folder)} | {
            failure.path for failure in read_failures(self.folder)
        }

    def commit(self, results: Sequence[Record | Failure]) -> None:
        """Write one part; it counts once this returns. Raises OutputError if it cannot be written."""
        with _writing(self.folder):
            self._commit(results)

    def _commit(self, results: Sequence[Record | Failure]) -> None:
        records = [result for result in results if isinstance(result, Record)]
        failures = [result for result in results if isinstance(result, Failure)]
        if failures:
            with (self.folder / FAILURES).open("a", encoding="utf-8") as file:
                file.writelines(_line(asdict(failure)) for failure in failures)
                file.flush()
                os.fsync(file.fileno())
        name = f"part-{self._next_part:05d}"
        write_atomically(self.folder / f"{name}.jsonl", "".join(_line(record.as_json()) for record in records))
        self._failures += len(failures)
        self._captioned += len(records)
        self._next_part += 1
        marker = Marker(records=len(records), failures=len(failures), failures_total=self._failures)
        write_json(self.folder / f"{name}.stats.json", asdict(marker))

    def _prepare(self, fingerprint: dict[str, Any], details: dict[str, Any], overwrite: bool) -> None:
        run = self.folder / RUN
        if run.is_file() and not overwrite:
            different = differences(read_run(self.folder).get("fingerprint", {}), fingerprint)
            if different:
                raise OutputError(
                    f"{self.folder} holds results of another run ({', '.join(different)}): "
                    "choose another --out, or start anew with --overwrite"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not run.is_file() and any(not _TEMPORARY.fullmatch(file.name) for file in self.folder.iterdir()):
            raise OutputError(f"{self.folder} is not empty and holds no results: choose another --out")
        self._drop_parts(0)
        write_json(run, {"fingerprint": fingerprint} | details)

    def _drop_uncommitted(self) -> None:
        self._drop_parts(self._next_part)
        for file in self.folder.iterdir():
            if _TEMPORARY.fullmatch(file.name):
                file.unlink()
        failures = self.folder / FAILURES
        if failures.is_file():
            lines = failures.read_bytes().splitlines(keepends=True)
            if len(lines) > self._failures:
                write_atomically(failures, b"".join(lines[: self._failures]).decode())

    def _drop_parts(self, first: int) -> None:
        """Remove parts from number `first` on, backwards and each after its marker: it may be killed at any point."""
        for file in sorted(self.folder.glob("part-*"), reverse=True):
            part = _PART.fullmatch(file.name)
            if part and int(part[1]) >= first:
                file.unlink()


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
    """Every committed failure."""
    parts = committed_parts(folder)
    if parts and parts[-1].failures_total:
        yield from _read_lines(folder / FAILURES, parts[-1].failures_total, lambda values: Failure(**values))


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


def _line(value: Mapping[str, Any]) -> str:
    # ASCII only: file names that are not UTF-8 travel as escaped surrogates, and every line stays valid JSON.
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"
