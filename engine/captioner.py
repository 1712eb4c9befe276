"""Images to records with an opened bundle: the engine without files and folders around it."""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.backends.base import Backend, open_backend
from engine.images import Source
from engine.pipeline import Stages, ahead, at_hand, each, in_order
from engine.records import Alternative, Attention, Failure, Record
from saccade.bundle import Bundle, Precision
from saccade.decoding import Decoding
from saccade.errors import ConfigError, ImageError
from saccade.hypotheses import Hypothesis
from saccade.preprocessing import load_image, resize
from saccade.search import ContinuousSearch, SearchOptions, search

ImageLike = str | Path | bytes | NDArray[np.uint8] | Source
"""A path, the bytes of a file, the pixels of a picture as uint8 (H, W, 3) in RGB or (H, W) in grey, or a source."""

_SCANNED = 256
_SCANNED_BYTES = 1 << 28
_READ_BYTES = 1 << 24
"""Larger files are read while they are decoded, so that their bytes and their pixels are not in memory together."""
_FAILURES_PER_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions:
    """How images are captioned; every default is the bundle's or harmless.

    search : None searches with beam 3 to the maximum length of the bundle
    batch : images encoded and searched together. A last, smaller batch is filled up, so that no caption depends on how
        many images share its batch: for one image at a time, say 1
    attention : keep the alphas of every word
    backend : "auto", or a name from `engine.backends.base.BACKENDS`
    precision : of the arithmetic; None is the best that the backend has here without 8-bit integers
    threads : for the arithmetic, 0 leaves it to the runtime
    loaders : threads that read and decode images; 0 for one a core, 8 at most
    time_limit_s : seconds that reading and decoding one image may take; then it is a failure of the kind "too_slow"
    """

    search: SearchOptions | None = None
    batch: int = 16
    attention: bool = False
    backend: str = "auto"
    precision: Precision | None = None
    threads: int = 0
    loaders: int = 0
    time_limit_s: float = 30.0

    def __post_init__(self) -> None:
        problems = []
        if self.batch < 1:
            problems.append(f"batch must be at least 1, got {self.batch}")
        if not self.time_limit_s > 0:
            problems.append(f"time_limit_s must be above 0, got {self.time_limit_s}")
        problems += [f"{name} must be 0 or more" for name in ("threads", "loaders") if getattr(self, name) < 0]
        if problems:
            raise ConfigError("invalid caption options: " + "; ".join(problems))

    def search_options(self, bundle: Bundle) -> SearchOptions:
        """How captions of this bundle are searched."""
        manifest = bundle.manifest
        return self.search or SearchOptions(max_length=manifest.max_length, decode_mode=manifest.decode_mode)


class _Loaded(NamedTuple):
    name: str
    pixels: NDArray[np.uint8] | ImageError


class _Named(NamedTuple):
    """An image of which no more is needed than what it is called, and why it could not be read."""

    name: str
    error: ImageError | None


class _Encoded(NamedTuple):
    names: Sequence[_Named]
    decoding: Decoding | None
    """Of the readable images, in order; None where there is none."""


