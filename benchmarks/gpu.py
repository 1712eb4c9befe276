"""How fast a GPU captions, beside the common tutorial loop on the same GPU: `python -m benchmarks.gpu`.

Measured: images captioned per second of wall time, by backends of Saccade and by `benchmarks.tutorial_search` with its
modules on the GPU, one image at a time. All have the weights of one model with the sizes of the public one for COCO
(`benchmarks.imported` says which, and why they are random). Of each backend, precision, batch and beam:

resident : pixels that are on the GPU already: the time of their upload does not count; batch after batch
host : pixels in memory of the host; batch after batch
overlapped : the same, by the engine's threads: a batch is encoded while the one before is searched
encoder : of resident pixels, the encoder alone, which nothing can be faster than without overlap
same_words : share of images that get the words of eager PyTorch in float32 on the same GPU

And from JPEG files of 640 x 480 pixels, read and decoded by as many threads as there are cores, in one batch size.
Compiling, capturing and the first runs of each size are left out. The file is written after each figure.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.imported import TOLERANCE, ModelSizes, import_and_export, normalised, random_model, random_pixels
from benchmarks.machine import Machine, this_machine
from benchmarks.scenarios import InARow, Subject
from benchmarks.stopwatch import Stopwatch
from benchmarks.throughput import Measured, engine_side, write_photographs
from benchmarks.timed_backend import timed_transfers
from benchmarks.tutorial_search import MAX_STEPS, DecoderWithAttention, Encoder, caption_image
from benchmarks.windows import Spread, WindowOptions, in_turns, repeat
from engine.backends.base import open_backend
from engine.captioner import Captioner, CaptionOptions
from engine.pipeline import ahead, each
from export.bundle import ExportOptions
from saccade.bundle import Bundle, Precision
from saccade.errors import BackendError
from saccade.files import write_json
from saccade.search import SearchOptions, search

RESULTS = Path(__file__).parent / "results"

Pixels = NDArray[np.uint8]
Captions = Sequence[tuple[int, ...]]

_WINDOWS = WindowOptions(seconds=0.25, least=4, most=6)
_OVERLAPPED_S = 1.0
_LOOP_IMAGES = 16
_AGREEING = 64
"""Images whose captions are compared."""
_PHOTOGRAPHS = 512
"""Different files: more are captioned, each several times, as all are in memory anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Images per second of one backend in one size; the module says of what."""

    side: str
    runs_on: str
    batch: int
    beam: int
    resident: Spread
    host: Spread
    overlapped: float
    encoder: Spread
    same_words: float


class Report:
    """The result file."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        figures: dict[str, Any] = {"loop": {}, "rows": [], "files": [], "unavailable": {}}
        self._content = {"benchmark": "gpu", **about, **figures}

    def add(self, kind: str, value: Mapping[str, Any]) -> None:
        """Append to a list, or put into a mapping, and write the file."""
        known = self._content[kind]
        known.append(value) if isinstance(known, list) else known.update(value)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._content)

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Tell of what goes wrong in the block, and go on: memory can run out, and drivers refuse."""
        try:
            yield
        except (BackendError, RuntimeError) as error:
            self.add("unavailable", {what: str(error)})
            click.echo(f"{what}: not available here: {error}")


def measure_loop(
    encoder: Encoder, decoder: DecoderWithAttention, bundle: Bundle, pixels: Pixels, beam: int, *, device: str
) -> tuple[Spread, float]:
    """Images per second of the tutorial's loop on resident pixels, and the words of its captions on average."""
    torch.backends.cudnn.allow_tf32 = True  # as people run it
    encoder.to(device)
    decoder.to(device)
    images = cycle(normalised(pixels[:_LOOP_IMAGES]).to(device))
    words: list[int] = []

    def piece() -> tuple[float, float]:
        began = time.perf_counter()
        words.append(len(caption_image(encoder, decoder, next(images), bundle.vocabulary, beam)))
        return 1, time.perf_counter() - began

    for _ in range(_LOOP_IMAGES):
        piece()
    words.clear()
    return repeat(piece, _WINDOWS), statistics.fmean(words)


def measure_encoder(subject: Subject, batch: Pixels) -> Spread:
    """Images per second from resident pixels to the state of the first step."""
    watch = Stopwatch(time.perf_counter)

    def piece() -> tuple[float, float]:
        watch.reset()
        began = time.perf_counter()
        subject.backend.begin(batch, subject.search, with_alphas=False)
        return len(batch), time.perf_counter() - began - watch.spent["upload"]

    with timed_transfers(subject.backend, watch):
        subject.warm_up(batch)
        return repeat(piece, _WINDOWS)


