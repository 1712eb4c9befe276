"""Beam search above the step graph: one loop for training-time evaluation, export checks, every backend and benchmark.

The rule itself (top-k, slots, gather of the surviving states) runs inside the step graph. What is left here sees only
(B, K) arrays: when to stop, which hypotheses there are, which one is best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from saccade.errors import BackendError, ConfigError
from saccade.glimpses import DecodeMode, Glimpses
from saccade.vocabulary import Vocabulary

Arrays = Mapping[str, NDArray[np.generic]]
StepFunction = Callable[[Arrays], Arrays]
"""Runs the step graph once: named inputs to named outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How captions are searched.

    beam : live rows per image (K); 1 is greedy search
    max_length : steps at most; a caption that has not ended by then is `truncated`
    min_length : words at least; `<end>` is banned before
    length_penalty : a >= 0; hypotheses are ranked by score / length^a, the length counting `<end>`
    n_best : hypotheses to return per image, at most `beam`
    suppress_unk : ban `<unk>`
    decode_mode, seed : how hard attention takes its context (`saccade.glimpses`); others know "expected" alone
    """

    beam: int = 3
    max_length: int = 40
    min_length: int = 0
    length_penalty: float = 0.0
    n_best: int = 1
    suppress_unk: bool = False
    decode_mode: DecodeMode = "expected"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.beam < 1:
            problems.append(f"beam must be at least 1, got {self.beam}")
        if not 1 <= self.n_best <= max(self.beam, 1):
            problems.append(f"n_best must be between 1 and beam ({self.beam}), got {self.n_best}")
        if self.max_length < 1:
            problems.append(f"max_length must be at least 1, got {self.max_length}")
        if not 0 <= self.min_length < max(self.max_length, 1):
            problems.append(f"min_length must be between 0 and max_length - 1, got {self.min_length}")
        if not 0 <= self.length_penalty < float("inf"):
            problems.append(f"length_penalty must be 0 or more, got {self.length_penalty}")
        if self.decode_mode not in get_args(DecodeMode):
            problems.append(f"decode_mode must be {' or '.join(get_args(DecodeMode))}, got {self.decode_mode!r}")
        if not 0 <= self.seed < 2**64:
            problems.append(f"seed must be between 0 and 2^64 - 1, got {self.seed}")
        if problems:
            raise ConfigError("invalid search options: " + "; ".join(problems))


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


class Decoding(Protocol):
    """One batch of images being searched. The decoder state stays where the runtime keeps it."""

    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step; `word_bias` (V,) is added to the log-probs: 0, or -inf for a banned word."""
        ...


