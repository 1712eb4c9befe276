"""Candidates by name, and the comparison of all of them with one reference."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison_diagnosis import diagnose, problems
from benchmarks.comparison_layers import find_layers
from benchmarks.comparison_results import (
    TOLERANCES,
    CandidateResult,
    Change,
    Comparison,
    Tolerances,
    Unavailable,
)
from benchmarks.comparison_runs import record
from benchmarks.comparison_scores import changes
from benchmarks.comparison_tally import Side, Tally
from benchmarks.scoring import tokenised
from engine.backends.base import BACKENDS, Backend, open_backend
from saccade import __version__
from saccade.bundle import CHECKPOINT, Bundle, Precision
from saccade.errors import BackendError, BundleError, ConfigError, DataError, ImageError
from saccade.preprocessing import PreprocessSpec, load_image
from saccade.search import SearchOptions

log = logging.getLogger(__name__)

_PACKAGES = ("numpy", "torch", "onnxruntime", "openvino", "tensorrt")
_LAYER_IMAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is compared, written `backend[:precision][@bundle]`.

    precision : None is the backend's choice; bundle : None is that of the reference
    """

    backend: str
    precision: Precision | None = None
    bundle: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read its name. Raises ConfigError where there is no such backend or precision."""
        name, _, bundle = text.partition("@")
        backend, _, precision = name.partition(":")
        if backend not in BACKENDS:
            raise ConfigError(f"{text!r}: unknown backend {backend!r}, choose from {', '.join(BACKENDS)}")
        known: tuple[Precision, ...] = get_args(Precision)
        if precision and precision not in known:
            raise ConfigError(f"{text!r}: unknown precision {precision!r}, choose from {', '.join(known)}")
        chosen = next((one for one in known if one == precision), None)
        return cls(backend=backend, precision=chosen, bundle=Path(bundle) if bundle else None)

    def __str__(self) -> str:
        precision = f":{self.precision}" if self.precision else ""
        return f"{self.backend}{precision}" + (f"@{self.bundle}" if self.bundle else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonOptions:
    """How candidates are compared.

    search : the same for all
    batch : images that are encoded and searched together
    threads : for the arithmetic, 0 leaves it to the runtime
    tolerances : of a precision, for all candidates; None takes those of the precision that each runs in
    changes : fields of the tolerances that are not the precision's
    layers : also find where in the encoder the error enters
    """

    search: SearchOptions
    batch: int = 8
    threads: int = 0
    tolerances: Precision | None = None
    changes: Mapping[str, float] = field(default_factory=dict)
    layers: bool = False

    def tolerances_of(self, precision: Precision) -> Tolerances:
        """What a candidate of a precision may do."""
        return replace(TOLERANCES[self.tolerances or precision], **self.changes)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to compare on, and the captions that are right, if any are known."""

    path: Path
    references: Sequence[str] = ()


def default_reference(bundle: Bundle) -> Candidate:
    """PyTorch where the bundle has its weights and torch is installed, else ONNX Runtime."""
    has_torch = CHECKPOINT in bundle.manifest.files and find_spec("torch") is not None
    return Candidate(backend="pytorch" if has_torch else "ort", precision="fp32")


