"""How fast images become pixels, and what quicker ways would change: `python -m benchmarks.decoding IMAGES...`.

Measured: images per second of one core's time, from the bytes of a JPEG file in memory, by four sides in one process:

simplejpeg : full decode to an array by libjpeg-turbo, and nothing else; the yardstick of a machine
reference : `load_image`, everything from the check of the header to pixels of the encoder's size
full : simplejpeg's full decode and our resize
scaled : simplejpeg's decode at the smallest scale with both sides at least so many times the encoder's, and our resize

The last two neither check a header nor look at orientation, so they are what a path of that kind would gain at most.

Each round loads all images on every side, one side after the other, so that whatever slows the core down meets all of
them; after a round that does not count, rates are medians over the rounds, with the lowest and the highest. The time is
the processor's, as other processes may keep a thread waiting. Beside it: how far the pixels of the last two sides are
from the reference's, and with a bundle, how many captions that changes; and how many change if one value in a hundred
of the reference's pixels is one grey level off.

IMAGES are files, folders and tar files; what is no JPEG is made one.

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
from saccade.preprocessing import Geometry, PreprocessSpec, load_image, resize
from training.environment import environment

Load = Callable[[bytes], NDArray[np.uint8]]

Rates = Mapping[str, Sequence[float]]
"""Images per second of processor time in every round, by side."""

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far pixels are from the reference's, in grey levels, over all values of all images.

    mean_absolute, largest_absolute : of the differences
    worst_image : the largest mean of one image
    equal : share of the values that are equal
    changed_captions : share of the images whose best caption is another one, word for word; None without a bundle
    """

    mean_absolute: float
    largest_absolute: int
    worst_image: float
    equal: float
    changed_captions: float | None = None


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
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def sides(spec: PreprocessSpec, margin: float) -> dict[str, Load]:
    """What each side does with an image. "scaled" decodes to at least `margin` times the encoder's sides."""
    least = round(margin * spec.size)

    def scaled(image: bytes) -> NDArray[np.uint8]:
        return resize(Image.fromarray(simplejpeg.decode_jpeg(image, min_height=least, min_width=least)), spec)

    return {
        "simplejpeg": simplejpeg.decode_jpeg,
        "reference": lambda image: load_image(image, spec),
        "full": lambda image: resize(Image.fromarray(simplejpeg.decode_jpeg(image)), spec),
        "scaled": scaled,
    }


def alternate(loads: Mapping[str, Load], images: Sequence[bytes], *, rounds: int) -> Rates:
    """Images per second of processor time, by side and round. One more round comes before and does not count."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(1 + rounds):
        for name, load in loads.items():
            began = time.process_time()
            for image in images:
                load(image)
            rates[name].append(len(images) / (time.process_time() - began))
    return {name: found[1:] for name, found in rates.items()}


def ratios(rates: Rates) -> dict[str, float]:
    """The median rate of each side by that of simplejpeg."""
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {name: median / medians["simplejpeg"] for name, median in medians.items()}


def difference(
    reference: NDArray[np.uint8], pixels: NDArray[np.uint8], captioner: Captioner | None = None
) -> Difference:
    """Compare pixels, both (N, S, S, 3), and what an open captioner says of them."""
    apart = np.abs(reference.astype(np.int16) - pixels)
    by_image = apart.mean(axis=(1, 2, 3))
    return Difference(
        mean_absolute=float(by_image.mean()),
        largest_absolute=int(apart.max()),
        worst_image=float(by_image.max()),
        equal=float((apart == 0).mean()),
        changed_captions=_changed(captioner, reference, pixels) if captioner else None,
    )


def _changed(captioner: Captioner, reference: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> float:
    before, after = (
        [
            hypotheses[0].tokens
            for start in range(0, len(images), _BATCH)
            for hypotheses in captioner.caption_pixels(images[start : start + _BATCH])
        ]
        for images in (reference, pixels)
    )
    return statistics.mean(one != other for one, other in zip(before, after, strict=True))


def nudged(pixels: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """A copy in which a share of the values, drawn at random, is one grey level higher or, where it is 255, lower."""
    chosen = np.random.default_rng(0).random(pixels.shape) < share
    return np.where(chosen, np.where(pixels == 255, 254, pixels + 1), pixels).astype(np.uint8)


def differences(
    spec: PreprocessSpec, images: Sequence[bytes], margin: float, captioner: Captioner | None
) -> dict[str, Difference]:
    """From the reference: of the sides "full" and "scaled", and of one value in a hundred "nudged"."""
    loads = sides(spec, margin)
    pixels = {name: np.stack([loads[name](image) for image in images]) for name in ("reference", "full", "scaled")}
    reference = pixels.pop("reference")
    pixels["nudged"] = nudged(reference, 0.01)
    return {name: difference(reference, found, captioner) for name, found in pixels.items()}


def _table(rates: Rates, found: Mapping[str, Difference]) -> str:
    lines = ["images/s of a core    median    lowest   highest     ratio     error  captions changed"]
    for name, ratio in ratios(rates).items():
        figures = (statistics.median(rates[name]), min(rates[name]), max(rates[name]))
        lines.append(f"{name:<18}" + "".join(f"{each:>10.1f}" for each in figures) + f"{ratio:>10.2f}")
        lines[-1] += _words(found.get(name))
    return "\n".join([*lines, f"{'nudged':<58}" + _words(found["nudged"])])


def _words(found: Difference | None) -> str:
    if found is None:
        return ""
    changed = "" if found.changed_captions is None else f"{found.changed_captions:>18.2%}"
    return f"{found.mean_absolute:>10.4f}{changed}"


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
@click.option("--margin", type=click.FloatRange(min=1), default=2.0, show_default=True, help="Of the scaled decode.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds that count.")
@click.option("--limit", type=click.IntRange(min=1), help="So many images; all by default.")
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Count the captions of this bundle that change; its size and geometry take the place of the others.",
)
def main(
    images: tuple[Path, ...],
    size: int,
    geometry: Geometry,
    margin: float,
    rounds: int,
    limit: int | None,
    bundle: Path | None,
) -> None:
    """Speed of ways from IMAGES to pixels, and what they change. The last line is JSON."""
    hardware, contents = _environment(), read_images(images, limit)
    spec = PreprocessSpec(size=size, geometry=geometry, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    if bundle is None:
        found = differences(spec, contents, margin, None)
    else:
        with Captioner.open(bundle) as captioner:
            spec = captioner.bundle.manifest.preprocessing
            found = differences(spec, contents, margin, captioner)
    rates = alternate(sides(spec, margin), contents, rounds=rounds)
    click.echo(_table(rates, found))
    record = {
        "benchmark": "decoding",
        "ratios": ratios(rates),
        "images_per_s": rates,
        "differences": {name: asdict(each) for name, each in found.items()},
        "images": len(contents),
        "mean_bytes": statistics.mean(map(len, contents)),
        "size": spec.size,
        "geometry": spec.geometry,
        "margin": margin,
        "bundle": str(bundle) if bundle else None,
        "environment": hardware,
    }
    click.echo(json.dumps(record))


if __name__ == "__main__":
    main()
