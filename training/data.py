"""Training data: images with reference captions."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from saccade.preprocessing import PreprocessSpec, resize
from saccade.vocabulary import Vocabulary
from training.datasets import Photo, PhotoData, PhotoPixels, read_photos
from training.scene_data import SceneData
from training.scene_objects import SceneObject
from training.scenes import Scene, generate_scene

Progress = Callable[[int], None]
SplitName = Literal["train", "validation", "test"]
Data = SceneData | dict[str, tuple[Photo, ...]]
"""Generated scenes, or the photographs of every split."""

_POOL = 32
"""Batches whose captions are sorted by length together."""


class Images(Protocol):
    """N images, indexed like an array: pixels uint8 (N, S, S, 3), or annotations float16 (N, C, D)."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice | NDArray[np.integer[Any]], /) -> NDArray[Any]:
        """The images of a slice or of n indices, in memory and in order."""
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """Images and their references.

    images : what the captioner is given: preprocessed pixels, or annotations that were computed before
    captions : per image its references, each a tuple of words
    objects : per image what stands in the generated scene, for scoring; empty for photographs
    ids : per image what results call it
    identities : per image a string that names its source and content, for caches
    """

    images: Images
    captions: Sequence[tuple[tuple[str, ...], ...]]
    objects: Sequence[tuple[SceneObject, ...]] = ()
    ids: Sequence[int | str] = ()
    identities: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.captions)


class Batch(NamedTuple):
    """B images with K references each.

    indices : int64 (B,), their places in the split
    images : pixels uint8 (B, S, S, 3) or annotations float16 (B, C, D)
    tokens : int64 (B, K, T), `<start>` and the words, padded
    targets : int64 (N,), the next word of every place in `mask`, `<end>` last
    mask : bool (B, K, T), True where there is a next word
    """

    indices: Tensor
    images: Tensor
    tokens: Tensor
    targets: Tensor
    mask: Tensor


def generate_split(
    seeds: range, spec: PreprocessSpec, *, render_size: int, progress: Progress = lambda _: None
) -> Split:
    """Draw scenes on every core; the result depends on the seeds alone. `progress` gets the number done so far."""
    pixels = np.empty((len(seeds), spec.size, spec.size, 3), np.uint8)
    captions, objects = [], []
    draw = partial(_draw, spec=spec, render_size=render_size)
    workers = min(os.cpu_count() or 1, 16)
    # Not fork: the parent may hold threads of an arithmetic library by now.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for index, scene in enumerate(pool.map(draw, seeds, chunksize=64)):
            pixels[index] = scene.pixels
            captions.append(tuple(caption.words for caption in scene.captions))
            objects.append(scene.objects)
            progress(index + 1)
    identities = [f"scene {seed}, drawn at {render_size}" for seed in seeds]
    return Split(pixels, captions, objects, seeds, identities)


def open_data(options: SceneData | PhotoData) -> Data:
    """What `load_split` takes the splits from: files are listed and checked once for all of them. Raises DataError."""
    return options if isinstance(options, SceneData) else read_photos(options)


def load_split(
    data: Data,
    name: SplitName,
    spec: PreprocessSpec,
    *,
    limit: int | None = None,
    progress: Progress = lambda _: None,
) -> Split | None:
    """The first `limit` images of a split, or all; None where the data has no such split."""
    if isinstance(data, SceneData):
        seeds: range = getattr(data, name).seeds[:limit]
        return generate_split(seeds, spec, render_size=data.render_size, progress=progress)
    photos = data.get(name)
    if photos is None:
        return None
    photos = photos[:limit]
    return Split(
        PhotoPixels(photos, spec),
        [photo.captions for photo in photos],
        ids=[photo.id for photo in photos],
        identities=[photo.identity for photo in photos],
    )


def draw_pixels(seed: int, spec: PreprocessSpec, *, render_size: int) -> NDArray[np.uint8]:
    """Pixels (S, S, 3) of one generated scene, preprocessed like a file's."""
    return _draw(seed, spec=spec, render_size=render_size).pixels


def _draw(seed: int, *, spec: PreprocessSpec, render_size: int) -> Scene:
    scene = generate_scene(seed, size=render_size)
    return replace(scene, pixels=resize(Image.fromarray(scene.pixels), spec))


def batches(
    split: Split,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    images: int,
    captions_per_image: int,
    share: slice = slice(None),
) -> Iterator[Batch]:
    """One epoch in random order: every image once, `captions_per_image` of its references drawn without repeats.

    share : which images of every batch are wanted; it changes nothing of what is drawn

    Images whose drawn captions are of about the same lengths share a batch, and the captions of an image are sorted
    from the longest to the shortest, so that little of it is padding and teacher forcing passes over most of that.
    """
    order = rng.permutation(len(split))
    for start in range(0, len(order), images * _POOL):
        pool = order[start : start + images * _POOL].tolist()
        drawn = {index: _drawn(split.captions[index], rng, captions_per_image) for index in pool}
        by_length = sorted(drawn, key=lambda index: [len(words) for words in drawn[index]])
        groups = [by_length[at : at + images] for at in range(0, len(by_length), images)]
        for group in rng.permutation(len(groups)):
            chosen = groups[group][share]
            captions = [drawn[index] for index in chosen]
            yield Batch(
                torch.tensor(chosen), torch.from_numpy(split.images[np.array(chosen)]), *_forced(captions, vocabulary)
            )


def repeated(batch: Batch, samples: int) -> Batch:
    """The batch with every caption `samples` times in a row."""
    if samples == 1:
        return batch
    following = torch.zeros_like(batch.tokens).masked_scatter(batch.mask, batch.targets)
    tokens, following, mask = (part.repeat_interleave(samples, dim=1) for part in (batch.tokens, following, batch.mask))
    return batch._replace(tokens=tokens, targets=following[mask], mask=mask)


def batch_count(split: Split, images: int) -> int:
    """Batches of one epoch."""
    return -(-len(split) // images)


def _drawn(references: Sequence[tuple[str, ...]], rng: np.random.Generator, count: int) -> list[tuple[str, ...]]:
    places = rng.permutation(len(references))[:count]
    return sorted((references[place] for place in places), key=len, reverse=True)


def _forced(captions: list[list[tuple[str, ...]]], vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """`tokens`, `targets` and `mask` of a batch."""
    rows = max(len(references) for references in captions)
    length = 1 + max(len(words) for references in captions for words in references)
    tokens = np.full((len(captions), rows, length), vocabulary.pad, np.int64)
    following = tokens.copy()
    mask = np.zeros(tokens.shape, np.bool_)
    for image, references in enumerate(captions):
        for row, words in enumerate(references):
            ids = vocabulary.encode(words)
            tokens[image, row, : len(ids) + 1] = [vocabulary.start, *ids]
            following[image, row, : len(ids) + 1] = [*ids, vocabulary.end]
            mask[image, row, : len(ids) + 1] = True
    return torch.from_numpy(tokens), torch.from_numpy(following[mask]), torch.from_numpy(mask)