def compare_candidates(
    bundle: Bundle,
    reference: Candidate,
    candidates: Sequence[Candidate],
    pictures: Sequence[Picture],
    options: ComparisonOptions,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Search the pictures with the reference, and with every candidate that runs here.

    Each image is read once, and all get the same pixels; one that cannot be read is left out with a warning.
    Raises BackendError where the reference does not run, DataError where no image can be read.
    """
    with ExitStack() as stack:
        backend = open_backend(
            reference.backend, bundle, threads=options.threads, precision=reference.precision or "fp32"
        )
        side = Side(backend=stack.enter_context(backend), bundle=bundle, options=options.search)
        opened, unavailable = _open_all(candidates, bundle, options, stack)
        tallies = [Tally(side, other, options.tolerances_of(other.backend.precision)) for other in opened.values()]
        loaded = _loaded(pictures, bundle.manifest.preprocessing)
        images = 0
        shown: list[NDArray[np.uint8]] = []
        while batch := list(islice(loaded, options.batch)):
            pixels = np.stack([image for _, image in batch])
            shown += list(pixels[: _LAYER_IMAGES - len(shown)])
            recording = record(backend, bundle, pixels, options.search)
            for tally in tallies:
                tally.add(recording, [str(picture.path) for picture, _ in batch])
            progress(images := images + len(batch))
        if not images:
            raise DataError("there is no readable image to compare on: give a folder with some")
        results = [
            _result(bundle, candidate, other, tally, pictures, shown, options)
            for (candidate, other), tally in zip(opened.items(), tallies, strict=True)
        ]
    return Comparison(
        bundle=str(bundle.path),
        fingerprint=bundle.fingerprint,
        reference=backend.description,
        images=images,
        search=asdict(options.search),
        candidates=tuple(results),
        unavailable=tuple(unavailable),
        versions=dict(_versions()),
    )


def _open_all(
    candidates: Sequence[Candidate], bundle: Bundle, options: ComparisonOptions, stack: ExitStack
) -> tuple[dict[Candidate, Side], list[Unavailable]]:
    """Those that run here, and those that do not."""
    opened: dict[Candidate, Side] = {}
    unavailable = []
    for candidate in candidates:
        try:
            other, backend = _open(candidate, bundle, options.threads)
        except (BackendError, BundleError, ConfigError) as error:
            unavailable.append(Unavailable(name=str(candidate), reason=str(error)))
        else:
            opened[candidate] = Side(backend=stack.enter_context(backend), bundle=other, options=options.search)
    return opened, unavailable


def _loaded(pictures: Sequence[Picture], spec: PreprocessSpec) -> Iterator[tuple[Picture, NDArray[np.uint8]]]:
    for picture in pictures:
        try:
            yield picture, load_image(picture.path, spec)
        except ImageError as error:
            log.warning("left out: %s", error)


def _open(candidate: Candidate, bundle: Bundle, threads: int) -> tuple[Bundle, Backend]:
    other = Bundle.open(candidate.bundle) if candidate.bundle else bundle
    here, there = bundle.manifest, other.manifest
    if (here.dimensions, here.attention, here.preprocessing.size) != (
        there.dimensions,
        there.attention,
        there.preprocessing.size,
    ):
        raise ConfigError(f"{other.path} has other sizes or another attention than {bundle.path}: not comparable")
    return other, open_backend(candidate.backend, other, threads=threads, precision=candidate.precision)


def _result(
    bundle: Bundle,
    candidate: Candidate,
    side: Side,
    tally: Tally,
    pictures: Sequence[Picture],
    shown: Sequence[NDArray[np.uint8]],
    options: ComparisonOptions,
) -> CandidateResult:
    precision = side.backend.precision
    tolerances = options.tolerances_of(precision)
    encoder, step, drift = ({name: sums.errors() for name, sums in part.items()} for part in tally.errors())
    agreement, captions = tally.agreement(), tuple(tally.captions)
    scores = _scores(tally, pictures)
    wrong = list(problems({**encoder, **step}, agreement, captions, scores, tolerances))
    if tally.broken_searches:
        wrong.append(f"{tally.broken_searches} batches gave scores that are no numbers")
    layers = None
    if options.layers:
        layers = find_layers(bundle, side.bundle, candidate.backend, precision, shown, threads=options.threads)
    return CandidateResult(
        name=str(candidate),
        runs_on=side.backend.description,
        precision=precision,
        bundle=str(candidate.bundle) if candidate.bundle else None,
        tolerances=tolerances,
        verdict="FAIL" if wrong else "PASS",
        problems=tuple(wrong),
        findings=diagnose(tally.evidence(), tolerances),
        encoder=encoder,
        step=step,
        drift=drift,
        agreement=agreement,
        captions=captions,
        scores=scores,
        layers=layers,
        pairs=tally.pairs,
    )


def _scores(tally: Tally, pictures: Sequence[Picture]) -> dict[str, Change]:
    references = {str(one.path): one.references for one in pictures if one.references}
    scored = [caption for caption in tally.captions if caption.image in references]
    if not scored:
        return {}
    sides = [caption.reference for caption in scored], [caption.candidate for caption in scored]
    return changes(*sides, [tokenised(references[caption.image]) for caption in scored])


def _versions() -> Iterator[tuple[str, str]]:
    yield "saccade", __version__
    yield "python", platform.python_version()
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
