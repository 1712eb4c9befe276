"""Whether something became slow: `python -m benchmarks.guard`.

Measured are ratios, never times, so that they mean the same on every machine; each is higher where Saccade is better:

batch_16 : images per second in batches of 16, by those in batches of 1
ort : images per second with ONNX Runtime, by those of eager PyTorch with random weights of the same sizes
beam_1 : images per second of greedy search, by those of beam 3
encode : seconds of encoding, by those of the search after it; it falls where the search becomes slow

All sides take 12 steps for every image and one thread, of which the time on a processor counts: other processes take
none of it. They take turns, and medians over the turns are compared with the committed figures. A ratio below 60 % of
its figure fails: machines differ in their ratios, too. Left out is all that waits, such as disks: that is for
`saccade benchmark`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.machine import this_machine
from engine.backends.base import Backend, open_backend
from saccade.bundle import Bundle
from saccade.decoding import Decoding
from saccade.errors import DataError
from saccade.files import write_json
from saccade.search import SearchOptions, search
from saccade.structure import structure
from training.decoding import TorchDecoder
from training.encoders import EncoderOptions
from training.model import DecoderOptions, build_captioner

FIGURES = Path(__file__).parent.parent / "docs" / "results" / "guard.json"

TOLERATED = 0.6
"""Of a committed ratio, what still passes."""

_STEPS = 12
_BATCH = 16
_SEARCH = SearchOptions(beam=3, max_length=_STEPS, min_length=_STEPS - 1, n_best=3)
"""With as many hypotheses as rows, and none that may end before, no search ends early."""

Sides = Mapping[str, Callable[[], float]]
"""Do some work and tell its seconds by image; by name."""


def measure(bundle: Bundle, *, rounds: int) -> dict[str, float]:
    """The ratios, on random pixels."""
    size = bundle.manifest.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (_BATCH, size, size, 3), np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with open_backend("ort", bundle, threads=1) as backend:
            return ratios(medians(_sides(bundle, backend, pixels), rounds=rounds))
    finally:
        torch.set_num_threads(threads)


def medians(sides: Sides, *, rounds: int) -> dict[str, float]:
    """Median seconds of every side; each has a turn in every round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            seconds = side()
            if number:
                found[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """What is guarded, from the seconds of all sides."""
    return {
        "batch_16": seconds["one by one"] / seconds["batch"],
        "ort": seconds["eager"] / seconds["batch"],
        "beam_1": seconds["batch"] / seconds["greedy"],
        "encode": seconds["encode"] / seconds["search"],
    }


def fallen(found: Mapping[str, float], committed: Mapping[str, float]) -> list[str]:
    """Ratios that are below what is tolerated. Raises DataError where others were committed."""
    if found.keys() != committed.keys():
        raise DataError(f"{FIGURES} has {', '.join(committed)}: renew it with `python -m benchmarks.guard --write`")
    return [name for name, ratio in found.items() if ratio < TOLERATED * committed[name]]


def _sides(bundle: Bundle, backend: Backend, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Sides:
    vocabulary = bundle.vocabulary
    eager = _eager(bundle)
    greedy = replace(_SEARCH, beam=1, n_best=1)

    def begin(count: int = _BATCH, options: SearchOptions = _SEARCH) -> Decoding:
        return backend.begin(pixels[:count], options, with_alphas=False)

    def caption(count: int = _BATCH, options: SearchOptions = _SEARCH) -> object:
        return search(begin(count, options), vocabulary, options)

    def search_alone() -> float:
        decoding = begin()
        return timed(lambda: search(decoding, vocabulary, _SEARCH))

    return {
        "batch": lambda: timed(caption) / _BATCH,
        "one by one": lambda: timed(lambda: [caption(1) for _ in range(4)]) / 4,
        "greedy": lambda: timed(lambda: caption(options=greedy)) / _BATCH,
        "encode": lambda: timed(begin) / _BATCH,
        "search": lambda: search_alone() / _BATCH,
        "eager": lambda: timed(lambda: eager.search(pixels, _SEARCH)) / _BATCH,
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds that the processors work on it, in this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _eager(bundle: Bundle) -> TorchDecoder:
    """The bundle's model with random weights: the bundle need not hold its own."""
    model, spec, source = bundle.manifest.model, bundle.manifest.preprocessing, str(bundle.path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        captioner = build_captioner(
            replace(structure(model["encoder"], EncoderOptions, source=source, error=DataError), weights="none"),
            structure(model["decoder"], DecoderOptions, source=source, error=DataError),
            words=len(bundle.vocabulary),
            mean=spec.mean,
            std=spec.std,
        )
    return TorchDecoder(captioner.eval(), bundle.vocabulary)


@click.command()
@click.option("--bundle", default="examples/bundle", show_default=True, type=click.Path(path_type=Path))
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Turns of each side.")
@click.option("--write", is_flag=True, help=f"Make what is found the figures in docs/results/{FIGURES.name}.")
def main(bundle: Path, rounds: int, write: bool) -> None:
    """Compare ratios of speeds with the committed ones. The last line is JSON; exits with 1 where one fell."""
    opened, machine = Bundle.open(bundle), this_machine()
    found = measure(opened, rounds=rounds)
    record = {"benchmark": "guard", "ratios": found, "bundle": opened.fingerprint, "machine": asdict(machine)}
    if write:
        write_json(FIGURES, record)
    committed = json.loads(FIGURES.read_text(encoding="utf-8"))["ratios"]
    slow = fallen(found, committed)
    for name, ratio in found.items():
        verdict = "FELL" if name in slow else "ok"
        click.echo(f"{name:<10}{ratio:>8.2f}  committed {committed[name]:>8.2f}  {verdict}")
    click.echo(json.dumps(record | {"fell": slow}))
    if slow:
        sys.exit(1)


if __name__ == "__main__":
    main()
