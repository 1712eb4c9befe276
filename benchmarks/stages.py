"""The way of one batch from files to records, stage after stage in one thread.

`saccade caption` works on several batches at once; here nothing overlaps, so that the stages add up to the whole.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.stopwatch import Stopwatch
from benchmarks.timed_backend import TimedDecoding, timed_transfers
from engine.backends.base import Backend
from engine.records import Record
from saccade.bundle import Bundle
from saccade.hypotheses import Hypothesis
from saccade.preprocessing import load_image
from saccade.search import SearchOptions, search

STAGES = ("read", "decode", "upload", "encode", "search", "step", "download", "detokenise", "write")
"""In the order of the way. Search is the loop around the steps: when to stop, and which caption is best."""

Write = Callable[[Sequence[Record]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Means over the batches, so that they add up.

    wall_ms : from the first file to the record, by a clock around everything
    by_stage_ms : of the stages, without what is counted in another one; what is left of the wall is in none
    steps : of the step graph
    """

    wall_ms: float
    by_stage_ms: dict[str, float]
    steps: float

    @property
    def search_total_ms(self) -> float:
        """Search, its steps and what they bring to the host."""
        return sum(self.by_stage_ms[name] for name in ("search", "step", "download"))

    @property
    def per_step_ms(self) -> float:
        """The search by its steps."""
        return self.search_total_ms / max(self.steps, 1.0)


class Way(NamedTuple):
    """What a batch passes through."""

    bundle: Bundle
    backend: Backend
    search: SearchOptions
    write: Write


def measure_stages(way: Way, batches: Sequence[Sequence[Path]], watch: Stopwatch, *, warm_up: int = 1) -> StageTimes:
    """Send batches on their way, the first ones for nothing but warmth. Their images have to be readable."""
    walls, spent, steps = [], [], []
    with timed_transfers(way.backend, watch):
        for number, batch in enumerate([*batches[:warm_up], *batches]):
            watch.reset()
            began = watch.clock()
            send(way, batch, watch)
            if number >= warm_up:
                walls.append(watch.clock() - began)
                spent.append(dict(watch.spent))
                steps.append(watch.calls["step"])
    return StageTimes(
        wall_ms=1000 * statistics.fmean(walls),
        by_stage_ms={name: 1000 * statistics.fmean(one.get(name, 0.0) for one in spent) for name in STAGES},
        steps=statistics.fmean(steps),
    )


def send(way: Way, batch: Sequence[Path], watch: Stopwatch) -> None:
    """Send a batch all its way."""
    bundle, backend, options, write = way
    spec, vocabulary = bundle.manifest.preprocessing, bundle.vocabulary
    with watch.stage("read"):
        contents = [path.read_bytes() for path in batch]
    with watch.stage("decode"):
        images = zip(contents, batch, strict=True)
        pixels = np.stack([load_image(content, spec, name=str(path)) for content, path in images])
    with watch.stage("encode"):
        decoding = backend.begin(pixels, options, with_alphas=False)
    with watch.stage("search"):
        found = search(TimedDecoding(decoding, watch), vocabulary, options)
    with watch.stage("detokenise"):
        records = [_record(bundle, str(path), best) for path, (best, *_) in zip(batch, found, strict=True)]
    with watch.stage("write"):
        write(records)


def _record(bundle: Bundle, name: str, best: Hypothesis) -> Record:
    return Record(
        path=name,
        caption=bundle.vocabulary.sentence(best.tokens),
        score=best.score,
        tokens=best.tokens,
        words=bundle.vocabulary.decode(best.tokens),
        truncated=best.truncated,
    )