def measure_overlapped(subject: Subject, batches: Sequence[Pixels], *, count: int) -> float:
    """Images per second of `count` batches in the engine's two threads."""
    began = time.perf_counter()
    encoded = each(
        lambda pixels: subject.backend.begin(pixels, subject.search, with_alphas=False), _taken(batches, count)
    )
    with closing(ahead(encoded, size=1, name="encode")) as decodings:
        done = sum(len(search(decoding, subject.bundle.vocabulary, subject.search)) for decoding in decodings)
    return done / (time.perf_counter() - began)


def _taken(batches: Sequence[Pixels], count: int) -> Generator[Pixels]:
    yield from islice(cycle(batches), count)


def measure_row(side: str, subject: Subject, pixels: Pixels, batch: int, expected: Captions) -> Row:
    """All figures of one size. Raises BackendError where it does not run."""
    numbers = np.arange(2 * batch) % len(pixels)
    batches = [pixels[numbers[:batch]], pixels[numbers[batch:]]]
    watch = Stopwatch()
    in_a_row = InARow(subject, batches, watch)
    with timed_transfers(subject.backend, watch):
        (host,) = in_turns([lambda: in_a_row.window(_WINDOWS.seconds)], _WINDOWS)
    encoder = measure_encoder(subject, batches[0])
    subject.warm_up(batches[0])
    count = max(4, round(_OVERLAPPED_S * host.mean / batch))
    measure_overlapped(subject, batches, count=4)
    return Row(
        side=side,
        runs_on=subject.backend.description,
        batch=batch,
        beam=subject.search.beam,
        resident=in_a_row.resident(host) or host,
        host=host,
        overlapped=measure_overlapped(subject, batches, count=count),
        encoder=encoder,
        same_words=agreement(subject, pixels, batch, expected),
    )