class HostDecoding:
    """A `Decoding` over any function that runs the step graph on NumPy arrays.

    step : runs the step graph
    encoded : outputs of the encoder graph: annotations (B, L, D), keys (B, L, A), hidden (B, H), cell (B, H)
    start : id of `<start>`
    glimpses : of hard attention alone
    """

    def __init__(
        self,
        step: StepFunction,
        encoded: Arrays,
        *,
        beam: int,
        start: int,
        with_alphas: bool,
        glimpses: Glimpses | None = None,
    ) -> None:
        self._step = step
        self._glimpses = glimpses
        self._with_alphas = with_alphas
        self._constants = {name: encoded[name] for name in ("annotations", "keys")}
        rows = initial_rows(len(encoded["hidden"]), beam=beam, start=start)
        states = {name: np.repeat(encoded[name][:, None], beam, axis=1) for name in ("hidden", "cell")}
        self._state: Arrays = {**rows, **states}

    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step and keep its state for the next."""
        choice = self._glimpses.step() if self._glimpses else {}
        outputs = self._step({**self._constants, **self._state, "word_bias": word_bias, **choice})
        self._state = {name: outputs[f"next_{name}"] for name in self._state}
        return StepReport(
            tokens=outputs["next_tokens"].astype(np.int64, copy=False),
            parents=outputs["parents"].astype(np.int64, copy=False),
            scores=outputs["next_scores"].astype(np.float32, copy=False),
            alphas=outputs["alphas"].astype(np.float32, copy=False) if self._with_alphas else None,
        )


def glimpses_of(pixels: NDArray[np.uint8], options: SearchOptions, attention: str, *, places: int) -> Glimpses | None:
    """What hard attention needs for images uint8 (B, S, S, 3) and L = `places`; None for another kind of attention.

    Raises ConfigError where that kind does not know the decode mode asked for.
    """
    if attention == "hard":
        return Glimpses(options.decode_mode, options.seed, pixels, beam=options.beam, places=places)
    if options.decode_mode != "expected":
        raise ConfigError(
            f'decode mode "{options.decode_mode}" is for hard attention; this model has "{attention}" attention'
        )
    return None


def initial_rows(images: int, *, beam: int, start: int) -> dict[str, NDArray[np.generic]]:
    """`tokens`, `scores` and `slots` of the first step: only row 0 of each image is live."""
    scores = np.full((images, beam), -np.inf, np.float32)
    scores[:, 0] = 0
    return {
        "tokens": np.full((images, beam), start, np.int64),
        "scores": scores,
        "slots": np.full(images, beam, np.int64),
    }


def search(decoding: Decoding, vocabulary: Vocabulary, options: SearchOptions) -> list[list[Hypothesis]]:
    """Captions of a batch of images: up to `n_best` hypotheses each, best first, always at least one.

    Finished hypotheses come before truncated ones; equal scores go to the earlier step, then to the lower rank.
    Raises BackendError where the step graph yields NaN.
    """
    bias = np.zeros(len(vocabulary), np.float32)
    if options.suppress_unk:
        bias[vocabulary.unk] = -np.inf
    early_bias = bias.copy()
    early_bias[vocabulary.end] = -np.inf

    trace = _Trace(vocabulary.end, options)
    for step in range(options.max_length):
        trace.add(decoding.advance(early_bias if step < options.min_length else bias))
        if trace.is_done():
            break
    return trace.hypotheses()


class _Trace:
    """The steps taken so far, and which images can stop."""

    def __init__(self, end: int, options: SearchOptions) -> None:
        self._end = end
        self._options = options
        self._steps: list[StepReport] = []
        self._best_finished = np.array(-np.inf)
        self._live = np.array(True)

    def add(self, report: StepReport) -> None:
        if np.isnan(report.scores).any():
            raise BackendError(
                f"the step graph gave NaN scores at step {len(self._steps) + 1}: the weights, or the precision they "
                'run in, are broken; compare with "--backend pytorch"'
            )
        self._steps.append(report)
        exists = np.isfinite(report.scores)
        ended = exists & (report.tokens == self._end)
        finished = np.where(ended, self._normalised(report.scores, len(self._steps)), -np.inf)
        self._best_finished = np.maximum(self._best_finished, finished.max(axis=1))
        self._live = exists & ~ended

    def is_done(self) -> bool:
        """Whether no image can still change its answer.

        Scores only fall, so a live row ends at best with its score of now at the maximum length. With more than one
        hypothesis asked for, every slot counts and the search runs to its end.
        """
        if self._options.n_best > 1:
            return not self._live.any()
        bound = self._normalised(np.where(self._live, self._steps[-1].scores, -np.inf), self._options.max_length)
        return bool((~self._live.any(axis=1) | (self._best_finished >= bound.max(axis=1))).all())

    def hypotheses(self) -> list[list[Hypothesis]]:
        """Of all images at once: with many of them, a loop over each one's steps would take longer than the steps."""
        tokens, scores = (np.stack([getattr(report, name) for report in self._steps]) for name in ("tokens", "scores"))
        step, rank, counts = self._best(tokens, scores)
        images = np.arange(len(counts))[:, None]
        words, alphas = self._traced(step, rank)
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
                    alphas=None if alphas is None else alphas[image, place, : length[image, place]].copy(),
                )
                for place in range(count)
            ]
            for image, count in enumerate(counts)
        ]

    def _best(self, tokens: NDArray[np.int64], scores: NDArray[np.float32]) -> tuple[NDArray[np.intp], ...]:
        """Step and rank (B, N) where the best hypotheses of each image stop, and how many there are (B,).

        tokens, scores : (T, B, K) of all steps
        """
        finished = np.isfinite(scores) & (tokens == self._end)
        live = np.zeros_like(finished)
        live[-1] = self._live  # by rank, which is best first already
        normalised = self._normalised(scores, np.arange(1, len(scores) + 1)[:, None, None])
        cost = np.where(finished, -normalised, np.where(live, 0.0, np.inf))
        group, cost = (
            part.transpose(1, 0, 2).reshape(scores.shape[1], -1) for part in (np.where(finished, 0, 2 - live), cost)
        )
        order = np.lexsort((cost, group), axis=-1)[:, : self._options.n_best]
        counts = np.minimum((group < 2).sum(axis=-1), order.shape[1])
        return *np.divmod(order, scores.shape[2]), counts

    def _traced(
        self, step: NDArray[np.intp], rank: NDArray[np.intp]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """Words (B, N, T), and alphas (B, N, T, L) if they are kept, of the rows that lead to each rank (B, N)."""
        images = np.arange(len(step))[:, None]
        words, alphas = [], []
        for number, report in reversed([*enumerate(self._steps)]):
            words.append(report.tokens[images, rank])
            rank = np.where(number <= step, report.parents[images, rank], rank)
            if report.alphas is not None:
                alphas.append(report.alphas[images, rank])
        return np.stack(words[::-1], axis=2), np.stack(alphas[::-1], axis=2) if alphas else None

    def _normalised(self, scores: NDArray[np.float32], length: int | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        normalised: NDArray[np.float64] = np.asarray(scores, np.float64) / length**self._options.length_penalty
        return normalised
