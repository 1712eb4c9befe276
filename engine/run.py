"""One captioning run into a results folder: find, caption, commit, count."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.captioner import Captioner
from engine.records import Failure, Record
from engine.results import ResultsWriter, Totals
from engine.sources import find_images
from saccade import __version__
from saccade.progress import Reporter

PART_SIZE = 1000
"""Results per part: what a power failure can cost at most. An interruption costs nothing."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did: totals of the folder, how many of them are of this run, and how fast."""

    totals: Totals
    captioned_now: int
    seconds: float


def run(
    captioner: Captioner,
    paths: Sequence[Path],
    folder: Path,
    *,
    overwrite: bool = False,
    reporter: Reporter,
    show: Callable[[Record | Failure], None] = lambda _: None,
) -> Summary:
    """Caption every image that `folder` does not hold yet. `show` gets each result once it is committed.

    overwrite : throw away what `folder` holds
    Raises DataError if nothing is found, and OutputError if the folder belongs to another run.
    """
    images = list(find_images(paths))
    writer = ResultsWriter(folder, _fingerprint(captioner, paths), _details(captioner), overwrite=overwrite)
    done = writer.done()
    waiting = [image for image in images if str(image) not in done]
    began, part = time.monotonic(), list[Record | Failure]()

    def commit() -> None:
        nonlocal part
        results, part = part, []  # first, so that an interruption in the middle of a commit never repeats it
        writer.commit(results)
        for result in results:
            show(result)

    before = writer.totals
    with reporter.task("captioning", len(waiting), unit="images") as progress:
        failed = 0
        try:
            for done_now, result in enumerate(captioner.caption(waiting), start=1):
                part.append(result)
                failed += isinstance(result, Failure)
                progress(done_now, **({"failures": failed} if failed else {}))
                if len(part) == PART_SIZE:
                    commit()
        finally:
            if part:  # interrupted or not, what is captioned counts
                commit()
    return Summary(writer.totals, writer.totals.captioned - before.captioned, time.monotonic() - began)


def _fingerprint(captioner: Captioner, paths: Sequence[Path]) -> dict[str, Any]:
    return {
        "bundle": captioner.bundle.fingerprint,
        "preprocessing": captioner.bundle.manifest.preprocessing.fingerprint(),
        "search": asdict(captioner.search_options),
        "attention": captioner.options.attention,
        # Elsewhere, the same relative path would be another image that counts as done.
        "relative_to": None if all(path.is_absolute() for path in paths) else str(Path.cwd()),
    }


def _details(captioner: Captioner) -> dict[str, Any]:
    return {
        "geometry": captioner.bundle.manifest.preprocessing.geometry,
        "bundle_path": str(captioner.bundle.path.resolve()),
        "working_directory": str(Path.cwd()),
        "backend": captioner.backend.description,
        "versions": {"saccade": __version__, "python": platform.python_version()},
    }
