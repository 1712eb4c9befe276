"""Results in another form: one file of records, COCO results, or a sidecar for each image.

The results folder stays what counts; whatever is made of it can be made again. Memory does not grow with the records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from engine.coco import image_ids, write_coco
from engine.record_files import write_csv, write_jsonl, write_parquet
from engine.record_sources import RecordSource, record_sources
from engine.records import Record
from engine.sidecars import Entry, SidecarOptions, check_sidecars, write_sidecars
from saccade.errors import ConfigError, OutputError
from saccade.files import replaced
from saccade.progress import Reporter, Update

Format = Literal["jsonl", "csv", "parquet", "coco", "txt"]

FORMAT_FROM_SUFFIX: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet", ".json": "coco"}

_WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """What is made of records.

    format : jsonl, csv, parquet: files of records; coco: a results list; txt: sidecars
    out : the file; None for sidecars, whose places follow from the images'
    overwrite : replace the file if it exists
    partial : of a run in shards, take those that are there
    ids : of coco, see `engine.coco.image_ids`
    sidecars : of txt
    """

    format: Format
    out: Path | None = None
    overwrite: bool = False
    partial: bool = False
    ids: str = "number"
    sidecars: SidecarOptions = field(default_factory=SidecarOptions)

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ConfigError(f"format must be one of {', '.join(get_args(Format))}, got {self.format!r}")
        if (self.format == "txt") != (self.out is None):
            raise ConfigError("every format but txt, whose sidecars are beside the images or below --root, needs --out")


@dataclass(frozen=True, slots=True)
class Conversion:
    """How many records were read, and of how many sidecars the content was left as it was."""

    records: int
    left: int = 0


def convert(place: Path, options: ConversionOptions, reporter: Reporter) -> Conversion:
    """Convert a results folder, a folder of shards or a file of records, see `engine.record_sources`.

    A file appears whole or not at all, and so does each sidecar.
    Raises OutputError where records cannot be read or the format cannot hold them, and where the file exists or cannot
    be written.
    """
    if options.out is not None and options.out.exists() and not options.overwrite:
        raise OutputError(f"{options.out} exists already: choose another --out, or overwrite it with --overwrite")
    sources = record_sources(place, whole=options.format not in ("coco", "txt"), partial=options.partial)
    if options.out is None:
        return _write_sidecars(sources, options.sidecars, reporter)
    return _write_file(sources, options, options.out, reporter)


class _Reading:
    """The records of all sources, counted as they are taken."""

    def __init__(self, sources: list[RecordSource], update: Update) -> None:
        self._sources, self._update = sources, update
        self.done = 0

    def entries(self) -> Iterator[Entry]:
        """Begin anew."""
        self.done = 0
        for source in self._sources:
            for record in source.read():
                yield source.base, record
                self.done += 1
                self._update(self.done)

    def records(self) -> Iterator[Record]:
        """Begin anew."""
        return (record for _, record in self.entries())


@contextmanager
def _reading(sources: list[RecordSource], name: str, reporter: Reporter) -> Iterator[_Reading]:
    counts = [source.count for source in sources if source.count is not None]
    with reporter.task(name, sum(counts) or None, unit="records") as update:
        yield _Reading(sources, update)


def _write_file(sources: list[RecordSource], options: ConversionOptions, out: Path, reporter: Reporter) -> Conversion:
    with _reading(sources, "converting", reporter) as reading, replaced(out) as file:
        if options.format == "coco":
            write_coco(file, reading.records, image_ids(options.ids))
        else:
            _WRITERS[options.format](file, reading.records())
    return Conversion(reading.done)


def _write_sidecars(sources: list[RecordSource], options: SidecarOptions, reporter: Reporter) -> Conversion:
    with _reading(sources, "checking names", reporter) as reading:
        check_sidecars(reading.entries, options)
    with _reading(sources, "writing sidecars", reporter) as reading:
        changed = sum(write_sidecars(reading.entries(), options))
    return Conversion(reading.done, left=reading.done - changed)