def captions(subject: Subject, pixels: Pixels, batch: int) -> Captions:
    """Of all images, in batches that are filled up with the first ones."""
    numbers = np.arange(-(-len(pixels) // batch) * batch) % len(pixels)
    parts = (pixels[numbers[first : first + batch]] for first in range(0, len(numbers), batch))
    return [one.tokens for part in parts for one in subject.caption(part)][: len(pixels)]


def agreement(subject: Subject, pixels: Pixels, batch: int, expected: Captions) -> float:
    """Share of images with the expected words."""
    found = captions(subject, pixels[: len(expected)], batch)
    return statistics.fmean(one == other for one, other in zip(found, expected, strict=True))


def measure_files(subject: Subject, paths: Sequence[Path], batch: int) -> dict[str, Any]:
    """Images per second of a run of the engine, and where its time goes."""
    options = CaptionOptions(search=subject.search, batch=batch, loaders=os.cpu_count() or 1)
    caption, measured = engine_side(Captioner(subject.bundle, subject.backend, options)), Measured()
    caption(paths[: 2 * batch], measured)
    began = time.perf_counter()
    caption(paths, measured)
    rate = len(paths) / (time.perf_counter() - began)
    return {"images": len(paths), "images_per_s": rate, "loaders": options.loaders, "shares": dict(measured.shares)}


@dataclass(frozen=True, slots=True)
class Work:
    """What every side does.

    main : batch and beam of files
    expected : by beam, the captions of the first images
    """

    bundle: Bundle
    pixels: Pixels
    paths: Sequence[Path]
    main: tuple[int, int]
    expected: Mapping[int, Captions]


def measure_side(side: str, work: Work, loads: Sequence[tuple[int, int]], report: Report) -> None:
    """A row of a backend:precision for each batch and beam, and files; what does not run here is told of."""
    name, _, precision = side.partition(":")
    with report.watching(side), open_backend(name, work.bundle, precision=cast("Precision", precision)) as backend:
        for batch, beam in loads:
            with report.watching(f"{side}, batch {batch}, beam {beam}"):
                subject = Subject(work.bundle, backend, _search(beam))
                row = measure_row(side, subject, work.pixels, batch, work.expected[beam])
                report.add("rows", asdict(row))
                click.echo(_line(row))
        if work.paths:
            batch, beam = work.main
            files = measure_files(Subject(work.bundle, backend, _search(beam)), work.paths, batch)
            report.add("files", {"side": side, "batch": batch, "beam": beam, **files})
            click.echo(f"{side}, files: {files['images_per_s']:.0f} images/s")


@click.command()
@click.option(
    "--side",
    "sides",
    multiple=True,
    default=("pytorch-cuda:fp16", "ort-cuda:fp16"),
    show_default=True,
    metavar="BACKEND:PRECISION",
    help="In all batches and beams.",
)
@click.option(
    "--further-side",
    "further",
    multiple=True,
    default=("pytorch-cuda:fp32", "ort-cuda:fp32", "pytorch-cuda:bf16"),
    show_default=True,
    metavar="BACKEND:PRECISION",
    help="In one batch and all beams.",
)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8, 32, 128, 512), show_default=True)
@click.option("--beam", "beams", multiple=True, type=int, default=(3, 1, 5), show_default=True)
@click.option("--main-batch", default=128, show_default=True, help="Of files, and of all beams but the first.")
@click.option("--files", "captioned", default=4096, show_default=True, help="Photographs captioned; 0 for none.")
@click.option("--encoder", default="resnet101", show_default=True, help="A ResNet of torchvision.")
@click.option("--device", default="cuda", show_default=True, help="Of the loop.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: DATE-GPU.json in benchmarks/results]"
)
def main(
    sides: tuple[str, ...],
    further: tuple[str, ...],
    batches: tuple[int, ...],
    beams: tuple[int, ...],
    main_batch: int,
    captioned: int,
    encoder: str,
    device: str,
    out: Path | None,
) -> None:
    """Measure the sides and the loop, and write a result file."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            f"PyTorch {torch.__version__} sees no GPU, so that nothing was measured: look at the driver, or try the "
            "script alone with --device cpu"
        )
    machine = this_machine()
    path = out or RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{_gpu_of(machine)}.json"
    options = {name: value for name, value in click.get_current_context().params.items() if name != "out"}
    report = Report(path, {"machine": asdict(machine), "options": options})
    sizes = ModelSizes(architecture=encoder)
    pixels = random_pixels(256, sizes.image_size)
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(sizes, pixels[:8])
        export = ExportOptions(tolerance=TOLERANCE, precisions=("fp16",))
        exported = import_and_export(*model, Path(folder), image_size=sizes.image_size, options=export)
        bundle = Bundle.open(exported)
        work = Work(
            bundle=bundle,
            pixels=pixels,
            paths=_photographs(Path(folder) / "photographs", captioned),
            main=(main_batch, beams[0]),
            expected=_expected(bundle, pixels, beams),
        )
        for beam in beams:
            rate, words = measure_loop(*model, bundle, pixels, beam, device=device)
            report.add("loop", {str(beam): {"images_per_s": asdict(rate), "words": words}})
            click.echo(f"loop, beam {beam}: {rate.mean:.1f} images/s, {words:.1f} words")
        all_beams = [(main_batch, beam) for beam in beams]
        for side in sides:
            others = [(batch, beams[0]) for batch in batches if batch != main_batch]
            measure_side(side, work, [*all_beams, *others], report)
        for side in further:
            measure_side(side, work, all_beams, report)
    click.echo(path)


def _gpu_of(machine: Machine) -> str:
    return machine.gpus[0].name.replace(" ", "-") if machine.gpus else "no-gpu"


def _line(row: Row) -> str:
    rates = (row.resident.mean, row.host.mean, row.overlapped, row.encoder.mean)
    told = zip(("resident", "host", "overlapped", "encoder"), rates, strict=True)
    return f"{row.side}, batch {row.batch}, beam {row.beam}: " + ", ".join(f"{name} {rate:.0f}" for name, rate in told)


def _search(beam: int) -> SearchOptions:
    return SearchOptions(beam=beam, max_length=MAX_STEPS)


def _photographs(folder: Path, captioned: int) -> list[Path]:
    return list(islice(cycle(write_photographs(folder, min(_PHOTOGRAPHS, captioned))), captioned))


def _expected(bundle: Bundle, pixels: Pixels, beams: Sequence[int]) -> dict[int, Captions]:
    with open_backend("pytorch", bundle) as backend:
        return {beam: captions(Subject(bundle, backend, _search(beam)), pixels[:_AGREEING], 32) for beam in beams}


if __name__ == "__main__":
    main()
