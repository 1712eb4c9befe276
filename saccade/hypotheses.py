"""Hypotheses, and how the steps of a search tell which there are and which one is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.errors import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A finished or truncated caption.

    tokens : ids without `<start>` and `<end>`
    log_prob : sum of log-probabilities, `<end>` included where it was reached
    score : what it was ranked by, log_prob / length^length_penalty
    alphas : float32 (len(tokens), L), one row a word, or None where they were not asked for
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    truncated: bool
    alphas: NDArray[np.float32] | None = None


class StepReport(NamedTuple):
    """What a step tells the loop, for B images and K rows; row r of rank r, best first.

    tokens, parents : int64 (B, K), the word each candidate adds and the row it continues
    scores : float32 (B, K), cumulative log-probs; -inf marks a row that does not exist
    alphas : float32 (B, K, L) of the rows *before* selection (index them by parent), or None
    """

    tokens: NDArray[np.int64]
    parents: NDArray[np.int64]
    scores: NDArray[np.float32]
    alphas: NDArray[np.float32] | None


class Ended(NamedTuple):
    """An image whose search is over.

    place : where it was searched, of the B there are
    first, last : steps of its search, counted from the beginning of the trace
    live : bool (K,), the rows that had not ended after the last
    """

    place: int
    first: int
    last: int
    live: NDArray[np.bool_]


class Trace:
    """The steps that were taken and are still needed, of images that need not have begun with the same step.

    steps : how many were taken
    live : bool (B, K), the rows that have not ended
    """

    def __init__(self, images: int, end: int, *, max_length: int, n_best: int, length_penalty: float) -> None:
        """Of so many images; `end` is the id of `<end>`, the others are those of `saccade.search.SearchOptions`."""
        self.steps = 0
        self.live = np.ones((0, 0), bool)
        self._end, self._max_length, self._n_best, self._length_penalty = end, max_length, n_best, length_penalty
        self._reports: list[StepReport] = []
        self._best_finished = np.full(images, -np.inf)

    def begin(self, places: NDArray[np.intp]) -> None:
        """Other images are in these places from now on."""
        self._best_finished[places] = -np.inf

    def add(self, report: StepReport, first: NDArray[np.int64]) -> None:
        """Of images that began, each in its place, with the steps `first`, int64 (B,). Raises BackendError for NaN."""
        self._reports.append(report)
        self.steps += 1
        lengths = (self.steps - first)[:, None]
        if (broken := np.isnan(report.scores).any(axis=1)).any():
            raise BackendError(
                f"the step graph gave NaN scores at step {lengths[broken].min()}: the weights, or the precision they "
                'run in, are broken; compare with "--backend pytorch"'
            )
        exists = np.isfinite(report.scores)
        ended = exists & (report.tokens == self._end)
        finished = np.where(ended, self._normalised(report.scores, lengths), -np.inf)
        self._best_finished = np.maximum(self._best_finished, finished.max(axis=1))
        self.live = exists & ~ended

    def is_known(self, first: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each place (B,), whether its image can no longer change its answer.

        Scores only fall, so a live row ends at best with its score of now at the maximum length. With more than one
        hypothesis asked for, every slot counts and the search runs to its end.
        """
        at_limit = self.steps - first >= self._max_length
        none_live = ~self.live.any(axis=1)
        known: NDArray[np.bool_] = at_limit | none_live
        if self._n_best > 1:
            return known
        bound = self._normalised(np.where(self.live, self._reports[-1].scores, -np.inf), self._max_length)
        known |= self._best_finished >= bound.max(axis=1)
        return known

    def forget(self, before: int) -> None:
        """Steps before this one are not needed any more."""
        del self._reports[: before - self._forgotten]

    def hypotheses(self, ended: Sequence[Ended]) -> list[list[Hypothesis]]:
        """Of many images at once: a loop over each one's steps would take longer than the steps."""
        places, first, last = (np.array([getattr(one, name) for one in ended]) for name in ("place", "first", "last"))
        times = np.arange((last - first).max() + 1)[:, None]
        told = np.minimum(first + times, last) - self._forgotten, places  # later steps are of other images

        def of_images(name: str) -> NDArray[Any]:
            values: NDArray[Any] = np.stack([getattr(report, name) for report in self._reports])[told]
            return values

        tokens, scores, parents = map(of_images, ("tokens", "scores", "parents"))
        scores[times > last - first] = -np.inf
        alphas = None if self._reports[0].alphas is None else of_images("alphas")
        step, rank, counts = self._best(tokens, scores, last - first, np.stack([one.live for one in ended]))
        images = np.arange(len(ended))[:, None]
        words, seen = _traced(tokens, parents, alphas, step, rank)
        log_prob = scores[step, images, rank]
        score = self._normalised(log_prob, step + 1)
        truncated = tokens[step, images, rank] != self._end
        length = step + truncated
        return [
            [
                Hypothesis(
                    tokens=tuple(words[image, place, : length[image, place]].tolist()),
                    log_prob=float(log_prob[image, place]),
                    score=float(score[image, place]),
                    truncated=bool(truncated[image, place]),
                    alphas=None if seen is None else seen[image, place, : length[image, place]].copy(),
                )
                for place in range(count)
            ]
            for image, count in enumerate(counts)
        ]

    def _best(
        self,
        tokens: NDArray[np.int64],
        scores: NDArray[np.float32],
        last: NDArray[np.int64],
        live_at_last: NDArray[np.bool_],
    ) -> tuple[NDArray[np.intp], ...]:
        """Step and rank (N, n_best) where the best hypotheses of each image stop, and how many there are (N,).

        tokens, scores : (T, N, K) of all steps
        last : int64 (N,), the last step of each image; live_at_last : bool (N, K), its rows that did not end
        """
        finished = np.isfinite(scores) & (tokens == self._end)
        live = np.zeros_like(finished)
        live[last, np.arange(len(last))] = live_at_last  # by rank, which is best first already
        normalised = self._normalised(scores, np.arange(1, len(scores) + 1)[:, None, None])
        cost = np.where(finished, -normalised, np.where(live, 0.0, np.inf))
        group, cost = (
            part.transpose(1, 0, 2).reshape(scores.shape[1], -1) for part in (np.where(finished, 0, 2 - live), cost)
        )
        order = np.lexsort((cost, group), axis=-1)[:, : self._n_best]
        counts = np.minimum((group < 2).sum(axis=-1), order.shape[1])
        return *np.divmod(order, scores.shape[2]), counts

    @property
    def _forgotten(self) -> int:
        """How many steps are."""
        return self.steps - len(self._reports)

    def _normalised(self, scores: NDArray[np.float32], length: int | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        normalised: NDArray[np.float64] = np.asarray(scores, np.float64) / length**self._length_penalty
        return normalised


def _traced(
    tokens: NDArray[np.int64],
    parents: NDArray[np.int64],
    alphas: NDArray[np.float32] | None,
    step: NDArray[np.intp],
    rank: NDArray[np.intp],
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """Words (N, n_best, T), and alphas (N, n_best, T, L) if there are some, of the rows that lead to each rank.

    tokens, parents : (T, N, K); alphas : (T, N, K, L)
    step, rank : (N, n_best), where a hypothesis stops; what comes after is arbitrary
    """
    images = np.arange(len(step))[:, None]
    words, seen = [], []
    for number in reversed(range(len(tokens))):
        words.append(tokens[number, images, rank])
        rank = np.where(number <= step, parents[number, images, rank], rank)
        if alphas is not None:
            seen.append(alphas[number, images, rank])
    return np.stack(words[::-1], axis=2), np.stack(seen[::-1], axis=2) if seen else None
