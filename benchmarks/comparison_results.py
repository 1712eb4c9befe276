"""What `saccade compare` finds: the values of its JSON file, described in docs/compare.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.comparison import TensorErrors
from saccade.bundle import Precision
from saccade.hypotheses import Hypothesis
from saccade.structure import unstructure

SCHEMA = "saccade-comparison/1"

FindingKind = Literal[
    "identical within rounding",
    "precision loss only",
    "no numbers",
    "input differs",
    "encoder differs",
    "step differs",
    "vocabulary row",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What a candidate may do and still pass.

    deviation : of any output of a graph, as root mean square of the difference in units of the reference's
    score : log-probability, in nats, that a word's score may be off; beyond it, an error explains no near-tie
    errors : share of captions, and of choices of words, that may differ where it is no near-tie
    drop : CIDEr-D that may be lost, where the interval of the change lies below 0
    """

    deviation: float
    score: float
    errors: float = 0.0
    drop: float = 0.02


TOLERANCES: Mapping[Precision, Tolerances] = {
    "fp32": Tolerances(deviation=1e-4, score=1e-3),
    "fp16": Tolerances(deviation=0.05, score=0.1),
    "bf16": Tolerances(deviation=0.1, score=0.3),
    "int8": Tolerances(deviation=0.25, score=0.5),
}
"""By the precision that a candidate runs in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """Where two searches part.

    step : from 1, the first after which their beams hold different words; or the last, where they chose differently
        among the same finished captions
    kept, taken : the words that only the reference keeps, and those that only the candidate keeps
    margin : what the reference's score of `kept` is above its score of `taken`
    explained : the margin that the measured error of scores explains, at most that of the tolerances
    """

    step: int
    kept: str
    taken: str
    margin: float
    explained: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding decided: no error."""
        return self.margin <= self.explained


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionComparison:
    """The caption of an image by the reference and by the candidate.

    outcome : "same" words, a "near-tie" that rounding broke, or an "error"
    reference_score, candidate_score : each by who wrote it
    score_under_reference : the reference's score of the candidate's caption
    first_word : place, from 1, of the first word that differs
    overlaps : of each word as long as the words before it are the same, what the alphas of both share, from 0 to 1
    """

    image: str
    outcome: Literal["same", "near-tie", "error"]
    reference: str
    candidate: str
    reference_score: float
    candidate_score: float
    score_under_reference: float
    first_word: int | None
    overlaps: tuple[float, ...]
    parting: Parting | None

    @property
    def overlap(self) -> float:
        """The mean over the words; 1 where there is none."""
        return sum(self.overlaps) / len(self.overlaps) if self.overlaps else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAgreement:
    """Choices of words at one step, on the reference's inputs.

    images : how many are still searched
    top_1, top_k : share of the best choices, and of all of the beam's, that are the same
    near_ties, errors : images with another choice, by whether rounding explains it
    """

    step: int
    images: int
    top_1: float
    top_k: float
    near_ties: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A metric of both, and the change with its 95 % interval by bootstrap, paired over images."""

    reference: float
    candidate: float
    change: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong, or not.

    tensor : the output it shows in; step : the first at which it does, from 1
    words : ids of the rows of the vocabulary
    """

    kind: FindingKind
    text: str
    tensor: str | None = None
    step: int | None = None
    words: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """A tensor inside the encoder, in the order of computing.

    deviation : as in `TensorErrors`; before : the largest of the tensors that its operator reads
    """

    tensor: str
    operator: str
    deviation: float
    before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Where in the encoder the error enters: `enters` is that tensor, None where there is no error to speak of."""

    enters: LayerError | None
    tensors: tuple[LayerError, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateResult:
    """One candidate beside the reference.

    problems : why it fails; empty where it passes
    encoder, step : each output on the same inputs, the step's at every step of the reference's search
    drift : outputs of the step along the reference's words, with the candidate's own annotations and state
    bundle : where it is not that of the reference
    pairs : best hypotheses of the reference and the candidate, one a caption; for the page, not in the JSON
    """

    name: str
    runs_on: str
    precision: Precision
    bundle: str | None
    tolerances: Tolerances
    verdict: Literal["PASS", "FAIL"]
    problems: tuple[str, ...]
    findings: tuple[Finding, ...]
    encoder: dict[str, TensorErrors]
    step: dict[str, TensorErrors]
    drift: dict[str, TensorErrors]
    agreement: tuple[StepAgreement, ...]
    captions: tuple[CaptionComparison, ...]
    scores: dict[str, Change]
    layers: Layers | None = None
    pairs: Sequence[tuple[Hypothesis, Hypothesis]] = ()

    @property
    def diagnosis(self) -> str:
        """All findings on one line."""
        return "; ".join(finding.text for finding in self.findings)

    @property
    def top(self) -> tuple[float, float]:
        """`top_1` and `top_k` of all steps; 1 where there is none."""
        images = sum(step.images for step in self.agreement) or 1
        first = sum(step.images * (1 - step.top_1) for step in self.agreement) / images
        return 1 - first, 1 - sum(step.images * (1 - step.top_k) for step in self.agreement) / images

    def count(self, outcome: str) -> int:
        """Captions of this outcome."""
        return sum(caption.outcome == outcome for caption in self.captions)

    @property
    def overlap(self) -> float:
        """The mean of the captions; 1 where there is none."""
        return sum(one.overlap for one in self.captions) / len(self.captions) if self.captions else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """A candidate that does not run here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All candidates beside one reference.

    reference : what truly ran
    search : options of the search, the same for all
    versions : of saccade, Python and the packages that took part
    """

    bundle: str
    fingerprint: str
    reference: str
    images: int
    search: dict[str, Any]
    candidates: tuple[CandidateResult, ...]
    unavailable: tuple[Unavailable, ...]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passes(self) -> bool:
        """Whether a candidate ran, and every one that did passes."""
        return bool(self.candidates) and all(one.verdict == "PASS" for one in self.candidates)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Plain values; a number that is none, or infinite, is null."""
    bare = replace(comparison, candidates=tuple(replace(one, pairs=()) for one in comparison.candidates))
    values = unstructure(bare)
    for one, found in zip(values["candidates"], comparison.candidates, strict=True):
        del one["pairs"]
        one["diagnosis"] = found.diagnosis
    plain: dict[str, Any] = _finite({"schema": SCHEMA, **values})
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
