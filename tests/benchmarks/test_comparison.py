"""Errors of tensors, choices of words, and where searches part: against figures worked out by hand or by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.comparison import ErrorSums, TensorErrors, overlaps, same_choices, score_errors
from benchmarks.comparison_partings import (
    Contest,
    first_contest,
    first_differing_word,
    margin_of,
    survivors,
    tokens_searched,
)
from benchmarks.comparison_runs import (
    drifting_steps,
    forced_scores,
    forced_steps,
    record,
    runners_up,
    search_alone,
)
from engine.backends.base import open_backend
from saccade.bundle import Bundle
from saccade.hypotheses import Hypothesis, StepReport
from saccade.search import SearchOptions
from tests.benchmarks.changed_bundles import Weights, changed, in_half_precision
from tests.bundles import MAX_LENGTH, patchworks

INF = float("inf")


def errors_of(*batches: tuple[NDArray[Any], NDArray[Any]], unit: float | None = None) -> TensorErrors:
    sums = ErrorSums(unit=unit)
    for step, (reference, candidate) in enumerate(batches):
        sums.add(reference, candidate, step=step)
    return sums.errors()


def test_errors_of_tensors_are_those_of_all_batches_together() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(size=(2, 5000, 4)).astype(np.float32)
    candidate = (reference + random.normal(size=reference.shape) * 1e-3).astype(np.float32)
    found = errors_of(*zip(reference, candidate, strict=True))
    difference = np.abs(candidate.astype(np.float64) - reference)
    assert found.values == reference.size
    assert found.absolute.max == difference.max()
    assert found.absolute.mean == pytest.approx(difference.mean())
    exact = np.quantile(difference, 0.99)
    assert exact <= found.absolute.p99 <= 1.05 * exact
    one, other = (values.astype(np.float64).ravel() for values in (reference, candidate))
    assert found.cosine == pytest.approx(one @ other / np.sqrt((one @ one) * (other @ other)), rel=1e-12)
    scales = np.sqrt((reference.astype(np.float64) ** 2).mean(axis=(1, 2)))
    by_step = np.sqrt((difference**2).mean(axis=(1, 2))) / scales
    assert found.by_step == pytest.approx(by_step)
    assert found.deviation == pytest.approx(by_step.max())


def test_relative_errors_near_zero_are_those_of_a_hundredth_of_the_scale() -> None:
    found = errors_of((np.array([[0.0, 2.0, 0.0, 0.0]]), np.array([[0.005, 2.2, 0.0, 0.0]])))
    assert found.relative.max == pytest.approx(0.5)  # 0.005 of a hundredth of the scale, which is 1
    assert found.absolute.max == pytest.approx(0.2)


def test_what_is_no_number_is_counted_and_left_out_of_the_figures() -> None:
    found = errors_of((np.ones((1, 4)), np.array([[1.0, np.nan, np.inf, 1.5]])))
    assert (found.nan, found.infinite, found.absolute.max) == (1, 1, 0.5)
    assert found.deviation == INF
    assert found.first_step(1e9) == 1


def test_the_first_step_above_a_tolerance_counts_from_one() -> None:
    same, other = np.ones((1, 2)), np.full((1, 2), 1.25)
    found = errors_of((same, same), (same, same), (same, other), (same, same))
    assert found.first_step(0.2) == 3
    assert found.first_step(0.3) is None


def test_the_channel_with_most_of_the_error_is_named() -> None:
    reference = np.ones((10, 8))
    candidate = reference.copy()
    candidate[:, 5] += 0.3
    candidate[0, 2] += 0.1
    found = errors_of((reference, candidate))
    assert found.channel == 5
    assert found.channel_share == pytest.approx(0.9 / 0.91)


def outputs(tokens: Sequence[int], parents: Sequence[int], scores: Sequence[float]) -> dict[str, NDArray[Any]]:
    return {
        "next_tokens": np.array([tokens]),
        "parents": np.array([parents]),
        "next_scores": np.array([scores], np.float32),
    }


def test_scores_are_compared_choice_by_choice_whatever_their_rank() -> None:
    reference = outputs([7, 8, 9], [0, 0, 1], [-1, -2, -3])
    candidate = outputs([8, 7, 5], [0, 0, 1], [-1.5, -1.75, -3.25])
    assert same_choices(reference, candidate)[0].tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, False],
    ]
    assert score_errors(reference, candidate)[0].tolist() == [-0.75, 0.5, -0.25]  # the last by its rank


def test_rows_that_do_not_exist_are_never_the_same() -> None:
    nothing = outputs([2, 2], [0, 0], [-1, -INF])
    assert same_choices(nothing, nothing)[0].tolist() == [[True, False], [False, False]]
    assert score_errors(nothing, nothing)[0].tolist() == [0, 0]


def test_overlap_is_what_both_looked_at() -> None:
    reference, candidate = np.array([[1.0, 0], [0.5, 0.5], [1, 0]]), np.array([[1.0, 0], [0.25, 0.75], [0, 1]])
    assert overlaps(reference, candidate, words=2) == (1.0, 0.75)
    assert overlaps(reference, candidate[:1], words=3) == (1.0,)


def trace(*steps: tuple[Sequence[int], Sequence[int], Sequence[float]]) -> list[StepReport]:
    return [
        StepReport(np.array([tokens]), np.array([parents]), np.array([scores], np.float32), None)
        for tokens, parents, scores in steps
    ]


REFERENCE = trace(([5, 6], [0, 0], [-1, -2]), ([7, 8], [1, 0], [-3, -4]))


def test_survivors_are_followed_by_their_parents() -> None:
    assert survivors(REFERENCE, 0) == [{(5,): -1, (6,): -2}, {(6, 7): -3, (5, 8): -4}]


def test_other_ranks_of_the_same_rows_are_no_difference() -> None:
    other = trace(([6, 5], [0, 0], [-1, -2]), ([8, 7], [1, 0], [-3, -4]))
    assert first_contest(REFERENCE, other, 0) is None


def test_a_contest_is_what_only_one_search_keeps() -> None:
    other = trace(([5, 6], [0, 0], [-1, -2]), ([7, 9], [1, 0], [-3, -3.9]))
    contest = first_contest(REFERENCE, other, 0)
    assert contest is not None
    assert (contest.step, contest.kept) == (2, {(5, 8): -4})
    assert contest.taken == pytest.approx({(5, 9): -3.9})


def test_the_margin_is_the_widest_that_was_turned_round() -> None:
    contest = Contest(step=1, kept={(1,): -1.0, (2,): -2.0}, taken={(3,): -1.5, (4,): -1.75})
    scores: dict[tuple[int, ...], float] = {(3,): -2.5, (4,): -3.0}
    margin = margin_of(contest, scores.__getitem__)
    assert margin == (2.0, 1.25)
    assert margin_of(Contest(step=1, kept={(1,): -1.0}, taken={}), lambda _: 0.0).size == INF


@pytest.mark.parametrize(
    ("reference", "candidate", "place"),
    [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1, 2), (1,), 1), ((1,), (1, 2), 1), ((), (4,), 0)],
)
def test_the_first_differing_word(reference: tuple[int, ...], candidate: tuple[int, ...], place: int | None) -> None:
    assert first_differing_word(reference, candidate) == place


OPTIONS = SearchOptions(max_length=MAX_LENGTH)
END = 2


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return patchworks(6, seed=1)


def test_a_recording_holds_the_captions_of_the_search(bundle: Bundle, pixels: NDArray[np.uint8]) -> None:
    with open_backend("ort", bundle, threads=1) as backend:
        recording = record(backend, bundle, pixels, OPTIONS)
        found = search_alone(backend, bundle, pixels, OPTIONS)
    assert found is not None
    assert [one.tokens for one in recording.hypotheses] == [one.tokens for one in found.hypotheses]
    assert [one.score for one in recording.hypotheses] == [one.score for one in found.hypotheses]
    for expected, report in zip(recording.trace, found.trace, strict=True):
        assert np.array_equal(expected.scores, report.scores)


def test_forced_tokens_get_the_score_that_the_search_gave_them(bundle: Bundle, pixels: NDArray[np.uint8]) -> None:
    with open_backend("ort", bundle, threads=1) as backend:
        recording = record(backend, bundle, pixels, OPTIONS)
        for image, best in enumerate(recording.hypotheses):
            scores = forced_scores(backend, recording, image, tokens_searched(best, END))
            assert scores[-1] == pytest.approx(best.log_prob, abs=1e-4)
            assert scores == sorted(scores, reverse=True)


def test_runners_up_are_the_best_choices_and_the_search_is_among_them(
    bundle: Bundle, pixels: NDArray[np.uint8]
) -> None:
    with open_backend("ort", bundle, threads=1) as backend:
        recording = record(backend, bundle, pixels, OPTIONS)
        given, expected = recording.inputs[2], recording.outputs[2]
        for image, found in enumerate(runners_up(backend, given, beam=12, end=END)):
            assert list(found.values()) == sorted(found.values(), reverse=True)
            chosen = [
                (int(parent), int(token))
                for parent, token, score in zip(
                    expected["parents"][image],
                    expected["next_tokens"][image],
                    expected["next_scores"][image],
                    strict=True,
                )
                if score != -INF
            ]
            assert list(found)[: len(chosen)] == chosen
            assert len(found) in (0, 12)


def test_a_backend_does_not_drift_from_itself(bundle: Bundle, pixels: NDArray[np.uint8]) -> None:
    with open_backend("ort", bundle, threads=1) as backend:
        recording = record(backend, bundle, pixels, OPTIONS)
        drifts = list(drifting_steps(backend, recording, recording.encoded, end=END))
        forced = list(forced_steps(backend, recording))
    for expected, drift, step in zip(recording.outputs, drifts, forced, strict=True):
        assert not drift.scores.any()
        for name, values in expected.items():
            assert np.array_equal(drift.outputs[name], values)
            assert np.array_equal(step[name], values)


def test_drift_follows_the_references_rows_where_the_candidate_chooses_others(
    bundle: Bundle, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    """The output layer alone differs: choices are others, but states along the reference's words are the same."""

    def shift(weights: Weights) -> None:
        weights["decoder.output.bias"][4:] += np.linspace(-3, 3, len(weights["decoder.output.bias"]) - 4)

    other = Bundle.open(changed(bundle.path, tmp_path / "other", step=shift))
    with open_backend("ort", bundle, threads=1) as backend, open_backend("ort", other, threads=1) as candidate:
        recording = record(backend, bundle, pixels, OPTIONS)
        drifts = list(drifting_steps(candidate, recording, recording.encoded, end=END))
    others = 0
    for expected, drift in zip(recording.outputs, drifts, strict=True):
        rows = expected["next_scores"] != -INF
        others += int((drift.outputs["parents"] != expected["parents"])[rows].sum())
        for name in ("next_hidden", "next_cell"):
            np.testing.assert_allclose(drift.outputs[name][rows], expected[name][rows], atol=1e-5)
    assert others > 0


