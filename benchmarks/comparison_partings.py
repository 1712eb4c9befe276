"""Where two beam searches part, and whether a near-tie that rounding broke explains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from saccade.hypotheses import Hypothesis, StepReport

Prefix = tuple[int, ...]
"""Tokens from the first step on."""
Score = Callable[[Prefix], float]
"""The reference's log-prob of these tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What one search keeps and the other does not.

    step : from 1; kept : only by the reference; taken : only by the candidate, at the first step where beams differ
    """

    step: int
    kept: Mapping[Prefix, float]
    taken: Mapping[Prefix, float]


class Margin(NamedTuple):
    """`size` : by how much the reference prefers its choice; error : of the candidate's scores for what it took."""

    size: float
    error: float


def survivors(trace: Sequence[StepReport], image: int) -> list[dict[Prefix, float]]:
    """The rows that exist after each step, best first: the tokens that lead to each, and its score."""
    found: list[dict[Prefix, float]] = []
    before: list[Prefix] = [()] * trace[0].tokens.shape[1]
    for report in trace:
        rows = zip(*(values[image].tolist() for values in report[:3]), strict=True)
        kept = [((*before[parent], token), score) for token, parent, score in rows]
        before = [prefix for prefix, _ in kept]
        found.append({prefix: score for prefix, score in kept if score != float("-inf")})
    return found


def first_contest(reference: Sequence[StepReport], candidate: Sequence[StepReport], image: int) -> Contest | None:
    """The first step after which the beams hold different words; None where they never do.

    The order of rows does not matter: it decides nothing before the end.
    """
    pairs = zip(survivors(reference, image), survivors(candidate, image), strict=False)
    for step, (expected, found) in enumerate(pairs, start=1):
        if expected.keys() != found.keys():
            kept = {prefix: score for prefix, score in expected.items() if prefix not in found}
            taken = {prefix: score for prefix, score in found.items() if prefix not in expected}
            return Contest(step=step, kept=kept, taken=taken)
    return None


def margin_of(contest: Contest, score: Score) -> Margin:
    """How much the reference prefers what it kept, at most, and how wrong the candidate is about what it took.

    The candidate prefers each row it took to each row it dropped, so it has turned round the widest of these margins.
    Infinite where one of the two keeps fewer rows.
    """
    if not (contest.kept and contest.taken):
        return Margin(float("inf"), 0.0)
    under_reference = {prefix: score(prefix) for prefix in contest.taken}
    size = max(contest.kept.values()) - min(under_reference.values())
    return Margin(size, max(abs(contest.taken[prefix] - found) for prefix, found in under_reference.items()))


def tokens_searched(hypothesis: Hypothesis, end: int) -> Prefix:
    """The tokens that its log-prob is of, `<end>` included where it was reached."""
    return hypothesis.tokens if hypothesis.truncated else (*hypothesis.tokens, end)


def first_differing_word(reference: Sequence[int], candidate: Sequence[int]) -> int | None:
    """The place, from 0, of the first word that is not the same; where one caption has ended, it is its end."""
    if tuple(reference) == tuple(candidate):
        return None
    pairs = zip(reference, candidate, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(reference), len(candidate)))
