"""How fast an imported model captions, beside the loop it comes with: `python -m benchmarks.imported`.

Measured: images captioned per second of wall time at several beams, by two sides in one process:

loop : `benchmarks.tutorial_search`, one image at a time in eager PyTorch
engine : `saccade import`, `saccade export`, and the engine on a backend, in batches

Both begin with the pixels of an image, squashed to 256 x 256, and end with the ids of its words; both have the weights
of one checkpoint, written and imported as a user would. Its sizes are those of the public model for COCO: ResNet-101, a
grid of 14 x 14, widths of 512 and 9,490 words. Weights are random, as the time does not depend on them, but for what
ends captions: a clock in the LSTM makes `<end>` likelier from word to word, so that captions are about as long as those
that people write. Pictures are random patches.

In each round both sides caption all images at a beam, one side after the other; before the rounds, each captions some
that do not count. Rates are medians over the rounds. Beside them is the share of images to which both sides give the
same words: it may be below 1 where a backend computes in less than float32, or two candidates are as close as rounding.

Left out: reading and decoding image files, which both do before; import and export, which happen once.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.tutorial_search import MAX_STEPS, DecoderWithAttention, Encoder, caption_image
from engine.captioner import Captioner, CaptionOptions
from export.bundle import ExportOptions, export_bundle
from saccade.bundle import Precision
from saccade.search import SearchOptions
from saccade.vocabulary import END, PAD, START, UNK, Vocabulary
from training.environment import environment
from training.import_sgrvinod import IMAGE_SIZE, read_sgrvinod
from training.imported import IMAGENET_MEAN, IMAGENET_STD, write_checkpoint

Captions = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Of the model that is imported; the defaults are those of the public one for COCO."""

    architecture: str = "resnet101"
    words: int = 9490
    width: int = 512
    image_size: int = IMAGE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one beam.

    loop, engine : images per second of every round
    words : of a caption, on average
    same : share of the images with equal captions
    """

    loop: Sequence[float]
    engine: Sequence[float]
    words: float
    same: float

    @property
    def ratio(self) -> float:
        """How many times the loop's median rate the engine reaches."""
        return statistics.median(self.engine) / statistics.median(self.loop)


