"""How what a candidate computes differs from what the reference computes: pure functions over arrays.

The modules `comparison_*` beside it run the graphs, follow the searches, and say what the figures mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.decoding import Arrays

Values = NDArray[np.floating]
STEP_FLOATS = ("alphas", "next_cell", "next_hidden", "next_scores")
"""Outputs of the step graph in the order in which they are computed."""

_RELATIVE_FLOOR = 0.01
_BINS_PER_OCTAVE = 16
_OCTAVES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of absolute or relative differences; `p99` is not exceeded by 99 % of them, and at most 5 % too high itself."""

    max: float
    mean: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorErrors:
    """How an output differs from the reference's.

    values : how many were compared; nan, infinite : those that are no numbers, which the figures leave out
    relative : to the reference's value, or to a hundredth of the scale where that is larger
    cosine : between all values of both
    deviation : root mean square of the differences in units of the scale, which is that of the reference's values; of
        scores, in nats. The largest of all batches and steps; infinite where a value is no number
    by_step : the largest `deviation` at each step of the search; one for the encoder
    channel, channel_share : the place on the last axis with most of the squared error, and its share of it
    """

    values: int
    nan: int
    infinite: int
    absolute: Spread
    relative: Spread
    cosine: float
    deviation: float
    by_step: tuple[float, ...]
    channel: int
    channel_share: float

    def first_step(self, tolerance: float) -> int | None:
        """The first step, counted from 1, whose deviation is above the tolerance."""
        return next((step for step, found in enumerate(self.by_step, start=1) if found > tolerance), None)


class ErrorSums:
    """Adds up `TensorErrors` over batches and steps, in memory that does not grow."""

    def __init__(self, *, unit: float | None = None) -> None:
        """Unit : the scale of the values; None is their root mean square."""
        self._unit = unit
        self._values = self._nan = self._infinite = 0
        self._absolute, self._relative = _SpreadSums(), _SpreadSums()
        self._products = np.zeros(3)
        self._squares: Values = np.zeros(1)
        self._by_step: list[float] = []

    def add(self, reference: NDArray[Any], candidate: NDArray[Any], *, step: int = 0) -> None:
        """Compare values (..., C) of a step, counted from 0. The reference's are numbers."""
        self._by_step += [0.0] * (step + 1 - len(self._by_step))
        if not reference.size:
            return
        expected = np.asarray(reference, np.float64).reshape(-1, reference.shape[-1])
        found = np.asarray(candidate, np.float64).reshape(expected.shape)
        self._values += expected.size
        self._nan += int(np.isnan(found).sum())
        self._infinite += int(np.isinf(found).sum())
        valid = np.isfinite(found)
        difference = np.where(valid, found - np.where(valid, expected, 0), 0)
        scale = self._unit or scale_of(expected)
        size = np.abs(difference)
        self._absolute.add(size[valid])
        self._relative.add((size / np.maximum(np.abs(expected), _RELATIVE_FLOOR * scale))[valid])
        known = expected[valid], found[valid]
        self._products += [known[0] @ known[1], known[0] @ known[0], known[1] @ known[1]]
        self._squares = self._squares + (difference**2).sum(axis=0)
        self._by_step[step] = max(self._by_step[step], scale_of(difference, 0.0) / scale if valid.all() else np.inf)

    def errors(self) -> TensorErrors:
        """Of everything so far."""
        product, *squares = self._products
        norm = float(np.sqrt(np.prod(squares)))
        total = float(self._squares.sum())
        channel = int(self._squares.argmax())
        return TensorErrors(
            values=self._values,
            nan=self._nan,
            infinite=self._infinite,
            absolute=self._absolute.spread(),
            relative=self._relative.spread(),
            cosine=float(product) / norm if norm else float(not np.any(squares)),
            deviation=max(self._by_step, default=0.0),
            by_step=tuple(self._by_step),
            channel=channel,
            channel_share=float(self._squares[channel]) / total if total and len(self._squares) > 1 else 0.0,
        )


class _SpreadSums:
    def __init__(self) -> None:
        self._count, self._sum, self._max = 0, 0.0, 0.0
        self._histogram = np.zeros(2 * _OCTAVES * _BINS_PER_OCTAVE + 1, np.int64)

    def add(self, values: Values) -> None:
        self._count += values.size
        self._sum += float(values.sum())
        self._max = max(self._max, float(values.max(initial=0)))
        octaves = np.log2(np.maximum(values, 2.0**-_OCTAVES)).clip(max=_OCTAVES) + _OCTAVES
        bins = np.ceil(octaves * _BINS_PER_OCTAVE).astype(np.int64)
        self._histogram += np.bincount(bins, minlength=len(self._histogram))

    def spread(self) -> Spread:
        place = int(np.searchsorted(self._histogram.cumsum(), 0.99 * self._count)) if self._count else 0
        p99 = 2.0 ** (place / _BINS_PER_OCTAVE - _OCTAVES) if place else 0.0
        return Spread(max=self._max, mean=self._sum / max(self._count, 1), p99=min(p99, self._max))


def scale_of(values: NDArray[Any], nothing: float = 1.0) -> float:
    """The root mean square; of zeros it is `nothing`."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) or nothing


def existing(outputs: Arrays) -> NDArray[np.bool_]:
    """Which rows (B, K) of a step's outputs exist."""
    return np.asarray(outputs["next_scores"] != -np.inf)


def live(inputs: Arrays, *, end: int) -> NDArray[np.bool_]:
    """Which rows (B, K) of a step's inputs are continued."""
    return np.asarray((inputs["scores"] != -np.inf) & (inputs["tokens"] != end))


def same_choices(expected: Arrays, found: Arrays) -> NDArray[np.bool_]:
    """(B, K, K): whether row r of the reference is row s of the candidate, the same word after the same row."""
    pairs = [expected[name][:, :, None] == found[name][:, None, :] for name in ("parents", "next_tokens")]
    both = existing(expected)[:, :, None] & existing(found)[:, None, :]
    return np.asarray(pairs[0] & pairs[1] & both)


def score_errors(expected: Arrays, found: Arrays) -> Values:
    """(B, K): the candidate's score of each of the reference's choices, less the reference's; 0 where there is none.

    A choice that the candidate dropped is compared with what it put on that rank: sorted scores move no further than
    the scores themselves.
    """
    same = same_choices(expected, found)
    partner = np.where(same.any(axis=2), same.argmax(axis=2), np.arange(same.shape[1]))
    scores = np.take_along_axis(found["next_scores"], partner, axis=1).astype(np.float64)
    compared = existing(expected) & (scores != -np.inf)
    return np.where(compared, scores - np.where(compared, expected["next_scores"], 0), 0.0)


def overlaps(reference: Values, candidate: Values, *, words: int) -> tuple[float, ...]:
    """Of the first so many words, what the alphas (T, L) of both share: the sum of the smaller ones, from 0 to 1."""
    count = min(words, len(reference), len(candidate))
    return tuple(np.minimum(reference[:count], candidate[:count]).sum(axis=1).astype(float).tolist())
