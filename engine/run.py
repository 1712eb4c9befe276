"""One captioning run into a results folder: find, caption, commit, count."""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from engine.captioner import Captioner, CaptionOptions
from engine.images import ScanOptions, Source
from engine.names import Meeting, Names, Selection
from engine.pipeline import Stages
from engine.records import Failure, Record
from engine.results import RUN, ResultsWriter, Totals, done_names, refuse_other, shard_name, shards_in
from engine.sources import count_images, find_images
from saccade import __version__
from saccade.bundle import Bundle
from saccade.errors import OutputError, SaccadeError
from saccade.memory import give_back
from saccade.progress import Reporter

PART_SIZE = 1000
PART_INTERVAL_S = 30.0
"""A part is committed after so many results or so many seconds: what a power failure costs at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Which images a run captions, and what becomes of earlier results.

    scan : how images are found
    selection : which of them are captioned
    overwrite : throw away what the folder holds
    retry_failures : try again what could not be read
    """

    scan: ScanOptions = field(default_factory=ScanOptions)
    selection: Selection = field(default_factory=Selection)
    overwrite: bool = False
    retry_failures: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did: totals of its folder, how many of them are of this run, how fast, and what held it back.

    stages : for each stage of the pipeline, which part of the time its threads worked, 0 to 1
    most_waiting : the most results that waited behind a stage: images found, batches encoded, batches searched
    """

    folder: Path
    totals: Totals
    captioned_now: int
    failed_now: int
    seconds: float
    stages: dict[str, float]
    most_waiting: dict[str, int]
    bottleneck: str

    @property
    def images_per_s(self) -> float:
        """Results, captions and failures alike, per second of the run."""
        return (self.captioned_now + self.failed_now) / max(self.seconds, 1e-9)

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        return {
            "captioned": self.captioned_now,
            "failed": self.failed_now,
            "seconds": round(self.seconds, 3),
            "images_per_s": round(self.images_per_s, 3),
            "stages": {name: round(share, 4) for name, share in self.stages.items()},
            "most_waiting": self.most_waiting,
            "bottleneck": self.bottleneck,
        }


def run(
    captioner: Captioner,
    inputs: Sequence[str],
    folder: Path,
    options: RunOptions | None = None,
    *,
    reporter: Reporter,
    stop: threading.Event | None = None,
    during: AbstractContextManager[object] | None = None,
    show: Callable[[Record | Failure], None] = lambda _: None,
) -> Summary:
    """Caption every image that `folder` does not hold yet. `show` gets each result once it is committed.

    inputs : what `find_images` knows
    folder : of one shard among several, its own folder in this one gets the results
    stop : once it is set, images that are begun are finished and committed, and the run ends
    during : entered for the time in which `stop` is heeded
    Raises DataError if nothing is found, and OutputError if the folder belongs to another run.
    """
    options, stages = options or RunOptions(), Stages()
    selection = options.selection
    folder = folder_of(folder, selection)
    found = find_images(inputs, options.scan)
    first = next(found)  # where there is none, its error comes before anything is written
    fingerprint = _fingerprint(captioner.bundle, captioner.options, inputs, options)
    again = {"overwrite": options.overwrite, "retry_failures": options.retry_failures}
    with (
        ResultsWriter(folder, fingerprint, _details(captioner), **again) as writer,
        Names(writer.done()) as names,
    ):
        before = writer.totals
        waiting = (source for source, state in _selected(chain([first], found), selection, names) if state == "new")
        results = captioner.caption(waiting, stop=stop, stages=stages)
        stages.expect("write")
        with reporter.task("captioning", None, unit="images") as update, during or nullcontext(), closing(results):
            expected, found_now = _Expected(options, done=before.captioned + before.failed), 0
            if not reporter.is_quiet:  # it finds all images once more
                expected.count(inputs)
            for found_now in _committed(writer, results, stages, show):
                failed = writer.totals.failed - before.failed
                update(found_now, total=expected.at_least(found_now), **({"failures": failed} if failed else {}))
            update(found_now, total=found_now)
        summary = _summary(folder, before, writer.totals, stages)
        complete = stop is None or not stop.is_set()
        writer.note(last_run=summary.as_json() | {"complete": complete} | _ran_on(captioner))
    return summary


def _summary(folder: Path, before: Totals, after: Totals, stages: Stages) -> Summary:
    return Summary(
        folder=folder,
        totals=after,
        captioned_now=after.captioned - before.captioned,
        failed_now=after.failed - before.failed,
        seconds=time.monotonic() - stages.began,
        stages=stages.shares(),
        most_waiting={name: stage.most_waiting for name, stage in stages.by_name.items() if stage.most_waiting},
        bottleneck=stages.bottleneck,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a run would meet: images that are done, that wait, and names that came more than once."""

    done: int
    waiting: int
    again: int