def random_pixels(count: int, size: int) -> NDArray[np.uint8]:
    """Pictures of 8 x 8 patches in random colours, uint8 (count, S, S, 3)."""
    patches = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return patches.repeat(size // 8, axis=1).repeat(size // 8, axis=2)


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """The tutorial's input (B, 3, S, S) of pixels uint8 (B, S, S, 3)."""
    images = torch.from_numpy(pixels) / 255
    return ((images - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)


@torch.no_grad()
def random_model(sizes: ModelSizes, pixels: NDArray[np.uint8]) -> tuple[Encoder, DecoderWithAttention]:
    """A model with the batch statistics of some pixels, whose captions depend on them and end after about ten words."""
    torch.manual_seed(0)
    encoder = Encoder(sizes.architecture)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # keeps the mean of what it sees
    encoder(normalised(pixels))
    mean = encoder.eval()(normalised(pixels)).mean((0, 1, 2))
    width = sizes.width
    decoder = DecoderWithAttention(width, width, width, sizes.words, len(mean)).eval()
    decoder.init_h.bias.copy_(-decoder.init_h.weight @ mean)
    decoder.init_c.bias.copy_(-decoder.init_c.weight @ mean)
    decoder.fc.weight *= 8
    add_clock(decoder, end=10)
    return encoder, decoder


@torch.no_grad()
def add_clock(decoder: DecoderWithAttention, *, end: float) -> None:
    """Make the first unit a clock that nothing stops, and `<end>`, the last word, the likelier the later it is.

    end : weight of the clock, which runs from -1 to 1 in about ten steps
    """
    enter, forget, candidate, leave = range(0, 4 * decoder.decoder_dim, decoder.decoder_dim)
    lstm = decoder.decode_step
    for weight in (lstm.weight_ih, lstm.weight_hh):
        weight[[enter, forget, candidate, leave]] = 0
    lstm.bias_ih[[enter, forget, leave]] = 8
    lstm.bias_ih[candidate] = 0.25
    for layer, start in ((decoder.init_h, -1.0), (decoder.init_c, -1.5)):
        layer.weight[0], layer.bias[0] = 0, start
    decoder.fc.weight[:, 0] = 0
    decoder.fc.weight[-1, 0] = end


TOLERANCE = 1e-2
"""Of the export: random weights give wide values."""


def import_and_export(
    encoder: Encoder,
    decoder: DecoderWithAttention,
    folder: Path,
    *,
    image_size: int,
    options: ExportOptions = ExportOptions(tolerance=TOLERANCE),  # noqa: B008 - it is frozen
) -> Path:
    """The bundle of a checkpoint as the tutorial's programs save it."""
    words = [PAD, *(f"word{number}" for number in range(1, decoder.vocab_size - 3)), UNK, START, END]
    checkpoint, word_map = folder / "BEST_checkpoint.pth.tar", folder / "WORDMAP.json"
    torch.save({"epoch": 0, "encoder": encoder, "decoder": decoder}, checkpoint)
    word_map.write_text(json.dumps({word: number for number, word in enumerate(words)}))
    imported = read_sgrvinod(checkpoint, word_map, image_size=image_size)
    write_checkpoint(imported, checkpoint, folder / "checkpoint", overwrite=False)
    export_bundle(folder / "checkpoint", folder / "bundle", options)
    return folder / "bundle"


def measure(
    model: tuple[Encoder, DecoderWithAttention],
    bundle: Path,
    pixels: NDArray[np.uint8],
    options: CaptionOptions,
    *,
    beams: Sequence[int],
    rounds: int,
) -> tuple[dict[int, Measured], str]:
    """Both sides at every beam, and what the backend says it is.

    options : of the engine; its search is at each beam to the loop's number of steps
    """
    found: dict[int, Measured] = {}
    description = ""
    for beam in beams:
        searched = CaptionOptions(
            search=SearchOptions(beam=beam, max_length=MAX_STEPS),
            batch=options.batch,
            backend=options.backend,
            precision=options.precision,
        )
        with Captioner.open(bundle, searched) as captioner:
            description = captioner.backend.description
            sides = {
                "loop": _loop(model, captioner.bundle.vocabulary, beam),
                "engine": _engine(captioner, options.batch),
            }
            found[beam] = _alternate(sides, pixels, rounds=rounds, warm_up=options.batch)
    return found, description


Side = Callable[[NDArray[np.uint8]], Captions]


def _loop(model: tuple[Encoder, DecoderWithAttention], vocabulary: Vocabulary, beam: int) -> Side:
    return lambda pixels: [
        caption_image(*model, normalised(pixels[place : place + 1])[0], vocabulary, beam)
        for place in range(len(pixels))
    ]


def _engine(captioner: Captioner, batch: int) -> Side:
    return lambda pixels: [
        hypotheses[0].tokens
        for place in range(0, len(pixels), batch)
        for hypotheses in captioner.caption_pixels(pixels[place : place + batch])
    ]


def _alternate(sides: Mapping[str, Side], pixels: NDArray[np.uint8], *, rounds: int, warm_up: int) -> Measured:
    rates: dict[str, list[float]] = {name: [] for name in sides}
    captions: dict[str, Captions] = {}
    for round_number in range(1 + rounds):
        for name, side in sides.items():
            shown = pixels if round_number else pixels[: 1 if name == "loop" else warm_up]
            began = time.perf_counter()
            captions[name] = side(shown)
            if round_number:
                rates[name].append(len(shown) / (time.perf_counter() - began))
    same = [one == other for one, other in zip(captions["loop"], captions["engine"], strict=True)]
    words = statistics.mean(map(len, captions["loop"]))
    return Measured(loop=rates["loop"], engine=rates["engine"], words=words, same=statistics.mean(same))


def _table(found: Mapping[int, Measured]) -> str:
    lines = ["images/s     loop    engine     ratio     words      same"]
    for beam, each in found.items():
        figures = (statistics.median(each.loop), statistics.median(each.engine), each.ratio, each.words)
        lines.append(f"beam {beam:<3}" + "".join(f"{figure:>10.2f}" for figure in figures) + f"{each.same:>10.1%}")
    return "\n".join(lines)


@click.command()
@click.option("--backend", default="auto", show_default=True, help="Of the engine.")
@click.option("--precision", help="Of the engine's arithmetic.  [default: the backend's choice]")
@click.option("--images", type=click.IntRange(min=1), default=64, show_default=True, help="Images a round.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds that count.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images the engine joins.")
@click.option("--beam", "beams", multiple=True, type=int, default=(1, 3, 5), show_default=True, help="May be repeated.")
def main(
    backend: str, precision: Precision | None, images: int, rounds: int, batch: int, beams: tuple[int, ...]
) -> None:
    """Images captioned per second by an imported model and by the loop it comes with. The last line is JSON."""
    sizes, load = ModelSizes(), os.getloadavg()[0]
    pixels = random_pixels(images, sizes.image_size)
    model = random_model(sizes, pixels[:8])
    options = CaptionOptions(batch=batch, backend=backend, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        bundle = import_and_export(*model, Path(folder), image_size=sizes.image_size)
        found, description = measure(model, bundle, pixels, options, beams=beams, rounds=rounds)
    click.echo(_table(found))
    click.echo(json.dumps(record(found, description, sizes, images=images, batch=batch, load=load)))


def record(
    found: Mapping[int, Measured], description: str, sizes: ModelSizes, *, images: int, batch: int, load: float
) -> dict[str, Any]:
    """What the last line says."""
    return {
        "benchmark": "imported",
        "backend": description,
        "beams": {
            str(beam): {
                "ratio": each.ratio,
                "loop_images_per_s": each.loop,
                "engine_images_per_s": each.engine,
                "mean_words": each.words,
                "same_captions": each.same,
            }
            for beam, each in found.items()
        },
        "images": images,
        "batch": batch,
        "model": {"encoder": sizes.architecture, "words": sizes.words, "width": sizes.width, "image": sizes.image_size},
        "environment": environment(torch.device("cpu")) | {"cores": os.cpu_count(), "load_before": load},
    }


if __name__ == "__main__":
    main()
