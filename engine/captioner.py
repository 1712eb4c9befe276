"""Images to records with an opened bundle: the engine without files and folders around it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, open_backend
from engine.records import Alternative, Attention, Failure, Record
from saccade.bundle import Bundle
from saccade.errors import ConfigError, ImageError
from saccade.preprocessing import load_image
from saccade.search import Hypothesis, SearchOptions, search

_Loaded = tuple[Path, NDArray[np.uint8] | ImageError]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions:
    """How images are captioned; every default is the bundle's or harmless.

    search : None searches with beam 3 to the maximum length of the bundle
    batch : images encoded and searched together
    attention : keep the alphas of every word
    backend : "auto", or a name from `engine.backends.base.BACKENDS`
    threads : for the arithmetic, 0 leaves it to the runtime
    loaders : threads that read images; 0 for one a core, 8 at most
    """

    search: SearchOptions | None = None
    batch: int = 16
    attention: bool = False
    backend: str = "auto"
    threads: int = 0
    loaders: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.batch < 1:
            problems.append(f"batch must be at least 1, got {self.batch}")
        problems += [f"{name} must be 0 or more" for name in ("threads", "loaders") if getattr(self, name) < 0]
        if problems:
            raise ConfigError("invalid caption options: " + "; ".join(problems))


class Captioner:
    """A bundle opened on a backend. A context manager.

    >>> with Captioner.open("examples/bundle") as captioner:  # doctest: +SKIP
    ...     for result in captioner.caption([Path("photo.jpg")]):
    ...         print(result)
    """

    def __init__(self, bundle: Bundle, backend: Backend, options: CaptionOptions) -> None:
        self.bundle = bundle
        self.backend = backend
        self.options = options
        self.search_options = options.search or SearchOptions(
            max_length=bundle.manifest.max_length, decode_mode=bundle.manifest.decode_mode
        )

    @classmethod
    def open(cls, bundle: Bundle | Path | str, options: CaptionOptions | None = None) -> Captioner:
        """Check the bundle and open it. Raises BundleError, BackendError."""
        options = options or CaptionOptions()
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        return cls(opened, open_backend(options.backend, opened, threads=options.threads), options)

    def caption(self, images: Iterable[Path]) -> Iterator[Record | Failure]:
        """One result per image, in order. Images are read ahead in threads; memory does not grow with their number."""
        loaders = self.options.loaders or min(8, os.cpu_count() or 1)  # each may hold one image at its native size
        ahead = 2 * max(loaders, self.options.batch)
        with (
            ThreadPoolExecutor(loaders, thread_name_prefix="saccade-load") as pool,
            closing(self._load_ahead(pool, images, count=ahead)) as loads,
        ):
            while batch := list(islice(loads, self.options.batch)):
                yield from self._caption_batch(batch)

    def caption_pixels(self, pixels: NDArray[np.uint8]) -> list[list[Hypothesis]]:
        """Hypotheses, best first, of preprocessed images, uint8 (B, S, S, 3)."""
        decoding = self.backend.begin(pixels, self.search_options, with_alphas=self.options.attention)
        return search(decoding, self.bundle.vocabulary, self.search_options)

    def __enter__(self) -> Self:
        self.backend.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.backend.__exit__(*details)

    def _load_ahead(self, pool: ThreadPoolExecutor, paths: Iterable[Path], *, count: int) -> Generator[_Loaded]:
        """Loaded images in order, at most `count` of them waiting."""
        waiting: deque[Future[_Loaded]] = deque()
        try:
            for path in paths:
                waiting.append(pool.submit(self._load, path))
                if len(waiting) >= count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for load in waiting:
                load.cancel()

    def _load(self, path: Path) -> _Loaded:
        try:
            return path, load_image(path, self.bundle.manifest.preprocessing)
        except ImageError as error:
            return path, error

    def _caption_batch(self, batch: Sequence[_Loaded]) -> Iterator[Record | Failure]:
        pixels = [loaded for _, loaded in batch if not isinstance(loaded, ImageError)]
        found = iter(self.caption_pixels(np.stack(pixels)) if pixels else [])
        for path, loaded in batch:
            if isinstance(loaded, ImageError):
                yield Failure(path=str(path), kind=loaded.kind, error=str(loaded))
            else:
                yield self._record(path, next(found))

    def _record(self, path: Path, hypotheses: Sequence[Hypothesis]) -> Record:
        best, vocabulary = hypotheses[0], self.bundle.vocabulary
        dimensions = self.bundle.manifest.dimensions
        return Record(
            path=str(path),
            caption=vocabulary.sentence(best.tokens),
            score=best.score,
            tokens=best.tokens,
            words=vocabulary.decode(best.tokens),
            truncated=best.truncated,
            alternatives=tuple(
                Alternative(
                    caption=vocabulary.sentence(other.tokens),
                    score=other.score,
                    tokens=other.tokens,
                    truncated=other.truncated,
                )
                for other in hypotheses[1:]
            ),
            attention=None
            if best.alphas is None
            else Attention(
                rows=dimensions.rows, columns=dimensions.columns, alphas=tuple(map(tuple, best.alphas.tolist()))
            ),
        )
