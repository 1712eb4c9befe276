"""How fast Saccade captions, beside other ways to do it: `python -m benchmarks.peers`.

Measured: images captioned per second of wall time at one beam, from squashed pixels in memory to the ids of words, by
several sides in one process:

tutorial : `benchmarks.tutorial_search`, one image at a time in eager PyTorch; at every word the annotations are
    projected again, for every row of the beam
cached : the same with one projection for an image
eager : a batch at a time in eager PyTorch, by Saccade's graphs and search
blip : the architecture of BLIP-base with random weights, as Hugging Face's `generate` runs it, in batches of 384 x 384
    pixels; captions are forced to the mean length of the others. It needs the package transformers
backend:precision : Saccade on that backend

All but blip have the weights of one model with the sizes of the public one for COCO (`benchmarks.imported` says which,
and why they are random); the share of images with the tutorial's words tells that they do equal work. Every side has
the same number of threads. In each round every side captions all images, one side after the other, so that whatever
else the machine does meets all of them. Ratios to the tutorial and to cached, which is the fair one, are geometric
means over the rounds, with 95 % intervals.

Left out: reading and decoding files, which is in `benchmarks.throughput`, and the quality of captions.
"""

from __future__ import annotations

import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.imported import ModelSizes, import_and_export, normalised, random_model, random_pixels
from benchmarks.machine import this_machine
from benchmarks.tutorial_search import MAX_STEPS, Attention, DecoderWithAttention, Encoder, caption_image
from benchmarks.windows import Spread, paired_ratio, spread_of
from engine.backends.base import open_backend
from engine.captioner import Captioner, CaptionOptions
from saccade.bundle import Bundle, Precision
from saccade.errors import BackendError
from saccade.search import SearchOptions
from saccade.vocabulary import Vocabulary

Pixels = NDArray[np.uint8]
Side = Callable[[Pixels], Sequence[tuple[int, ...]]]

_BLIP_SIDE = 384


