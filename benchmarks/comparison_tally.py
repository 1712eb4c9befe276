"""Everything about one candidate, added up batch by batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import (
    STEP_FLOATS,
    ErrorSums,
    Values,
    existing,
    live,
    overlaps,
    scale_of,
    score_errors,
)
from benchmarks.comparison_choices import Choices, explained
from benchmarks.comparison_diagnosis import Evidence
from benchmarks.comparison_partings import (
    Margin,
    Prefix,
    first_contest,
    first_differing_word,
    margin_of,
    tokens_searched,
)
from benchmarks.comparison_results import TOLERANCES, CaptionComparison, Parting, StepAgreement, Tolerances
from benchmarks.comparison_runs import (
    Found,
    Recording,
    drifting_steps,
    forced_scores,
    forced_steps,
    search_alone,
)
from engine.backends.base import Backend
from saccade.bundle import Bundle
from saccade.decoding import Arrays
from saccade.files import differences
from saccade.hypotheses import Hypothesis
from saccade.search import SearchOptions

PIXEL_CHANGES: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    **{
        f"channels: it takes them as {''.join('RGB'[place] for place in order)}": partial(
            np.take, indices=order, axis=-1
        )
        for order in permutations(range(3))
        if order != (0, 1, 2)
    },
    "mirrored": partial(np.flip, axis=2),
    "upside down": partial(np.flip, axis=1),
    "rows and columns swapped": partial(np.swapaxes, axis1=1, axis2=2),
}
"""What is done to pixels uint8 (B, S, S, 3) to see whether it undoes what a candidate does to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A bundle opened on a backend, and the search that is the same for all."""

    backend: Backend
    bundle: Bundle
    options: SearchOptions


class Tally:
    """What a candidate computes beside the reference, over all batches so far."""

    def __init__(self, reference: Side, candidate: Side, tolerances: Tolerances) -> None:
        self._reference, self._candidate, self._tolerances = reference, candidate, tolerances
        self._end = reference.bundle.vocabulary.end
        self._encoder: dict[str, ErrorSums] = defaultdict(ErrorSums)
        self._step, self._drift = _step_sums(), _step_sums()
        self._by_word: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
        self._noticed = max(tolerances.score, TOLERANCES["fp16"].score)
        self._choices = Choices(reference.backend, end=self._end, noticed=self._noticed)
        self._trials: dict[str, float] = {}
        self.captions: list[CaptionComparison] = []
        self.pairs: list[tuple[Hypothesis, Hypothesis]] = []
        self.broken_searches = 0

    def add(self, recording: Recording, names: Sequence[str]) -> None:
        """Run the candidate on a batch that the reference has searched; `names` are those of its images."""
        encoded = self._candidate.backend.run("encoder", {"pixels": recording.pixels})
        for name, expected in recording.encoded.items():
            self._encoder[name].add(expected, encoded[name])
        if not self._trials and _deviation(recording.encoded, encoded) > TOLERANCES["fp16"].deviation:
            self._try_pixels(recording)
        for step, found in enumerate(forced_steps(self._candidate.backend, recording)):
            self._add_step(step, recording.inputs[step], recording.outputs[step], found)
        drift = self._add_drift(recording, encoded)
        self._add_captions(recording, names, drift)

    def errors(self) -> tuple[dict[str, ErrorSums], dict[str, ErrorSums], dict[str, ErrorSums]]:
        """Of the encoder; of the step on the reference's inputs; of the step along the reference's words."""
        return dict(self._encoder), self._step, self._drift

    def agreement(self) -> tuple[StepAgreement, ...]:
        """Of each step of the reference's searches."""
        return self._choices.agreement(self._explained_choice(self._tolerances.score))

    def evidence(self) -> Evidence:
        """What a diagnosis rests on."""
        here, there = (side.bundle.manifest.preprocessing.as_json() for side in (self._reference, self._candidate))
        return Evidence(
            encoder={name: sums.errors() for name, sums in self._encoder.items()},
            step={name: sums.errors() for name, sums in self._step.items()},
            by_word={
                name: {word: total / count for word, (total, count) in words.items()}
                for name, words in self._by_word.items()
            },
            choices=self._choices.wrong(self._explained_choice(self._noticed)),
            trials=self._trials,
            parting=min((caption.parting.step for caption in self.captions if caption.parting), default=None),
            preprocessing=differences(here, there),
            vocabulary=self._reference.bundle.vocabulary,
            other_vocabulary=self._candidate.bundle.vocabulary,
        )

    def _explained_choice(self, tolerance: float) -> float:
        """The margin between two choices, of one step, that the errors of scores explain."""
        return explained(self._step["next_scores"].errors().absolute.max, tolerance)

    def _try_pixels(self, recording: Recording) -> None:
        for name, change in PIXEL_CHANGES.items():
            pixels = np.ascontiguousarray(change(recording.pixels))
            found = self._candidate.backend.run("encoder", {"pixels": pixels})
            self._trials[name] = _deviation(recording.encoded, found)

    def _add_step(self, step: int, given: Arrays, expected: Arrays, found: Arrays) -> None:
        errors = score_errors(expected, found)
        same_parents = existing(expected) & (expected["parents"] == found["parents"])
        _add(self._step, step, given, expected, found, errors, same_parents, end=self._end)
        self._add_words(given, expected, found, same_parents)
        self._choices.add(step, given, expected, found, errors)

    def _add_words(self, given: Arrays, expected: Arrays, found: Arrays, same_parents: NDArray[np.bool_]) -> None:
        words = np.asarray(given["tokens"])
        continued = np.take_along_axis(words, np.asarray(expected["parents"]), axis=1)
        rows = {"alphas": (live(given, end=self._end), words)}
        rows |= dict.fromkeys(("next_cell", "next_hidden"), (same_parents, continued))
        for name, (mask, tokens) in rows.items():
            difference = np.subtract(found[name][mask], expected[name][mask], dtype=np.float64)
            deviations = np.sqrt((difference**2).mean(axis=-1)) / scale_of(expected[name][mask]) if mask.any() else ()
            for word, deviation in zip(tokens[mask].tolist(), deviations, strict=True):
                tally = self._by_word[name][word]
                tally[0] += float(deviation)
                tally[1] += 1

    def _add_drift(self, recording: Recording, encoded: Arrays) -> Values:
        """The largest error of the scores of each image up to each step (T, B)."""
        largest = []
        steps = drifting_steps(self._candidate.backend, recording, encoded, end=self._end)
        for step, drift in enumerate(steps):
            given, expected = recording.inputs[step], recording.outputs[step]
            rows = existing(expected)
            _add(self._drift, step, given, expected, drift.outputs, drift.scores, rows, end=self._end)
            largest.append(np.abs(drift.scores).max(axis=1))
        return np.asarray(np.maximum.accumulate(largest))

    def _add_captions(self, recording: Recording, names: Sequence[str], drift: Values) -> None:
        found = search_alone(self._candidate.backend, self._candidate.bundle, recording.pixels, self._candidate.options)
        if found is None:
            self.broken_searches += 1
            return
        for image, name in enumerate(names):
            pair = recording.hypotheses[image], found.hypotheses[image]
            self.captions.append(self._caption(recording, found, drift, image, name))
            self.pairs.append(pair)

    def _caption(self, recording: Recording, found: Found, drift: Values, image: int, name: str) -> CaptionComparison:
        reference, candidate = recording.hypotheses[image], found.hypotheses[image]
        texts = [
            side.bundle.vocabulary.sentence(one.tokens)
            for side, one in ((self._reference, reference), (self._candidate, candidate))
        ]
        place = first_differing_word(reference.tokens, candidate.tokens)
        parting, under = None, reference.score
        if place is not None:
            parting, under = self._parting(recording, found, drift, image)
        wrong = texts[0] != texts[1] if parting is None else not parting.is_tie
        seen = [np.zeros((0, 1), np.float32) if one.alphas is None else one.alphas for one in (reference, candidate)]
        return CaptionComparison(
            image=name,
            outcome="error" if wrong else "same" if parting is None else "near-tie",
            reference=texts[0],
            candidate=texts[1],
            reference_score=reference.score,
            candidate_score=candidate.score,
            score_under_reference=under,
            first_word=None if place is None else place + 1,
            overlaps=overlaps(seen[0], seen[1], words=len(reference.tokens) if place is None else place + 1),
            parting=parting,
        )

    def _parting(self, recording: Recording, found: Found, drift: Values, image: int) -> tuple[Parting, float]:
        """Where and why the searches of an image part, and the reference's score of the candidate's caption."""
        score = partial(self._score, recording, image)
        best = [tokens_searched(one[image], self._end) for one in (recording.hypotheses, found.hypotheses)]
        reference, candidate = recording.hypotheses[image], found.hypotheses[image]
        log_prob = score(best[1])
        under = log_prob / len(best[1]) ** self._reference.options.length_penalty
        contest = first_contest(recording.trace, found.trace, image)
        if contest is None:
            step, (kept, taken) = len(recording.outputs), best
            margin = Margin(reference.score - under, abs(candidate.log_prob - log_prob))
        else:
            step, kept, taken = contest.step, next(iter(contest.kept), ()), next(iter(contest.taken), ())
            margin = margin_of(contest, score)
        words = self._reference.bundle.vocabulary.decode
        error = max(float(drift[step - 1, image]), margin.error)
        parting = Parting(
            step=step,
            kept=" ".join(words(kept)),
            taken=" ".join(words(taken)),
            margin=margin.size,
            explained=explained(error, self._tolerances.score),
        )
        return parting, under

    def _score(self, recording: Recording, image: int, tokens: Prefix) -> float:
        return forced_scores(self._reference.backend, recording, image, tokens)[-1]


def _step_sums() -> dict[str, ErrorSums]:
    return {name: ErrorSums(unit=1.0 if name == "next_scores" else None) for name in STEP_FLOATS}


def _add(
    sums: Mapping[str, ErrorSums],
    step: int,
    given: Arrays,
    expected: Arrays,
    found: Arrays,
    errors: Values,
    states: NDArray[np.bool_],
    *,
    end: int,
) -> None:
    """Compare the outputs of a step: alphas of rows that are continued, states of these rows, scores that exist."""
    masks = {"alphas": live(given, end=end), "next_cell": states, "next_hidden": states}
    for name, mask in masks.items():
        sums[name].add(expected[name][mask], found[name][mask], step=step)
    scores = expected["next_scores"][existing(expected)].astype(np.float64)
    sums["next_scores"].add(scores[:, None], (scores + errors[existing(expected)])[:, None], step=step)


def _deviation(expected: Arrays, found: Arrays) -> float:
    """The largest of a graph's outputs."""
    worst = 0.0
    for name, values in expected.items():
        sums = ErrorSums()
        sums.add(np.asarray(values, np.float64), np.asarray(found[name], np.float64))
        worst = max(worst, sums.errors().deviation)
    return worst
