"""Where records are read from: a results folder, the folders of a run's shards, or one file of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from engine.coco import read_coco
from engine.record_files import read_csv, read_jsonl, read_parquet
from engine.records import Record
from engine.results import committed_parts, read_records, read_run, results_folders
from saccade.errors import OutputError
from saccade.structure import structure

_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".json": read_coco,
}
_DETAILS = {"score": 0.0, "tokens": [], "words": [], "truncated": False}
"""What coco and txt can do without."""


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Records that can be read again and again, and are the same each time.

    read : yields them in order; raises OutputError where they are damaged
    count : their number, None where only reading tells
    base : the folder that relative paths are relative to
    """

    read: Callable[[], Iterator[Record]]
    count: int | None
    base: Path


def record_sources(place: Path, *, whole: bool = True, partial: bool = False) -> list[RecordSource]:
    """Open a results folder, a folder of shards, or a file named .jsonl, .csv, .parquet or .json (COCO results).

    whole : refuse records of files that have a path and a caption only
    partial : take the shards that are there
    Raises OutputError where there is nothing to read, or a shard is missing.
    """
    if place.is_dir():
        return [_folder(folder) for folder in results_folders(place, partial=partial)]
    if place.suffix.lower() not in _READERS:
        raise OutputError(f"{place} is no results folder and not named {', '.join(_READERS)}: give one of these")
    return [_file(place, whole)]


def _folder(folder: Path) -> RecordSource:
    base = Path(read_run(folder)["working_directory"])
    count = sum(part.records for part in committed_parts(folder))
    # A run may be writing to the folder: what it commits from now on is not read.
    return RecordSource(lambda: islice(read_records(folder), count), count, base)


def _file(path: Path, whole: bool) -> RecordSource:
    return RecordSource(lambda: _read_file(path, whole), None, Path.cwd())


def _read_file(path: Path, whole: bool) -> Iterator[Record]:
    number = 0
    try:
        for number, values in enumerate(_READERS[path.suffix.lower()](path), start=1):
            yield _record(values, f"{path}, record {number}", whole)
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} is damaged after record {number} ({error}): write it anew") from error


def _record(values: Any, place: str, whole: bool) -> Record:
    """Check the values and make a record of them; what a record does not know is passed over."""
    if not isinstance(values, dict):
        raise OutputError(f"{place}: expected an object, got {type(values).__name__}")
    known = {field.name: values[field.name] for field in fields(Record) if values.get(field.name) is not None}
    missing = [name for name in _DETAILS if name not in known]
    if whole and missing:
        raise OutputError(
            f"{place} has no {', '.join(missing)}: from paths and captions alone only coco and txt can be made; "
            "give the results folder they came from"
        )
    return structure(_DETAILS | known, Record, source=place, error=OutputError)
