"""The images that a benchmark captions: those of a folder, or pictures made of random numbers."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.folders import images_below
from engine.images import ScanOptions
from saccade.errors import DataError, ImageError
from saccade.preprocessing import PreprocessSpec, load_image

_SIZE = (640, 480)
_PATCHES = (12, 16)
_MOST = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Images that can be read, as files and as what the encoder takes.

    pixels : uint8 (N, S, S, 3)
    source : what they are, in words
    digest : SHA-256 of the pixels
    """

    paths: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    source: str
    digest: str

    def batches(self, size: int) -> list[NDArray[np.uint8]]:
        """All pixels in full batches; where they do not go in, the first ones come again."""
        return [self.pixels[list(numbers)] for numbers in self._numbers(size)]

    def path_batches(self, size: int) -> list[list[Path]]:
        """The same batches as files."""
        return [[self.paths[number] for number in numbers] for numbers in self._numbers(size)]

    def _numbers(self, size: int) -> list[tuple[int, ...]]:
        numbers = cycle(range(len(self.paths)))
        return [tuple(islice(numbers, size)) for _ in range(-(-len(self.paths) // size))]


@contextmanager
def pictures_of(folder: Path | None, spec: PreprocessSpec, *, count: int = 64, seed: int = 0) -> Iterator[Pictures]:
    """The images below a folder, 256 at most and without those that cannot be read; without a folder, random ones.

    Random ones are JPEGs in a folder that vanishes at the end of the block. Raises DataError where none can be read.
    """
    if folder is not None:
        sources = images_below(str(folder), ScanOptions(order="name"))
        paths = [source.content for source in sources if isinstance(source.content, Path)]
        yield _loaded(paths[:_MOST], spec, f"images of {folder}")
        return
    with TemporaryDirectory(prefix="saccade-benchmark-") as place:
        paths = list(random_images(Path(place), count, seed=seed))
        yield _loaded(paths, spec, f"random images, JPEG of {_SIZE[0]} x {_SIZE[1]} pixels")


def random_images(folder: Path, count: int, *, seed: int) -> Iterator[Path]:
    """Write JPEGs of soft patches in random colours with some grain: as hard to decode as photographs."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        patches = Image.fromarray(rng.integers(0, 256, (*_PATCHES, 3), np.uint8))
        soft = np.asarray(patches.resize(_SIZE, Image.Resampling.BICUBIC))
        grain = rng.normal(0, 8, (_SIZE[1], _SIZE[0], 1))
        path = folder / f"{number:05d}.jpg"
        Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        yield path


def forget(paths: Sequence[Path]) -> bool:
    """Drop files from the page cache. False where the system keeps them there."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in set(paths):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return not any(map(is_cached, set(paths)))


def is_cached(path: Path) -> bool:
    """Whether any page of a file is in memory. To read from it would bring it there, so the system is asked."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        states = (ctypes.c_ubyte * (-(-len(pages) // mmap.PAGESIZE)))()
        first = ctypes.c_char.from_buffer(pages)
        ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(pages)), states)
        del first  # or the map could not be closed
    return any(state & 1 for state in states)


def _loaded(paths: Sequence[Path], spec: PreprocessSpec, source: str) -> Pictures:
    readable, pixels = [], []
    for path in paths:
        try:
            pixels.append(load_image(path, spec))
        except ImageError:
            continue
        readable.append(path)
    if not pixels:
        raise DataError(f"{source}: no image that can be read; choose another folder with --images")
    stacked = np.stack(pixels)
    digest = hashlib.sha256(stacked.tobytes()).hexdigest()
    return Pictures(paths=tuple(readable), pixels=stacked, source=f"{len(readable)} {source}", digest=digest)
