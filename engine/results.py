"""The results folder: committed parts, failures, and what the run was.

    run.json               the fingerprint of the run: bundle, preprocessing, options, versions
    part-00000.jsonl       one record a line, written whole and renamed
    part-00000.stats.json  the commit marker of the part: written last
    failures.jsonl         one line per image that could not be read

A part without its marker never happened. Failures are appended before the marker, which says how many lines count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.records import Failure, Record
from saccade.errors import OutputError
from saccade.files import write_atomically, write_json

RUN, FAILURES = "run.json", "failures.jsonl"


@dataclass(frozen=True, slots=True)
class Totals:
    """Images captioned and images failed, in committed parts."""

    captioned: int
    failed: int


class ResultsWriter:
    """Adds parts to a results folder, continuing after the last committed one.

    fingerprint : what must be equal for two runs to belong together
    details : what else run.json tells (versions, the options as they were given)
    Raises OutputError where the folder holds another run's results.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        self.folder = folder
        self._prepare(dict(fingerprint), dict(details))
        parts = committed_parts(folder)
        self._next_part = len(parts)
        self._failures = parts[-1]["failures_total"] if parts else 0
        self._captioned = sum(part["records"] for part in parts)
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
        """Write one part; it counts once this returns."""
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
        write_json(
            self.folder / f"{name}.stats.json",
            {"records": len(records), "failures": len(failures), "failures_total": self._failures},
        )

    def _prepare(self, fingerprint: dict[str, Any], details: dict[str, Any]) -> None:
        run = self.folder / RUN
        if run.is_file():
            before = _read_json(run).get("fingerprint", {})
            if before != fingerprint:
                changed = sorted(k for k in fingerprint.keys() | before.keys() if fingerprint.get(k) != before.get(k))
                raise OutputError(
                    f"{self.folder} holds results of another run (different {', '.join(changed)}): "
                    "choose another --out, or start anew with --overwrite"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise OutputError(f"{self.folder} is not empty and holds no results: choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(run, {"fingerprint": fingerprint} | details)

    def _drop_uncommitted(self) -> None:
        orphan = self.folder / f"part-{self._next_part:05d}.jsonl"
        orphan.unlink(missing_ok=True)
        failures = self.folder / FAILURES
        if failures.is_file():
            lines = failures.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
            if len(lines) > self._failures:
                write_atomically(failures, "".join(lines[: self._failures]))


def committed_parts(folder: Path) -> list[dict[str, Any]]:
    """Commit markers in order, up to the first gap."""
    markers: list[dict[str, Any]] = []
    while (marker := folder / f"part-{len(markers):05d}.stats.json").is_file():
        markers.append(_read_json(marker))
    return markers


def read_run(folder: Path) -> dict[str, Any]:
    """run.json. Raises OutputError where the folder holds no results."""
    if not (folder / RUN).is_file():
        raise OutputError(f"{folder} holds no results (no {RUN}): give a folder that `saccade caption --out` wrote")
    return _read_json(folder / RUN)


def read_records(folder: Path) -> Iterator[Record]:
    """Every committed record, in the order it was written."""
    for number in range(len(committed_parts(folder))):
        part = folder / f"part-{number:05d}.jsonl"
        with _open(part) as file:
            for line in file:
                try:
                    yield Record.from_json(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise OutputError(f"{part} is damaged ({error}): run again with --overwrite") from error


def read_failures(folder: Path) -> Iterator[Failure]:
    """Every committed failure."""
    parts = committed_parts(folder)
    total = parts[-1]["failures_total"] if parts else 0
    if total:
        with _open(folder / FAILURES) as file:
            for _, line in zip(range(total), file, strict=False):
                yield Failure(**json.loads(line))


def _open(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror}): run again with --overwrite") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be read as JSON ({error}): run again with --overwrite") from error
    return value


def _line(value: Mapping[str, Any]) -> str:
    # ASCII only: file names that are not UTF-8 travel as escaped surrogates, and every line stays valid JSON.
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"