class Captioner:
    """A bundle opened on a backend. A context manager, which frees what the backend holds. Shown in docs/python.md."""

    def __init__(self, bundle: Bundle, backend: Backend, options: CaptionOptions) -> None:
        self.bundle = bundle
        self.backend = backend
        self.options = options
        self.search_options = options.search_options(bundle)

    @classmethod
    def open(cls, bundle: Bundle | Path | str, options: CaptionOptions | None = None) -> Captioner:
        """Check the bundle and open it. Raises BundleError, BackendError."""
        options = options or CaptionOptions()
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        backend = open_backend(options.backend, opened, threads=options.threads, precision=options.precision)
        return cls(opened, backend, options)

    def caption(
        self, images: Iterable[ImageLike], *, stop: threading.Event | None = None, stages: Stages | None = None
    ) -> Generator[Record | Failure]:
        """One result per image, in order. Memory does not grow with their number.

        images : iterated in a thread of its own; what is given as bytes or pixels is called by its place, "0", "1", ...
        stop : once it is set, no further image is begun; those that were come out, then the results end
        stages : gets the time that each stage of the pipeline works
        An image that cannot be read is a Failure in its place. Errors of the iterable come out here.
        """
        if isinstance(images, str | Path | bytes):
            raise ConfigError(f"images is {images!r:.50}: expected several, as in [{images!r:.50}]")
        stages = Stages() if stages is None else stages
        loaders = self.options.loaders or min(8, os.cpu_count() or 1)  # each may hold one image at its native size
        for stage in ("scan", "read", "decode", "encode", "search"):
            stages.expect(stage, loaders if stage in ("read", "decode") else 1)
        return self._caption(images, stop, stages, loaders)

    def _caption(
        self, images: Iterable[ImageLike], stop: threading.Event | None, stages: Stages, loaders: int
    ) -> Generator[Record | Failure]:
        found = stages.pulled("scan", map(_source, count(), images))
        ended = threading.Event()
        scan, encode, search = (stages.by_name[name] for name in ("scan", "encode", "search"))
        sources = ahead(
            found,
            size=_SCANNED,
            limit=_SCANNED_BYTES,
            weight=_bytes_held,
            name="saccade-scan",
            stage=scan,
            stops=[ended] if stop is None else [ended, stop],
        )
        loaded = in_order(
            lambda source: self._load(source, stages),
            sources,
            threads=loaders,
            size=2 * max(loaders, self.options.batch),
            limit_s=self.options.time_limit_s,
            too_slow=self._too_slow,
            name="saccade-load",
        )
        encoding = threading.Event()
        encoded = each(lambda batch: self._encode(batch, stages, encoding), self._batches(loaded))
        searching = ContinuousSearch(self.bundle.vocabulary, self.search_options)
        at_once = at_hand(
            encoded,
            size=1,
            name="saccade-encode",
            stage=encode,
            # With places to fill, a batch that is being encoded is worth waiting for; one that is still loading is not.
            waits=lambda: encoding.is_set() or not searching.is_busy,
        )
        searched = self._search(searching, at_once, stages)
        with closing(ahead(searched, size=1, name="saccade-search", stage=search, ended=ended)) as batches:
            for results in batches:
                yield from results

    def caption_pixels(self, pixels: NDArray[np.uint8]) -> list[list[Hypothesis]]:
        """Hypotheses, best first, of preprocessed images, uint8 (B, S, S, 3)."""
        return search(self._begin(pixels), self.bundle.vocabulary, self.search_options)

    def __enter__(self) -> Self:
        self.backend.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.backend.__exit__(*details)

    def _begin(self, pixels: NDArray[np.uint8]) -> Decoding:
        return self.backend.begin(pixels, self.search_options, with_alphas=self.options.attention)

    def _load(self, source: Source, stages: Stages) -> _Loaded:
        spec = self.bundle.manifest.preprocessing
        try:
            with stages.working("read"):
                content = _read(source)
            with stages.working("decode"):
                if isinstance(content, Image.Image):
                    return _Loaded(source.name, resize(content, spec))
                return _Loaded(source.name, load_image(content, spec, name=source.name))
        except ImageError as error:
            return _Loaded(source.name, error)

    def _too_slow(self, source: Source) -> _Loaded:
        limit = f"{self.options.time_limit_s:g} s"
        return _Loaded(source.name, ImageError(f"{source.name}: took more than {limit} to load", kind="too_slow"))

    def _batches(self, loaded: Generator[_Loaded]) -> Generator[list[_Loaded]]:
        """Runs of images of which `batch` are readable, or fewer at the end and among very many failures."""
        batch: list[_Loaded] = []
        readable = 0
        with closing(loaded):
            for image in loaded:
                batch.append(image)
                readable += not isinstance(image.pixels, ImageError)
                if readable == self.options.batch or len(batch) == _FAILURES_PER_BATCH * self.options.batch:
                    yield batch
                    batch, readable = [], 0
        if batch:
            yield batch

    def _encode(self, batch: list[_Loaded], stages: Stages, encoding: threading.Event) -> _Encoded:
        """Encode; meanwhile, `encoding` is set."""
        pixels = [image.pixels for image in batch if not isinstance(image.pixels, ImageError)]
        names = [_Named(name, loaded if isinstance(loaded, ImageError) else None) for name, loaded in batch]
        if not pixels:
            return _Encoded(names, None)
        with stages.working("encode"):
            # Matrix products of other sizes round differently: the last batch is filled up with copies.
            filled = pixels + pixels[-1:] * (self.options.batch - len(pixels))
            encoding.set()
            try:
                return _Encoded(names, self._begin(np.stack(filled)))
            finally:
                encoding.clear()

    def _search(
        self, searching: ContinuousSearch, encoded: Generator[_Encoded | None], stages: Stages
    ) -> Generator[list[Record | Failure]]:
        """Results of batch after batch; None says that no further one is encoded yet, while others are searched.

        An error of what comes before comes out after the results of the batches before it.
        """
        batches: deque[Sequence[_Named]] = deque()
        failed: Exception | None = None
        with closing(encoded):
            while True:
                try:
                    one = next(encoded)
                except StopIteration:
                    break
                except Exception as error:  # noqa: BLE001 - raised below
                    failed = error
                    break
                if one is not None:
                    batches.append(one.names)
                    if one.decoding is not None:
                        searching.add(one.decoding, images=_readable(one.names))
                    del one  # or its buffers could not be used again before the next comes
                yield from self._found(searching, batches, stages)
                while not searching.is_hungry:
                    yield from self._found(searching, batches, stages)
        while batches:
            yield from self._found(searching, batches, stages)
        if failed is not None:
            raise failed

    def _found(
        self, searching: ContinuousSearch, batches: deque[Sequence[_Named]], stages: Stages
    ) -> Generator[list[Record | Failure]]:
        """Search on; of the batches that are done now, the results."""
        found: deque[list[list[Hypothesis]]] = deque()
        if searching.is_busy:
            with stages.working("search"):
                found.extend(searching.run())
        while batches and (found or not _readable(batches[0])):
            names = batches.popleft()
            hypotheses = iter(found.popleft() if _readable(names) else ())
            yield [
                self._record(one.name, next(hypotheses))
                if one.error is None
                else Failure(path=one.name, kind=one.error.kind, error=str(one.error))
                for one in names
            ]

    def _record(self, name: str, hypotheses: Sequence[Hypothesis]) -> Record:
        best, vocabulary = hypotheses[0], self.bundle.vocabulary
        dimensions = self.bundle.manifest.dimensions
        return Record(
            path=name,
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


def _readable(names: Sequence[_Named]) -> int:
    return sum(one.error is None for one in names)


def _source(number: int, image: ImageLike) -> Source:
    if isinstance(image, Source):
        return image
    if isinstance(image, str | Path):
        return Source(str(image), Path(image))
    return Source(str(number), image if isinstance(image, bytes) else _picture(image))


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    has_form = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not has_form or 0 in pixels.shape:
        raise ConfigError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}: expected uint8 (H, W, 3) in RGB or (H, W) in grey"
        )
    return Image.fromarray(pixels).convert("RGB")


def _bytes_held(source: Source) -> float:
    if isinstance(source.content, Image.Image):
        return 4.0 * source.content.width * source.content.height
    return len(source.content) if isinstance(source.content, bytes) else 0


def _read(source: Source) -> Path | bytes | Image.Image:
    """The content at hand. Raises ImageError."""
    if isinstance(source.content, ImageError):
        raise source.content
    if isinstance(source.content, Path):
        return _bytes_of(source.content)
    return source.content() if callable(source.content) else source.content


def _bytes_of(path: Path) -> Path | bytes:
    """The bytes of a file, or its path where they are many or cannot be read: `load_image` then tells why."""
    with suppress(OSError, ValueError):
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= _READ_BYTES:
            return path.read_bytes()
    return path
