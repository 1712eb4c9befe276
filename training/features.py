"""Annotations of an encoder that does not change, computed once and kept on the disk.

    FOLDER/KEY/annotations.npy   float16 (N, C, D), grows block by block
    FOLDER/KEY/cache.json        what the annotations are of and how many are finished: written after each block
    FOLDER/KEY/lock              locked by the process that computes

KEY is a hash of all that decides the annotations: those of other weights or other images lie in another folder. A
folder that is no longer used may be deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from saccade.errors import DataError, OutputError
from saccade.files import differences, write_json
from saccade.preprocessing import PreprocessSpec
from saccade.structure import structure, unstructure
from training.data import Images, Progress
from training.encoders import Encoder
from training.model import Captioner

_FORMAT_VERSION = 1
_ANNOTATIONS, _RECORD, _LOCK = "annotations.npy", "cache.json", "lock"
_LARGEST = float(np.finfo(np.float16).max)

Precision = Literal["float32", "bfloat16"]


class FeatureSource:
    """Annotations of N images on the disk, indexed like an array float16 (N, C, D)."""

    def __init__(self, annotations: NDArray[np.float16]) -> None:
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, chosen: slice | NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """Annotations (n, C, D) of a slice or of n indices, in order; a copy in memory."""
        indices = np.arange(len(self))[chosen]
        values = np.empty((len(indices), *self._annotations.shape[1:]), np.float16)
        for row in np.argsort(indices):  # in the order of the file, which a disk reads faster
            values[row] = self._annotations[indices[row]]
        return values


def cached_annotations(
    captioner: Captioner,
    pixels: Images,
    images: Sequence[str],
    spec: PreprocessSpec,
    *,
    folder: Path,
    batch_images: int = 32,
    precision: Precision = "float32",
    progress: Progress = lambda _: None,
) -> FeatureSource:
    """What `captioner.encode` gives for every image in evaluation mode, from `folder` or computed into it.

    pixels : uint8 (N, S, S, 3), read only where there is something to compute
    images : N strings that name the images and their content; the same names are taken for the same pixels
    spec : how the pixels came about, and the captioner's normalisation
    folder : for caches of any number of encoders and data sets
    batch_images : images a block; killed at any instant, the next call goes on after the last finished block
    precision : of the encoder's arithmetic
    progress : gets the number of images finished, with those of earlier calls

    The annotations are rounded to float16: by at most 2^-11 of a value (0.05 %), or 3e-8 if that is more.
    Raises OutputError if the cache is damaged, another process computes it, or the disk is full, and DataError if an
    annotation is beyond float16's range.
    """
    contents = _Contents(
        format_version=_FORMAT_VERSION,
        encoder=captioner.encoder.options.name,
        grid=captioner.encoder.options.grid,
        weights=_weights_hash(captioner.encoder),
        preprocessing=spec.fingerprint(),
        precision=precision,
        images=_json_hash(list(images)),
        shape=(len(images), captioner.encoder.cells(spec.size), captioner.encoder.width),
    )
    cache = _Cache(folder, contents)
    if cache.finished() < len(images):
        with cache.writing():
            _compute(cache, captioner, pixels, images, batch_images, precision, progress)
    return FeatureSource(cache.annotations())


def _compute(
    cache: _Cache,
    captioner: Captioner,
    pixels: Images,
    images: Sequence[str],
    batch_images: int,
    precision: Precision,
    progress: Progress,
) -> None:
    was_training = captioner.training
    captioner.eval()
    try:
        for start in range(cache.finished(), len(images), batch_images):
            block = slice(start, start + batch_images)
            values = _annotate(captioner, pixels[block], precision)
            cache.append(start, _float16(values, images[block]))
            progress(start + len(values))
    finally:
        captioner.train(was_training)


def _annotate(captioner: Captioner, pixels: NDArray[np.uint8], precision: Precision) -> Tensor:
    device = captioner.mean.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return captioner.encode(torch.from_numpy(pixels).to(device))


def _float16(values: Tensor, images: Sequence[str]) -> NDArray[np.float16]:
    largest = values.abs().amax(dim=(1, 2)).tolist()
    for value, image in zip(largest, images, strict=True):
        if not value <= _LARGEST:  # true of a NaN, too
            raise DataError(
                f"an annotation of image {image} is {value:g}, and the cache holds at most {_LARGEST:g} (float16): "
                "check the encoder's weights and the normalisation, or train without the cache"
            )
    halves: NDArray[np.float16] = values.half().contiguous().cpu().numpy()
    return halves


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What the annotations are of; its hash is the key. Hashes are SHA-256, `shape` is (N, C, D)."""

    format_version: int
    encoder: str
    grid: int
    weights: str
    preprocessing: str
    precision: str
    images: str
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """cache.json."""

    contents: _Contents
    finished: int


