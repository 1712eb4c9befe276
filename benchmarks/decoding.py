"""How fast images become pixels, and what the fast path changes: `python -m benchmarks.decoding IMAGES...`.

Measured: images per second of one core's time, from the bytes of a JPEG file in memory, by three sides in one process:

simplejpeg : full decode to an array by libjpeg-turbo, and nothing else; the yardstick of a machine
reference : `load_image`, everything from the check of the header to pixels of the encoder's size
fast : `load_image(fast=True)`

Each round loads all images on every side, one side after the other, so that whatever slows the core down meets all of
them; after a round that does not count, rates are medians over the rounds, with the lowest and the highest. The time is
the processor's, as other processes may keep a thread waiting. Beside it: how far the fast path's pixels are from the
reference's, and with a bundle, how many captions that changes.

IMAGES are files, folders and tar files; what is no JPEG is made one. With `--mosaic N` each image is N x N of them side
by side: as sharp in every pixel as a photograph, which an enlarged one would not be, and large enough for the fast path
to do anything.

Left out: reading files, which depends on the disk.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # it ships its types without py.typed
import torch
from numpy.typing import NDArray
from PIL import Image, features
from PIL import __version__ as pillow_version

from engine.captioner import Captioner
from saccade.errors import ConfigError
from saccade.pixels import load_rgb
from saccade.preprocessing import Geometry, PreprocessSpec, load_image
from training.environment import environment

Rates = Mapping[str, Sequence[float]]
"""Images per second of processor time in every round, by side."""

_QUALITY = 90
_BLOCK = 16  # the sides of a mosaic's parts are multiples: the fast path wants sides that divide
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far the fast path is from the reference, in grey levels, over all values of all images.

    mean_absolute, largest_absolute : of the differences
    worst_image : the largest mean of one image
    equal : share of the values that are equal
    reduced : share of the images that differ at all
    """

    mean_absolute: float
    largest_absolute: int
    worst_image: float
    equal: float
    reduced: float


def read_images(paths: Sequence[Path], limit: int | None = None) -> list[bytes]:
    """The first images of files, folders and tar files, in the order of their names, as JPEG files.

    Raises ConfigError if there is none.
    """
    found = list(islice(chain.from_iterable(map(_contents, paths)), limit))
    if not found:
        raise ConfigError(f"no image in {', '.join(map(str, paths))}: name images, folders or tar files with images")
    return [content if content.startswith(b"\xff\xd8\xff") else _jpeg(load_rgb(content)) for content in found]


