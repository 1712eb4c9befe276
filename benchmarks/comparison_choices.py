"""Which words a candidate chooses on the reference's own inputs, and whether rounding explains another choice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import Values, existing, same_choices
from benchmarks.comparison_diagnosis import Choice
from benchmarks.comparison_results import StepAgreement
from benchmarks.comparison_runs import runners_up
from engine.backends.base import Backend
from saccade.decoding import Arrays

_ROUNDING = 1e-5
"""Nats: what any two float32 runtimes differ by in the score of a caption."""
_RUNNERS_UP = 4


def explained(error: float, tolerance: float) -> float:
    """The margin that an error of scores explains: each of two may be off by it, but by no more than is tolerated."""
    return 2 * min(max(error, _ROUNDING), tolerance)


class _Other(NamedTuple):
    """The words that only one of both chose, and what the reference's are above the candidate's, under the reference.

    step : from 1
    """

    step: int
    margin: float
    words: frozenset[int]


class Choices:
    """The choices of all steps and batches so far."""

    def __init__(self, reference: Backend, *, end: int, noticed: float) -> None:
        """Noticed : from this error on, a score is wrong whatever the precision."""
        self._reference, self._end, self._noticed = reference, end, noticed
        self._counts: list[NDArray[np.int64]] = []
        self._others: list[_Other] = []
        self._misjudged: list[Choice] = []

    def add(self, step: int, given: Arrays, expected: Arrays, found: Arrays, errors: Values) -> None:
        """Add a step, counted from 0, of a batch; `errors` (B, K) are those of the scores."""
        same = same_choices(expected, found)
        rows, matched = existing(expected), same.any(axis=2)
        counts = [rows.any(axis=1).sum(), (same[:, 0, 0] & rows[:, 0]).sum(), rows.sum(), matched.sum()]
        self._counts += [np.zeros(4, np.int64)] * (step + 1 - len(self._counts))
        self._counts[step] = self._counts[step] + np.array(counts, np.int64)
        misjudged = expected["next_tokens"][matched & (np.abs(errors) > self._noticed)].tolist()
        self._misjudged += [Choice(step=step + 1, words=frozenset([word])) for word in misjudged]
        differing = np.flatnonzero((rows & ~matched).any(axis=1))
        if len(differing):
            self._others += self._contests(step, given, expected, found, differing)

    def agreement(self, margin: float) -> tuple[StepAgreement, ...]:
        """Of each step; up to this margin another choice is a near-tie."""
        return tuple(
            StepAgreement(
                step=step,
                images=int(images),
                top_1=float(first / max(images, 1)),
                top_k=float(same / max(rows, 1)),
                near_ties=sum(one.margin <= margin for one in self._others if one.step == step),
                errors=sum(one.margin > margin for one in self._others if one.step == step),
            )
            for step, (images, first, rows, same) in enumerate(self._counts, start=1)
        )

    def wrong(self, margin: float) -> list[Choice]:
        """Other choices beyond this margin, and words with a score that is wrong whatever the precision."""
        return [Choice(step=one.step, words=one.words) for one in self._others if one.margin > margin] + self._misjudged

    def _contests(
        self, step: int, given: Arrays, expected: Arrays, found: Arrays, images: NDArray[np.int64]
    ) -> Iterator[_Other]:
        beam = _RUNNERS_UP * given["tokens"].shape[1]
        scores = runners_up(self._reference, given, beam=beam, end=self._end)
        for image in images.tolist():
            kept, taken, known = _choices(expected, image), _choices(found, image), scores[image]
            only, other = kept.keys() - taken.keys(), taken.keys() - kept.keys()
            lowest = min((known.get(pair, min(known.values())) for pair in other), default=-np.inf)
            words = frozenset(token for _, token in only | other)
            yield _Other(step + 1, max(kept[pair] for pair in only) - lowest, words)


def _choices(outputs: Arrays, image: int) -> dict[tuple[int, int], float]:
    """Scores of the rows that exist, by parent and token."""
    rows = zip(*(outputs[name][image].tolist() for name in ("parents", "next_tokens", "next_scores")), strict=True)
    return {(parent, token): score for parent, token, score in rows if score != float("-inf")}
