"""What the figures of a candidate mean: a few findings that tell mistakes apart, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.comparison import STEP_FLOATS, TensorErrors
from benchmarks.comparison_results import TOLERANCES, CaptionComparison, Change, Finding, StepAgreement, Tolerances
from saccade.vocabulary import Vocabulary

LOCAL_SHARE = 0.9
"""Rounding spreads over all channels: where one holds more of the squared error, a weight is wrong."""
_LOCAL = ("annotations", "keys", "hidden", "cell", "next_cell", "next_hidden")
_ROWS = 2
_ROWS_SHARE = 0.9
_MIN_CHOICES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A choice that is wrong on the reference's inputs, by more than rounding: at which step, between which words."""

    step: int
    words: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a diagnosis rests on.

    encoder, step : errors of outputs, the step's on the reference's inputs
    by_word : mean deviation of an output of the step, by the id of the word that went in
    choices : the wrong ones
    trials : largest deviation of the encoder's outputs when the candidate is given other pixels, by what was done to
        them; empty where the encoder is right
    parting : the first step, from 1, at which a search of the candidate's own parts from the reference's
    preprocessing : what the candidate's bundle says differently
    vocabulary, other_vocabulary : of the reference and the candidate
    """

    encoder: Mapping[str, TensorErrors]
    step: Mapping[str, TensorErrors]
    by_word: Mapping[str, Mapping[int, float]]
    choices: Sequence[Choice]
    trials: Mapping[str, float]
    parting: int | None
    preprocessing: Sequence[str]
    vocabulary: Vocabulary
    other_vocabulary: Vocabulary


def diagnose(evidence: Evidence, tolerances: Tolerances) -> tuple[Finding, ...]:
    """What is wrong, in the order of computing; one finding that says so where nothing is.

    Loss of precision is at most what float16 may lose, or what the tolerances allow where that is more.
    """
    limit = max(tolerances.deviation, TOLERANCES["fp16"].deviation)
    outputs = {**evidence.encoder, **evidence.step}
    without = [name for name, errors in outputs.items() if errors.nan or errors.infinite]
    if without:
        return (_without_numbers(without[0], outputs[without[0]]),)
    found = tuple(
        finding
        for part in (_words_differ(evidence), _input_or_encoder(evidence, limit), _step(evidence, limit, tolerances))
        for finding in part
    )
    return found or (_harmless(outputs),)


def problems(
    outputs: Mapping[str, TensorErrors],
    agreement: Sequence[StepAgreement],
    captions: Sequence[CaptionComparison],
    scores: Mapping[str, Change],
    tolerances: Tolerances,
) -> Iterator[str]:
    """Why the candidate fails, in words; nothing where it passes."""
    for name, errors in outputs.items():
        limit = tolerances.score if name == "next_scores" else tolerances.deviation
        if errors.nan or errors.infinite:
            yield f"{name} holds {errors.nan} NaN and {errors.infinite} infinite values"
        elif errors.deviation > limit:
            yield f"{name} deviates by {errors.deviation:.2g}, tolerance {limit:g}"
    choices, wrong = sum(step.images for step in agreement), sum(step.errors for step in agreement)
    if wrong > tolerances.errors * choices:
        yield f"{wrong} of {choices} choices of words are wrong beyond rounding, tolerance {tolerances.errors:.1%}"
    differ = sum(caption.outcome == "error" for caption in captions)
    if differ > tolerances.errors * len(captions):
        yield f"{differ} of {len(captions)} captions differ beyond rounding, tolerance {tolerances.errors:.1%}"
    cider = scores.get("CIDEr-D")
    if cider and cider.change < -tolerances.drop and cider.high < 0:
        yield f"CIDEr-D falls by {-cider.change:.3f}, tolerance {tolerances.drop:g}"


def _without_numbers(name: str, errors: TensorErrors) -> Finding:
    step = errors.first_step(1e300)
    text = f"no numbers: {errors.nan} NaN and {errors.infinite} infinite values, first in output {name}"
    return Finding(kind="no numbers", text=text, tensor=name, step=step)


def _words_differ(evidence: Evidence) -> Iterator[Finding]:
    pairs = enumerate(zip(evidence.vocabulary.words, evidence.other_vocabulary.words, strict=True))
    rows = [(row, here, there) for row, (here, there) in pairs if here != there]
    if rows:
        row, here, there = rows[0]
        more = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
        text = f'vocabulary row {row} is "{here}", in the candidate\'s list "{there}"{more}'
        yield Finding(kind="vocabulary row", text=text, words=tuple(row for row, *_ in rows))


def _input_or_encoder(evidence: Evidence, limit: float) -> Iterator[Finding]:
    for difference in evidence.preprocessing:
        yield Finding(kind="input differs", text=f"input differs (preprocessing): {difference}")
    name = next((name for name, errors in evidence.encoder.items() if _is_wrong(name, errors, limit)), None)
    if name is None:
        return
    errors = evidence.encoder[name]
    then = f"; searches part first at step {evidence.parting}" if evidence.parting else ""
    trial = min(evidence.trials, key=evidence.trials.__getitem__, default=None)
    if trial is not None and evidence.trials[trial] <= limit:
        text = f"input differs ({trial}): given so, all outputs of the encoder agree{then}"
        yield Finding(kind="input differs", text=text, tensor=name, step=evidence.parting)
    else:
        size = f"{errors.deviation:.2g} of its scale{_channel(name, errors)}"
        text = f"encoder differs from output {name} on, by {size}{then}"
        yield Finding(kind="encoder differs", text=text, tensor=name, step=evidence.parting)


def _step(evidence: Evidence, limit: float, tolerances: Tolerances) -> Iterator[Finding]:
    score_limit = max(tolerances.score, TOLERANCES["fp16"].score)
    limits = {name: score_limit if name == "next_scores" else limit for name in STEP_FLOATS}
    name = next((name for name in STEP_FLOATS if _is_wrong(name, evidence.step[name], limits[name])), None)
    if name not in (None, "next_scores"):
        rows = _few_wrong(evidence.by_word.get(name, {}), limits[name])
        step = evidence.step[name].first_step(limits[name])
        if rows:
            yield _row_finding(evidence.vocabulary, rows, "embedding", name, step)
        else:
            yield _step_finding(name, step, _channel(name, evidence.step[name]))
    elif rows := _shared_words(evidence.choices):
        step = min(choice.step for choice in evidence.choices)
        yield _row_finding(evidence.vocabulary, rows, "output layer", "next_tokens", step)
    elif name:
        yield _step_finding(name, evidence.step[name].first_step(limits[name]))
    elif evidence.choices:
        yield _step_finding("next_tokens", min(choice.step for choice in evidence.choices))


def _is_wrong(name: str, errors: TensorErrors, limit: float) -> bool:
    is_local = name in _LOCAL and errors.channel_share > LOCAL_SHARE
    return errors.deviation > (TOLERANCES["fp32"].deviation if is_local else limit)


def _channel(name: str, errors: TensorErrors) -> str:
    if name not in _LOCAL or errors.channel_share <= LOCAL_SHARE:
        return ""
    return f", {errors.channel_share:.0%} of it in channel {errors.channel}"


def _few_wrong(by_word: Mapping[int, float], limit: float) -> tuple[int, ...]:
    """One or two words whose rows are wrong while those of at least two others are right."""
    wrong = tuple(sorted(word for word, deviation in by_word.items() if deviation > limit))
    return wrong if len(wrong) <= _ROWS <= len(by_word) - len(wrong) else ()


def _shared_words(choices: Sequence[Choice]) -> tuple[int, ...]:
    """One or two words that nearly all wrong choices have to do with: each of them, or the two together."""
    if len(choices) < _MIN_CHOICES:
        return ()
    counts = Counter(word for choice in choices for word in choice.words).most_common(_ROWS)
    each = [word for word, count in counts if count >= _ROWS_SHARE * len(choices)]
    if each:
        return tuple(sorted(each))
    first = counts[0][0]
    left = [choice for choice in choices if first not in choice.words]
    second, count = Counter(word for choice in left for word in choice.words).most_common(1)[0]
    return tuple(sorted((first, second))) if len(left) - count <= (1 - _ROWS_SHARE) * len(choices) else ()


def _row_finding(vocabulary: Vocabulary, rows: tuple[int, ...], where: str, tensor: str, step: int | None) -> Finding:
    named = " and ".join(f'{row} ("{vocabulary.words[row]}")' for row in rows)
    wrong = f"vocabulary row {named} is wrong" if len(rows) == 1 else f"vocabulary rows {named} are wrong"
    text = f"{wrong} in the {where}: output {tensor} differs first, at step {step}"
    return Finding(kind="vocabulary row", text=text, tensor=tensor, step=step, words=rows)


def _step_finding(name: str, step: int | None, detail: str = "") -> Finding:
    text = f"step differs first at output {name}, at step {step}{detail}"
    return Finding(kind="step differs", text=text, tensor=name, step=step)


def _harmless(outputs: Mapping[str, TensorErrors]) -> Finding:
    fp32 = TOLERANCES["fp32"]
    limits = {name: fp32.score if name == "next_scores" else fp32.deviation for name in outputs}
    worst = max(outputs, key=lambda name: outputs[name].deviation / limits[name])
    errors = outputs[worst]
    if errors.deviation <= limits[worst]:
        return Finding(kind="identical within rounding", text="identical within rounding", tensor=worst)
    unit = "nats" if worst == "next_scores" else "of its scale"
    text = f"precision loss only: at most {errors.deviation:.2g} {unit}, in output {worst}"
    return Finding(kind="precision loss only", text=text, tensor=worst, step=errors.first_step(limits[worst]))
