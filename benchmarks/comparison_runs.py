"""The graphs of a reference and of candidates, run on the same tensors.

Three ways of running a candidate: *teacher forcing*, where each step gets the reference's own inputs, so that an error
is that of one step; *drift*, where it follows the reference's words with its own state, so that errors add up; and its
own search, which is what people get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import Values, existing, live, score_errors
from benchmarks.comparison_partings import Prefix
from engine.backends.base import Backend
from saccade.bundle import Bundle
from saccade.decoding import Arrays, Decoding, HostDecoding
from saccade.errors import BackendError
from saccade.hypotheses import Hypothesis, StepReport
from saccade.search import SearchOptions, glimpses_of, search

_CONSTANT = ("annotations", "keys")
_STATE = ("hidden", "cell")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The reference's search of a batch.

    pixels : uint8 (B, S, S, 3)
    encoded : outputs of the encoder
    inputs, outputs : of the step graph, at each step
    hypotheses : the best of each image, with alphas
    """

    pixels: NDArray[np.uint8]
    encoded: Arrays
    inputs: Sequence[Arrays]
    outputs: Sequence[Arrays]
    hypotheses: Sequence[Hypothesis]

    @property
    def trace(self) -> list[StepReport]:
        """What each step told the search."""
        names = ("next_tokens", "parents", "next_scores", "alphas")
        return [StepReport(*(outputs[name] for name in names)) for outputs in self.outputs]  # type: ignore[arg-type]


class Found(NamedTuple):
    """The candidate's own search of a batch: the best hypothesis of each image, and what each step told."""

    hypotheses: Sequence[Hypothesis]
    trace: Sequence[StepReport]


class Drift(NamedTuple):
    """A step of the candidate along the reference's words, with its own state.

    outputs : hidden and cell states are of the reference's rows, and so are alphas
    scores : float64 (B, K), how far each row's score has gone from the reference's since the first step
    """

    outputs: Arrays
    scores: Values


def record(backend: Backend, bundle: Bundle, pixels: NDArray[np.uint8], options: SearchOptions) -> Recording:
    """Search pixels uint8 (B, S, S, 3) and keep what went into each step and what came out."""
    dimensions = bundle.manifest.dimensions
    encoded = backend.run("encoder", {"pixels": pixels})
    inputs: list[Arrays] = []
    outputs: list[Arrays] = []

    def step(given: Arrays) -> Arrays:
        found = backend.run("step", given)
        inputs.append({name: values if name in _CONSTANT else values.copy() for name, values in given.items()})
        outputs.append(found)
        return found

    decoding = HostDecoding(
        step,
        encoded,
        beam=options.beam,
        start=bundle.vocabulary.start,
        with_alphas=True,
        glimpses=glimpses_of(pixels, options, bundle.manifest.attention, places=dimensions.rows * dimensions.columns),
    )
    hypotheses = [best[0] for best in search(decoding, bundle.vocabulary, options)]
    return Recording(pixels=pixels, encoded=encoded, inputs=inputs, outputs=outputs, hypotheses=hypotheses)


def search_alone(backend: Backend, bundle: Bundle, pixels: NDArray[np.uint8], options: SearchOptions) -> Found | None:
    """The candidate's own captions; None where its scores are no numbers."""
    traced = _Traced(backend.begin(pixels, options, with_alphas=True))
    try:
        hypotheses = [best[0] for best in search(traced, bundle.vocabulary, options)]
    except BackendError:
        return None
    return Found(hypotheses, traced.trace)


class _Traced:
    """A `Decoding` that remembers its reports."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self.images = decoding.images
        self.trace: list[StepReport] = []

    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        report = self._decoding.advance(word_bias)
        self.trace.append(report)
        return report


def forced_steps(backend: Backend, recording: Recording) -> Iterator[Arrays]:
    """Outputs of each step on the reference's inputs."""
    for given in recording.inputs:
        yield backend.run("step", given)


