"""Captioned photographs for training: where they come from, and their pixels, decoded when asked for.

Relative paths in a configuration start at the working directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saccade.errors import ConfigError, DataError, ImageError
from saccade.preprocessing import PreprocessSpec, load_image
from saccade.vocabulary import tokenise
from training.dataset_formats import (
    Entry,
    ImageIndex,
    TarMember,
    assigned,
    coco_images,
    jsonl_entries,
    karpathy_images,
    listed_names,
    refuse,
    shard_entries,
)

SPLITS = ("train", "validation", "test")
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions:
    """What every kind of data says of its captions.

    max_caption_words : longer captions are an error, or with `long_captions = "drop"` left out
    """

    max_caption_words: int = 50
    long_captions: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        if self.max_caption_words < 1:
            raise ConfigError(f"max_caption_words must be at least 1, got {self.max_caption_words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KarpathyData(CaptionOptions):
    """Karpathy's splits of Flickr8k, Flickr30k or COCO (Karpathy and Fei-Fei 2015, arXiv:1412.2306).

    annotations : dataset_flickr8k.json and the like (https://cs.stanford.edu/people/karpathy/deepimagesent/):
        `images[]` with `filename`, `filepath` (COCO), `split` and `sentences[]`, of which `raw` counts, else `tokens`
    images : folders and .tar files that hold the images
    use_restval : train on COCO's `restval`, too, as is usual
    """

    kind: Literal["karpathy"]
    annotations: str
    images: tuple[str, ...]
    use_restval: bool = True

    def entries(self) -> list[Entry]:
        """What the files say."""
        listed = karpathy_images(self.annotations, use_restval=self.use_restval)
        return ImageIndex(self.images).locate(listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoFiles:
    """annotations : a captions_*.json; images : folders and .tar files that hold its images."""

    annotations: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLists:
    """Per split a text file with an image's file name or id on each line."""

    train: str
    validation: str
    test: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoData(CaptionOptions):
    """COCO captions (Chen et al. 2015, arXiv:1504.00325; https://cocodataset.org/#format-data).

    train, validation, test : `images[]` with `id` and `file_name`, `annotations[]` with `image_id` and `caption`
    karpathy_splits : path of Karpathy's dataset_coco.json; its splits then count, whichever file an image comes from
    split_lists : the same by text files; images in no list are left out
    use_restval : train on the `restval` of `karpathy_splits`, too, as is usual
    """

    kind: Literal["coco"]
    train: CocoFiles
    validation: CocoFiles | None = None
    test: CocoFiles | None = None
    karpathy_splits: str | None = None
    split_lists: SplitLists | None = None
    use_restval: bool = True

    def __post_init__(self) -> None:
        CaptionOptions.__post_init__(self)  # super() does not work in a class with slots
        if self.karpathy_splits and self.split_lists:
            raise ConfigError("karpathy_splits and split_lists exclude each other: leave one out")
        if not (self.validation or self.karpathy_splits or self.split_lists):
            raise ConfigError("without validation there must be karpathy_splits or split_lists")

    def entries(self) -> list[Entry]:
        """What the files say."""
        files = {split: getattr(self, split) for split in SPLITS if getattr(self, split)}
        listed = {split: coco_images(file.annotations, split) for split, file in files.items()}
        lists = self._lists()
        if lists is None:  # one index a split: a name may occur in each
            located = (ImageIndex(file.images).locate(listed[split]) for split, file in files.items())
            return [entry for entries in located for entry in entries]
        index = ImageIndex(folder for file in files.values() for folder in file.images)
        return index.locate(assigned([image for images in listed.values() for image in images], lists))

    def _lists(self) -> dict[str, list[str]] | None:
        if self.karpathy_splits:
            images = karpathy_images(self.karpathy_splits, use_restval=self.use_restval)
            return {split: [image.id for image in images if image.split == split] for split in SPLITS}
        if self.split_lists:
            paths = {split: getattr(self.split_lists, split) for split in SPLITS}
            return {split: listed_names(path) for split, path in paths.items() if path}
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlData(CaptionOptions):
    """JSON Lines (https://jsonlines.org), one image a line: {"image": "dogs/1.jpg", "captions": ["a dog", ...]}.

    train, validation, test : paths of the files; the images' paths are relative to the file. Other keys are ignored
    """

    kind: Literal["jsonl"]
    train: str
    validation: str
    test: str | None = None

    def entries(self) -> list[Entry]:
        """What the files say."""
        paths = {split: getattr(self, split) for split in SPLITS}
        return [entry for split, path in paths.items() if path for entry in jsonl_entries(path, split)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TarData(CaptionOptions):
    """WebDataset shards (Aizman et al. 2019, arXiv:2001.01858; https://github.com/webdataset/webdataset).

    train, validation, test : paths of uncompressed tars, with ranges such as `train-{000..010}.tar`
    Members of one key, the path up to the first dot of its last part, belong together: an image (.jpg, .jpeg, .png,
    .webp) and its captions, the lines of a .txt or else `captions` or `caption` of a .json. Others are ignored.
    """

    kind: Literal["tar"]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()

    def entries(self) -> list[Entry]:
        """What the files say."""
        return [entry for split in SPLITS for entry in shard_entries(getattr(self, split), split)]


PhotoData = KarpathyData | CocoData | JsonlData | TarData


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph and its references.

    id : unique in the data set
    source : a file, or a member of a tar
    captions : at least one, each of at least one word
    """

    id: str
    source: Path | TarMember
    captions: tuple[tuple[str, ...], ...]

    @property
    def identity(self) -> str:
        """Names the source and, by its size and time, its content."""
        if isinstance(self.source, TarMember):
            file, place = self.source.tar, f"{self.source.size} bytes from {self.source.offset} of "
        else:
            file, place = self.source, ""
        status = file.stat()
        return f"{self.id}: {place}{status.st_size} bytes of {status.st_mtime_ns}"

    def load(self, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """Pixels (S, S, 3). Raises DataError that names the photograph; safe in many threads at once."""
        try:
            return load_image(self.source.read() if isinstance(self.source, TarMember) else self.source, spec)
        except (ImageError, OSError) as error:
            reason = str(error).removeprefix(f"{self.source}: ")
            raise DataError(
                f"image {self.id} ({self.source}): {reason}; replace the file or take the image out of the data set"
            ) from error


class PhotoPixels:
    """Preprocessed pixels of photographs, indexed like an array uint8 (N, S, S, 3), decoded at each access."""

    def __init__(self, photos: Sequence[Photo], spec: PreprocessSpec) -> None:
        self._photos = photos
        self._spec = spec

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, chosen: slice | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Pixels (n, S, S, 3) of a slice or of n indices, in order. Raises DataError that names the photograph."""
        indices = np.arange(len(self))[chosen]
        pixels = np.empty((len(indices), self._spec.size, self._spec.size, 3), np.uint8)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
            for row, image in enumerate(pool.map(lambda index: self._photos[index].load(self._spec), indices)):
                pixels[row] = image
        return pixels


def read_photos(options: PhotoData) -> dict[str, tuple[Photo, ...]]:
    """The photographs of each split: "train", "validation" and, where the data has one, "test".

    Raises DataError, one for each sort of problem, that counts the offenders, names the first and says what to do:
    a missing file or image, an image twice or in two splits, an image without captions, an empty or too long caption.
    """
    entries = options.entries()
    _refuse_repeated(entries)
    photos = _photos(entries, options)
    splits = {
        split: tuple(photo for entry, photo in zip(entries, photos, strict=True) if entry.split == split)
        for split in SPLITS
    }
    for split in ("train", "validation"):
        if not splits[split]:
            raise DataError(f"the data has no image for {split}: add some, or correct the splits")
    return {split: members for split, members in splits.items() if members}


def _refuse_repeated(entries: Iterable[Entry]) -> None:
    first: dict[str | Path | TarMember, Entry] = {}
    repeated, shared = [], []
    for entry in entries:
        others = [first.setdefault(key, entry) for key in (entry.id, entry.source)]
        other = next((other for other in others if other is not entry), entry)
        if other is entry:
            continue
        names = " and ".join(sorted({other.id, entry.id}))
        if other.split == entry.split:
            repeated.append(f"{names} in {entry.split}")
        else:
            shared.append(f"{names} in {other.split} and {entry.split}")
    refuse("images in two splits", shared, "leave each in one: what is trained on cannot be scored")
    refuse("images that occur twice", repeated, "give each once, with all its captions")


def _photos(entries: Iterable[Entry], options: CaptionOptions) -> list[Photo]:
    photos = []
    empty, too_long, bare = [], [], []
    for entry in entries:
        captions = tuple(_words(text) for text in entry.captions)
        empty += [entry.id for words in captions if not words]
        if options.long_captions == "drop":
            captions = tuple(words for words in captions if len(words) <= options.max_caption_words)
        too_long += [entry.id for words in captions if len(words) > options.max_caption_words]
        if not captions:
            bare.append(entry.id)
        photos.append(Photo(entry.id, entry.source, captions))
    refuse("captions without a word, of images", empty, "write them or take them out")
    refuse(
        f"captions of more than {options.max_caption_words} words, of images",
        too_long,
        'raise max_caption_words, or set long_captions = "drop" to leave them out',
    )
    refuse("images without captions", bare, "write some, take the images out, or raise max_caption_words if all were")
    return photos


def _words(text: str) -> tuple[str, ...]:
    """Words, each string once in memory: a large set has millions of them, of which few are different."""
    return tuple(map(sys.intern, tokenise(text)))