def test_drift_adds_up_what_a_step_alone_does_not_show(
    bundle: Bundle, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    other = Bundle.open(changed(bundle.path, tmp_path / "other", step=in_half_precision))
    with open_backend("ort", bundle, threads=1) as backend, open_backend("ort", other, threads=1) as candidate:
        recording = record(backend, bundle, pixels, OPTIONS)
        steps = range(len(recording.outputs))
        forced = [
            np.abs(score_errors(recording.outputs[step], found)).max()
            for step, found in zip(steps, forced_steps(candidate, recording), strict=True)
        ]
        drift = [
            np.abs(found.scores).max()
            for found in drifting_steps(candidate, recording, candidate.run("encoder", {"pixels": pixels}), end=END)
        ]
    assert drift[0] == pytest.approx(forced[0], rel=1e-3)
    assert max(drift) > 1.5 * max(forced)


def test_the_searched_tokens_of_a_truncated_caption_have_no_end() -> None:
    finished = Hypothesis(tokens=(5, 6), log_prob=-1, score=-1, truncated=False)
    truncated = Hypothesis(tokens=(5, 6), log_prob=-1, score=-1, truncated=True)
    assert tokens_searched(finished, END) == (5, 6, END)
    assert tokens_searched(truncated, END) == (5, 6)