def drifting_steps(backend: Backend, recording: Recording, encoded: Arrays, *, end: int) -> Iterator[Drift]:
    """Follow the reference's words with the candidate's own annotations, keys and state, from its own `encoded` on.

    The scores that go in are the reference's, so that both choose among the same rows; their errors are added up here.
    """
    constants = {name: encoded[name] for name in _CONSTANT}
    beam = recording.inputs[0]["tokens"].shape[1]
    state: Arrays = {name: np.repeat(encoded[name][:, None], beam, axis=1) for name in _STATE}
    total = np.zeros(recording.inputs[0]["tokens"].shape)
    for given, expected in zip(recording.inputs, recording.outputs, strict=True):
        inputs = {**given, **constants, **state}
        outputs = backend.run("step", inputs)
        parents = expected["parents"].astype(np.int64)
        total = np.where(
            existing(expected), np.take_along_axis(total, parents, axis=1) + score_errors(expected, outputs), 0.0
        )
        state = _states_of(backend, inputs, outputs, parents, rows=live(given, end=end))
        yield Drift({**outputs, **{f"next_{name}": values for name, values in state.items()}}, total)


def _states_of(
    backend: Backend, inputs: Arrays, outputs: Arrays, parents: NDArray[np.int64], *, rows: NDArray[np.bool_]
) -> Arrays:
    """The next states (B, K, H) that continue these parents, whichever rows the candidate itself chose."""
    if np.array_equal(outputs["parents"], parents):
        return {name: outputs[f"next_{name}"] for name in _STATE}
    # A row that is alone wins: its state comes out on the first rank.
    alone = [backend.run("step", {**inputs, "scores": _only(row, rows)}) for row in range(rows.shape[1])]
    return {
        name: np.take_along_axis(
            np.stack([outputs[f"next_{name}"][:, 0] for outputs in alone], axis=1), parents[:, :, None], axis=1
        )
        for name in _STATE
    }


def _only(row: int, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
    chosen = np.arange(rows.shape[1]) == row
    return np.where(rows & chosen, 0, -np.inf).astype(np.float32)


def runners_up(backend: Backend, given: Arrays, *, beam: int, end: int) -> list[dict[tuple[int, int], float]]:
    """Of each image, the best `beam` choices of a step as (parent, token) with their scores.

    The step runs with more rows than the search has, all but its own not live.
    """
    images, rows = given["tokens"].shape
    wide: dict[str, NDArray[np.generic]] = {**given, "slots": np.full(images, beam, np.int64)}
    fill: Mapping[str, float] = {"tokens": end, "scores": -np.inf}
    for name in ("tokens", "scores", "hidden", "cell", *(["noise"] if "noise" in given else [])):
        padding = [(0, 0), (0, beam - rows)] + [(0, 0)] * (given[name].ndim - 2)
        wide[name] = np.pad(given[name], padding, constant_values=fill.get(name, 0))
    outputs = backend.run("step", wide)
    return [
        {(p, t): score for p, t, score in zip(*row, strict=True) if score != -np.inf}
        for row in zip(*(outputs[name].tolist() for name in ("parents", "next_tokens", "next_scores")), strict=True)
    ]


def forced_scores(backend: Backend, recording: Recording, image: int, tokens: Prefix) -> list[float]:
    """Cumulative log-probs that the reference gives to these tokens of an image, after each of them.

    Each step has one row, and one word that is not banned. Hard attention looks where the first row looked.
    """
    constants = {name: recording.encoded[name][image : image + 1] for name in _CONSTANT}
    state: Arrays = {name: recording.encoded[name][image : image + 1, None] for name in _STATE}
    first = recording.inputs[0]
    row: Arrays = {name: first[name][image : image + 1, :1] for name in ("tokens", "scores")}
    scores = []
    for step, token in enumerate(tokens):
        bias = np.full_like(first["word_bias"], -np.inf)
        bias[token] = 0
        choice = _choice(recording.inputs[min(step, len(recording.inputs) - 1)], image)
        outputs = backend.run(
            "step", {**constants, **state, **row, **choice, "slots": np.ones(1, np.int64), "word_bias": bias}
        )
        scores.append(float(outputs["next_scores"][0, 0]))
        state = {name: outputs[f"next_{name}"] for name in _STATE}
        row = {"tokens": np.full((1, 1), token, np.int64), "scores": outputs["next_scores"]}
    return scores


def _choice(given: Arrays, image: int) -> Arrays:
    if "noise" not in given:
        return {}
    return {"noise": given["noise"][image : image + 1, :1], "sampled": given["sampled"][image : image + 1]}
