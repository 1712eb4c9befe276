"""How fast files become captions, beside the common tutorial loop: `python -m benchmarks.throughput`.

Measured: images captioned a second of wall time, from JPEG files of 640 x 480 pixels to words, by several sides in one
process:

loop : Pillow and `benchmarks.tutorial_search`, one image at a time in eager PyTorch
backend:precision : the engine, `Captioner.caption` of the paths

All have the weights of one model with the sizes of the public one for COCO (`benchmarks.imported` says which, and why
they are random). In each round every side captions all files, one side after the other, so that whatever else the
machine does meets all of them; before the rounds, each captions some that do not count, which also compiles what has to
be compiled. Rates are medians over the rounds. Beside them, where the engine's time goes: for each stage, the share of
the wall time in which it was at work; stages overlap.

Left out: a cold disk (the files have just been written), import, export and quantisation.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.imported import TOLERANCE, ModelSizes, import_and_export, normalised, random_model, random_pixels
from benchmarks.tutorial_search import MAX_STEPS, DecoderWithAttention, Encoder, caption_image
from engine.captioner import Captioner, CaptionOptions
from engine.pipeline import Stages
from engine.records import Record
from export.bundle import ExportOptions
from saccade.bundle import Bundle
from saccade.errors import BackendError
from saccade.search import SearchOptions
from training.environment import environment

LOOP = "loop"
Captions = Mapping[str, tuple[int, ...]]


@dataclass(slots=True)
class Measured:
    """Of one side: images per second of every round, what each stage's share of the last one was, and its captions."""

    rates: list[float] = field(default_factory=list)
    shares: Mapping[str, float] = field(default_factory=dict)
    captions: Captions = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


Side = Callable[[Sequence[Path], Measured], None]
"""Captions files and puts captions and shares into what it is given."""


def write_photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of 640 x 480 pixels and about 150 kB, as photographs have: smooth colours and noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    noise = generator.normal(0, 16, (480, 640, 3)).astype(np.float32)
    for path in paths:
        colours = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480))
        noisy = np.asarray(colours, np.float32) + noise
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def loop_side(encoder: Encoder, decoder: DecoderWithAttention, bundle: Bundle, beam: int) -> Side:
    """The tutorial's way."""
    size = bundle.manifest.preprocessing.size

    def caption(path: Path) -> tuple[int, ...]:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        return caption_image(encoder, decoder, normalised(pixels[None])[0], bundle.vocabulary, beam)

    def run(paths: Sequence[Path], measured: Measured) -> None:
        measured.captions = {str(path): caption(path) for path in paths}

    return run


def engine_side(captioner: Captioner) -> Side:
    """The engine's."""

    def run(paths: Sequence[Path], measured: Measured) -> None:
        stages = Stages()
        results = captioner.caption(paths, stages=stages)
        measured.captions = {result.path: result.tokens for result in results if isinstance(result, Record)}
        measured.shares = stages.shares()

    return run


def alternate(sides: Mapping[str, Side], paths: Sequence[Path], *, rounds: int, warm_up: int) -> dict[str, Measured]:
    """Let every side caption the files in each round."""
    found = {name: Measured() for name in sides}
    for round_number in range(1 + rounds):
        for name, side in sides.items():
            shown = paths if round_number else paths[: 2 if name == LOOP else warm_up]
            began = time.perf_counter()
            side(shown, found[name])
            if round_number:
                found[name].rates.append(len(shown) / (time.perf_counter() - began))
    return found


def table(found: Mapping[str, Measured]) -> str:
    """A line for each side; the loop's first."""
    loop = found[LOOP]
    lines = [f"{'':<16}  images/s   times the loop   same captions   shares of the time"]
    for name, side in found.items():
        same = statistics.mean(side.captions[path] == caption for path, caption in loop.captions.items())
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in side.shares.items() if stage != "scan")
        lines.append(f"{name:<16}{side.rate:>10.2f}{side.rate / loop.rate:>17.2f}{same:>16.1%}   {shares}")
    return "\n".join(lines)


@click.command()
@click.option(
    "--side",
    "sides",
    multiple=True,
    default=("openvino", "ort"),
    show_default=True,
    metavar="BACKEND[:PRECISION]",
    help="Of the engine. May be repeated.",
)
@click.option("--images", type=click.IntRange(min=1), default=64, show_default=True, help="Files a round.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds that count.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images the engine joins.")
@click.option("--beam", "beams", multiple=True, type=int, default=(1, 3, 5), show_default=True, help="May be repeated.")
@click.option("--encoder", default="resnet101", show_default=True, help="ResNet of the model.")
def main(sides: tuple[str, ...], images: int, rounds: int, batch: int, beams: tuple[int, ...], encoder: str) -> None:
    """Files captioned per second by the engine and by the common loop. The last line is JSON."""
    sizes, load = ModelSizes(architecture=encoder), os.getloadavg()[0]
    model = random_model(sizes, random_pixels(8, sizes.image_size))
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder) / "photographs", images)
        options = export_options(paths, int8=any(side.endswith(":int8") for side in sides))
        exported = import_and_export(*model, Path(folder), image_size=sizes.image_size, options=options)
        bundle = Bundle.open(exported)
        for beam in beams:
            found = _measure(model, bundle, paths, sides, beam=beam, batch=batch, rounds=rounds)
            click.echo(f"beam {beam}\n{table(found)}\n")
            report[str(beam)] = {
                name: {"images_per_s": side.rates, "ratio": side.rate / found[LOOP].rate, "shares": dict(side.shares)}
                for name, side in found.items()
            }
    about = {"images": images, "batch": batch, "encoder": encoder, "cores": os.cpu_count(), "load_before": load}
    click.echo(
        json.dumps(
            {"benchmark": "throughput", "beams": report} | about | {"environment": environment(torch.device("cpu"))}
        )
    )


def export_options(paths: Sequence[Path], *, int8: bool) -> ExportOptions:
    """With 8-bit integers where they are wanted, calibrated on the files."""
    if not int8:
        return ExportOptions(tolerance=TOLERANCE)
    return ExportOptions(tolerance=TOLERANCE, precisions=("int8",), calibration=tuple(paths))


def _measure(
    model: tuple[Encoder, DecoderWithAttention],
    bundle: Bundle,
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    beam: int,
    batch: int,
    rounds: int,
) -> dict[str, Measured]:
    sides = {LOOP: loop_side(*model, bundle, beam)}
    opened = ExitStack()
    for name in names:
        backend, _, precision = name.partition(":")
        options = CaptionOptions(
            search=SearchOptions(beam=beam, max_length=MAX_STEPS),
            batch=batch,
            backend=backend,
            precision=precision or None,  # type: ignore[arg-type]  # the backend refuses what it does not know
        )
        try:
            sides[name] = engine_side(opened.enter_context(Captioner.open(bundle, options)))
        except BackendError as error:
            click.echo(f"{name}: not available here: {error}", err=True)
    with opened:
        return alternate(sides, paths, rounds=rounds, warm_up=batch)


if __name__ == "__main__":
    main()