class _Cache:
    """The folder of one key. A block counts once the record, which is written after it, says so."""

    def __init__(self, folder: Path, contents: _Contents) -> None:
        self._folder = folder / _json_hash(unstructure(contents))[:16]
        self._contents = contents
        self._header = _npy_header(contents.shape)

    def finished(self) -> int:
        """How many images are finished. Raises OutputError if the files do not fit together."""
        record = self._folder / _RECORD
        if not record.exists():
            return 0
        try:
            found = structure(json.loads(record.read_bytes()), _Record, source=_RECORD, error=OutputError)
            with (self._folder / _ANNOTATIONS).open("rb") as file:
                header, size = file.read(len(self._header)), file.seek(0, os.SEEK_END)
        except (OSError, ValueError, OutputError) as error:
            raise self._damaged(str(error)) from error
        total, expected = self._contents.shape[0], self._size(found.finished)
        if found.contents != self._contents:
            changed = differences(unstructure(self._contents), unstructure(found.contents))
            raise self._damaged(f"{_RECORD}: {', '.join(changed)}")
        if not 0 < found.finished <= total:
            raise self._damaged(f"{_RECORD} counts {found.finished} of {total} images")
        if header != self._header:
            raise self._damaged(
                f"{_ANNOTATIONS} begins with another header than that of float16 {self._contents.shape}"
            )
        if size < expected or (size > expected and found.finished == total):
            raise self._damaged(f"{_ANNOTATIONS} has {size} bytes, expected {expected}")
        return found.finished

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes out, and say in the user's words what the disk refuses."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The system unlocks it however the process ends; the mere existence of a file would outlive a kill.
            with (self._folder / _LOCK).open("w") as lock:
                self._lock(lock.fileno())
                self._check_space()
                yield
        except OSError as error:
            raise OutputError(
                f"{self._folder} cannot be written ({error.strerror}): free some space or choose another folder, "
                "then run again; the finished blocks are kept"
            ) from error

    def append(self, finished: int, block: NDArray[np.float16]) -> None:
        """Write the annotations after the first `finished`."""
        with (self._folder / _ANNOTATIONS).open("ab") as file:
            file.truncate(self._size(finished))  # a process that was killed may have left a part of its last block
            file.write(block.tobytes() if finished else self._header + block.tobytes())
            file.flush()
            os.fsync(file.fileno())
        record = _Record(contents=self._contents, finished=finished + len(block))
        write_json(self._folder / _RECORD, unstructure(record))

    def annotations(self) -> NDArray[np.float16]:
        """All annotations as a read-only memory map."""
        return np.lib.format.open_memmap(self._folder / _ANNOTATIONS, mode="r")

    def _size(self, finished: int) -> int:
        """Bytes of a file with so many images; the header comes with the first."""
        _, cells, width = self._contents.shape
        return len(self._header) + finished * cells * width * np.float16().nbytes if finished else 0

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{self._folder} is being computed by another process: run again when that one has ended"
            ) from error

    def _check_space(self) -> None:
        needed = self._size(self._contents.shape[0]) - self._size(self.finished())
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise OutputError(
                f"{self._folder} needs {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free: "
                "free some space or choose another folder"
            )

    def _damaged(self, reason: str) -> OutputError:
        return OutputError(f"{self._folder} is damaged ({reason}): delete that folder, and it is computed anew")


def _npy_header(shape: tuple[int, int, int]) -> bytes:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _weights_hash(encoder: Encoder) -> str:
    state = {name: tensor.cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


def _json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