def survey(
    bundle: Bundle, caption: CaptionOptions, inputs: Sequence[str], folder: Path | None, options: RunOptions
) -> Survey:
    """Find what `run` would caption, read no image and write nothing. Raises what `run` would raise until then."""
    done: Iterable[str] = ()
    if folder is not None and not options.overwrite:
        folder = folder_of(folder, options.selection)
        if (folder / RUN).is_file():
            refuse_other(folder, _fingerprint(bundle, caption, inputs, options))
            done = done_names(folder, with_failures=not options.retry_failures)
    found: Counter[str] = Counter()
    with Names(done) as names:
        for _, state in _selected(find_images(inputs, options.scan), options.selection, names):
            found[state] += 1
    return Survey(done=found["done"], waiting=found["new"], again=found["again"])


def selected(inputs: Sequence[str], options: RunOptions) -> Iterator[Source]:
    """What a run without a folder captions: each image once."""
    with Names() as names:
        for source, state in _selected(find_images(inputs, options.scan), options.selection, names):
            if state == "new":
                yield source


def folder_of(folder: Path, selection: Selection) -> Path:
    """Where a run writes that was told this folder. Raises OutputError where another kind of run has written there."""
    present = {count for _, count in shards_in(folder)}
    if selection.shards == 1 and not present:
        return folder
    if (folder / RUN).is_file():
        raise OutputError(f"{folder} holds the results of a run without shards: choose another --out")
    if present - {selection.shards}:
        raise OutputError(
            f"{folder} holds results of {', '.join(map(str, sorted(present)))} shards, not of {selection.shards}: "
            "give the same number, or choose another --out"
        )
    return folder / shard_name(selection.shard, selection.shards)


def _selected(sources: Iterable[Source], selection: Selection, names: Names) -> Iterator[tuple[Source, Meeting]]:
    """The sources that the selection holds, and what is known of their names."""
    kept = 0
    for source in sources if selection.limit != 0 else ():
        if selection.has(source.name):
            state = names.meet(source.name)
            kept += state != "again"
            yield source, state
        if kept == selection.limit:
            return


def _committed(
    writer: ResultsWriter, results: Iterable[Record | Failure], stages: Stages, show: Callable[[Record | Failure], None]
) -> Iterator[int]:
    """Commit results in parts; how many there are so far, after each."""
    part: list[Record | Failure] = []
    begun = time.monotonic()

    def commit() -> None:
        nonlocal part, begun
        whole, part, begun = part, [], time.monotonic()  # first: an interrupted commit is never repeated
        with stages.working("write"):
            writer.commit(whole)
            give_back()
        for result in whole:
            show(result)

    try:
        for number, result in enumerate(results, start=1):
            part.append(result)
            yield number
            if len(part) == PART_SIZE or time.monotonic() - begun >= PART_INTERVAL_S:
                commit()
    finally:
        if part:  # interrupted or not, what is captioned counts
            commit()


class _Expected:
    """How many images a run will caption, counted beside it where that is cheap. `images` is None until it is known."""

    def __init__(self, options: RunOptions, *, done: int) -> None:
        self.images: int | None = None
        self._options, self._done = options, done

    def count(self, inputs: Sequence[str]) -> None:
        """Begin to count, in a thread of its own."""
        threading.Thread(target=self._find_out, args=(inputs,), name="saccade-count", daemon=True).start()

    def at_least(self, found: int) -> int | None:
        """The number, which is an estimate where shards or samples are taken, but not below what was found."""
        return None if self.images is None else max(self.images, found)

    def _find_out(self, inputs: Sequence[str]) -> None:
        selection = self._options.selection
        with suppress(SaccadeError):  # the run itself meets it
            found = count_images(inputs, self._options.scan)
            if found is not None:
                chosen = round(found * selection.sample / selection.shards)
                limit = chosen if selection.limit is None else min(chosen, selection.limit)
                self.images = max(limit - self._done, 0)


def _fingerprint(bundle: Bundle, caption: CaptionOptions, inputs: Sequence[str], options: RunOptions) -> dict[str, Any]:
    return {
        "bundle": bundle.fingerprint,
        "preprocessing": bundle.manifest.preprocessing.fingerprint(),
        "search": asdict(caption.search_options(bundle)),
        "attention": caption.attention,
        "precision": caption.precision,
        "shard": [options.selection.shard, options.selection.shards],
        "column": options.scan.column,
        # Elsewhere, the same relative path would be another image that counts as done.
        "relative_to": None if all(map(_is_absolute, inputs)) else str(Path.cwd()),
    }


def _is_absolute(given: str) -> bool:
    return "://" in given or Path(given).is_absolute()


def _details(captioner: Captioner) -> dict[str, Any]:
    return {
        "geometry": captioner.bundle.manifest.preprocessing.geometry,
        "bundle_path": str(captioner.bundle.path.resolve()),
        "working_directory": str(Path.cwd()),
    } | _ran_on(captioner)


def _ran_on(captioner: Captioner) -> dict[str, Any]:
    return {
        "backend": captioner.backend.description,
        "versions": {"saccade": __version__, "python": platform.python_version()},
    }