def _contents(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        yield from (file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            members = (archive.extractfile(member) for member in archive if member.isfile())
            yield from (member.read() for member in members if member)
    else:
        yield path.read_bytes()


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def mosaics(images: Sequence[bytes], side: int, count: int) -> list[bytes]:
    """JPEG files, each of side x side images side by side, drawn at random: the centres, of what all have in common."""
    pictures = [load_rgb(image) for image in images]
    width, height = (min(sizes) // _BLOCK * _BLOCK for sizes in zip(*(each.size for each in pictures), strict=True))
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        canvas = Image.new("RGB", (side * width, side * height))
        for place, choice in enumerate(rng.integers(len(pictures), size=side * side)):
            part = pictures[choice]
            left, top = (part.width - width) // 2, (part.height - height) // 2
            centre = part.crop((left, top, left + width, top + height))
            canvas.paste(centre, (place % side * width, place // side * height))
        made.append(_jpeg(canvas))
    return made


def sides(spec: PreprocessSpec) -> dict[str, Callable[[bytes], object]]:
    """What each side does with an image."""
    return {
        "simplejpeg": simplejpeg.decode_jpeg,
        "reference": partial(load_image, spec=spec),
        "fast": partial(load_image, spec=spec, fast=True),
    }


def alternate(loaders: Mapping[str, Callable[[bytes], object]], images: Sequence[bytes], *, rounds: int) -> Rates:
    """Images per second of processor time, by side and round. One more round comes before and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(1 + rounds):
        for name, load in loaders.items():
            began = time.process_time()
            for image in images:
                load(image)
            rates[name].append(len(images) / (time.process_time() - began))
    return {name: found[1:] for name, found in rates.items()}


def ratios(rates: Rates) -> dict[str, float]:
    """The median rate of each side by that of simplejpeg."""
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {name: median / medians["simplejpeg"] for name, median in medians.items()}


def errors(reference: NDArray[np.uint8], fast: NDArray[np.uint8]) -> Errors:
    """Compare pixels, both (N, S, S, 3)."""
    differences = np.abs(reference.astype(np.int16) - fast)
    by_image = differences.mean(axis=(1, 2, 3))
    return Errors(
        mean_absolute=float(by_image.mean()),
        largest_absolute=int(differences.max()),
        worst_image=float(by_image.max()),
        equal=float((differences == 0).mean()),
        reduced=float((by_image > 0).mean()),
    )


def changed_captions(captioner: Captioner, reference: NDArray[np.uint8], fast: NDArray[np.uint8]) -> float:
    """The share of images whose best caption is another one, word for word."""
    changed = 0
    for start in range(0, len(reference), _BATCH):
        pair = (captioner.caption_pixels(pixels[start : start + _BATCH]) for pixels in (reference, fast))
        changed += sum(before[0].tokens != after[0].tokens for before, after in zip(*pair, strict=True))
    return changed / len(reference)


def _table(rates: Rates) -> str:
    lines = ["images/s of a core       median    lowest   highest     ratio"]
    for name, ratio in ratios(rates).items():
        figures = (statistics.median(rates[name]), min(rates[name]), max(rates[name]))
        lines.append(f"{name:<20}" + "".join(f"{figure:>10.1f}" for figure in figures) + f"{ratio:>10.2f}")
    return "\n".join(lines)


def _environment() -> dict[str, Any]:
    """Versions, hardware, and what else keeps it busy."""
    return environment(torch.device("cpu")) | {
        "pillow": pillow_version,
        "pillow_libjpeg_turbo": features.version("libjpeg_turbo"),
        "simplejpeg": simplejpeg.__version__,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


@click.command()
@click.argument("images", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--size", type=click.IntRange(1, 1024), default=112, show_default=True, help="Side of the result.")
@click.option("--geometry", type=click.Choice(["squash", "crop"]), default="squash", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds that count.")
@click.option("--limit", type=click.IntRange(min=1), help="Of the images, or of the mosaics; all by default.")
@click.option("--mosaic", type=click.IntRange(min=2), help="Make images of so many by so many.")
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Count the captions of this bundle that change; its size and geometry take the place of the others.",
)
def main(
    images: tuple[Path, ...],
    size: int,
    geometry: Geometry,
    rounds: int,
    limit: int | None,
    mosaic: int | None,
    bundle: Path | None,
) -> None:
    """Speed and error of the two ways from IMAGES to pixels. The last line is JSON."""
    hardware = _environment()
    spec = PreprocessSpec(size=size, geometry=geometry, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    captioner = Captioner.open(bundle) if bundle else None
    if captioner:
        spec = captioner.bundle.manifest.preprocessing
    contents = read_images(images, None if mosaic else limit)
    if mosaic:
        contents = mosaics(contents, mosaic, limit or len(contents))
    rates = alternate(sides(spec), contents, rounds=rounds)
    reference, fast = (np.stack([load_image(each, spec, fast=fast) for each in contents]) for fast in (False, True))
    found, changed = errors(reference, fast), None
    if captioner:
        with captioner:
            changed = changed_captions(captioner, reference, fast)
    click.echo(_table(rates))
    record = {
        "benchmark": "decoding",
        "ratios": ratios(rates),
        "images_per_s": rates,
        "errors": asdict(found),
        "changed_captions": changed,
        "images": len(contents),
        "mean_bytes": statistics.mean(map(len, contents)),
        "size": spec.size,
        "geometry": spec.geometry,
        "mosaic": mosaic,
        "bundle": str(bundle) if bundle else None,
        "environment": hardware,
    }
    click.echo(json.dumps(record))


if __name__ == "__main__":
    main()