class CachedAttention(Attention):
    """Projects the annotations of an image once; `forget` it before the next."""

    def forget(self) -> None:
        """Drop the projection."""
        self._keys: Tensor | None = None

    def forward(self, encoder_out: Tensor, decoder_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Context (K, D) and alphas (K, L) of annotations (K, L, D) that are the same in all K rows."""
        if self._keys is None:
            self._keys = self.encoder_att(encoder_out[:1])
        energies = self.full_att(self.relu(self._keys + self.decoder_att(decoder_hidden).unsqueeze(1))).squeeze(2)
        alphas = self.softmax(energies)
        return (encoder_out * alphas.unsqueeze(2)).sum(dim=1), alphas


def tutorial(encoder: Encoder, decoder: DecoderWithAttention, vocabulary: Vocabulary, beam: int) -> Side:
    """The loop as it is."""
    return lambda pixels: [caption_image(encoder, decoder, image, vocabulary, beam) for image in normalised(pixels)]


def cached(encoder: Encoder, decoder: DecoderWithAttention, vocabulary: Vocabulary, beam: int) -> Side:
    """The loop with one projection for an image. The decoder is changed by it only while it runs."""
    recomputed = decoder.attention
    attention = CachedAttention(decoder.encoder_dim, decoder.decoder_dim, decoder.attention_dim)
    attention.load_state_dict(recomputed.state_dict())

    def caption(pixels: Pixels) -> list[tuple[int, ...]]:
        found = []
        decoder.attention = attention
        try:
            for image in normalised(pixels):
                attention.forget()
                found.append(caption_image(encoder, decoder, image, vocabulary, beam))
        finally:
            decoder.attention = recomputed
        return found

    return caption


def in_batches(captioner: Captioner) -> Side:
    """A backend of Saccade, a batch at a time."""

    def caption(pixels: Pixels) -> list[tuple[int, ...]]:
        batch = captioner.options.batch
        batches = (pixels[first : first + batch] for first in range(0, len(pixels), batch))
        return [found[0].tokens for batch in batches for found in captioner.caption_pixels(batch)]

    return caption


def blip(*, words: int, batch: int, beam: int) -> Side:
    """BLIP-base with random weights, `words` words for every image. Raises BackendError without transformers."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise BackendError(f"{error.name} is not installed: pip install transformers") from error
    model = transformers.BlipForConditionalGeneration(transformers.BlipConfig()).eval()
    # The first token is given, the last stands where <end> would.
    length = {"min_length": words + 2, "max_length": words + 2, "num_beams": beam, "do_sample": False}

    @torch.inference_mode()
    def caption(pixels: Pixels) -> list[tuple[int, ...]]:
        images = torch.nn.functional.interpolate(normalised(pixels), size=(_BLIP_SIDE, _BLIP_SIDE))
        found = [model.generate(pixel_values=part, **length) for part in torch.split(images, batch)]
        return [tuple(one[1:-1]) for part in found for one in part.tolist()]

    return caption


def alternate(sides: Mapping[str, Side], pixels: Pixels, *, rounds: int) -> dict[str, Spread]:
    """Images per second of every side, which take turns. Warm them up before."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side(pixels)
            rates[name].append(len(pixels) / (time.perf_counter() - began))
    return {name: spread_of(found) for name, found in rates.items()}


def agreement(captions: Mapping[str, Sequence[tuple[int, ...]]]) -> dict[str, float]:
    """For each side, the share of images to which it gives the tutorial's words."""
    expected = captions["tutorial"]
    return {
        name: statistics.fmean(one == other for one, other in zip(found, expected, strict=True))
        for name, found in captions.items()
    }


def table(rates: Mapping[str, Spread], agreeing: Mapping[str, float]) -> str:
    """A line for each side: rate, how many times that of the tutorial and of cached, and equal captions."""
    lines = [f"{'side':<16}{'images/s':>10}{'by tutorial':>26}{'by cached':>26}{'same words':>12}"]
    for name, rate in rates.items():
        ratios = (paired_ratio(rates[base], rate) for base in ("tutorial", "cached"))
        cells = (f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in ratios)
        same = f"{agreeing[name]:.0%}" if name in agreeing else ""
        lines.append(f"{name:<16}{rate.mean:>10.3f}" + "".join(f"{cell:>26}" for cell in cells) + f"{same:>12}")
    return "\n".join(lines)


@click.command()
@click.option(
    "--side",
    multiple=True,
    default=("ort:fp32", "openvino:fp32"),
    show_default=True,
    metavar="BACKEND[:PRECISION]",
    help="Of Saccade. May be repeated.",
)
@click.option("--images", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=2))
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--beam", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=0, type=click.IntRange(min=0), help="Of every side.  [default: the runtime's]")
@click.option("--encoder", default="resnet101", show_default=True, help="A ResNet of torchvision.")
def main(side: tuple[str, ...], images: int, rounds: int, batch: int, beam: int, threads: int, encoder: str) -> None:
    """Measure Saccade and its peers. The last line is JSON."""
    if threads:
        torch.set_num_threads(threads)
    machine, sizes = this_machine(), ModelSizes(architecture=encoder)
    pixels = random_pixels(images, sizes.image_size)
    options = CaptionOptions(search=SearchOptions(beam=beam, max_length=MAX_STEPS), batch=batch, threads=threads)
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        model = random_model(sizes, pixels)
        bundle = Bundle.open(import_and_export(*model, Path(folder), image_size=sizes.image_size))
        sides = {
            "tutorial": tutorial(*model, bundle.vocabulary, beam),
            "cached": cached(*model, bundle.vocabulary, beam),
        }
        for name in ("pytorch:fp32", *side):
            with _or_absent(name, absent):
                captioner = opened.enter_context(_captioner(bundle, name, options))
                sides["eager" if name == "pytorch:fp32" else name] = in_batches(captioner)
        captions = {name: caption(pixels) for name, caption in sides.items()}
        words = statistics.fmean(len(one) for one in captions["tutorial"])
        with _or_absent("blip", absent):
            sides["blip"] = blip(words=round(words), batch=batch, beam=beam)
            sides["blip"](pixels)
        rates, agreeing = alternate(sides, pixels, rounds=rounds), agreement(captions)
    click.echo(table(rates, agreeing))
    about = {"words": words, "unavailable": absent, "options": click.get_current_context().params}
    click.echo(json.dumps(_record(rates, agreeing) | about | {"machine": asdict(machine)}))


@contextmanager
def _or_absent(name: str, absent: dict[str, str]) -> Iterator[None]:
    """Tell, and note in `absent`, why a side does not run here."""
    try:
        yield
    except BackendError as error:
        click.echo(f"{name}: not available here: {error}")
        absent[name] = str(error)


def _captioner(bundle: Bundle, name: str, options: CaptionOptions) -> Captioner:
    backend, _, precision = name.partition(":")
    given = cast("Precision", precision) if precision else None
    return Captioner(bundle, open_backend(backend, bundle, threads=options.threads, precision=given), options)


def _record(rates: Mapping[str, Spread], agreeing: Mapping[str, float]) -> dict[str, Any]:
    return {
        "benchmark": "peers",
        "images_per_s": {name: asdict(rate) for name, rate in rates.items()},
        "ratios": {
            base: {name: paired_ratio(rates[base], rate)._asdict() for name, rate in rates.items()}
            for base in ("tutorial", "cached")
        },
        "same_words": dict(agreeing),
    }


if __name__ == "__main__":
    main()
