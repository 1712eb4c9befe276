"""What a search asks a runtime for: a batch of images whose rows it advances word by word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from saccade.glimpses import Glimpses
from saccade.hypotheses import StepReport

Arrays = Mapping[str, NDArray[np.generic]]
StepFunction = Callable[[Arrays], Arrays]
"""Runs the step graph once: named inputs to named outputs."""


class Decoding(Protocol):
    """One batch of images being searched. The decoder state stays where the runtime keeps it."""

    @property
    def images(self) -> int:
        """How many are searched together."""
        ...

    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step; `word_bias` (V,) is added to the log-probs: 0, or -inf for a banned word."""
        ...


@runtime_checkable
class SharedDecoding(Decoding, Protocol):
    """A `Decoding` that can go on with images of another one, of the same size and the same backend, in its places."""

    def take(self, places: NDArray[np.intp], other: Self, images: NDArray[np.intp]) -> None:
        """Forget the images at these places and go on with those of `other`, of which no step was run, instead."""
        ...


class HostDecoding:
    """A `Decoding` over any function that runs the step graph on NumPy arrays.

    step : runs the step graph
    encoded : outputs of the encoder graph: annotations (B, C, D), keys (B, L, A), hidden (B, H), cell (B, H)
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
        self.images = len(encoded["hidden"])
        rows = initial_rows(self.images, beam=beam, start=start)
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


def initial_rows(images: int, *, beam: int, start: int) -> dict[str, NDArray[np.generic]]:
    """`tokens`, `scores` and `slots` of the first step: only row 0 of each image is live."""
    scores = np.full((images, beam), -np.inf, np.float32)
    scores[:, 0] = 0
    return {
        "tokens": np.full((images, beam), start, np.int64),
        "scores": scores,
        "slots": np.full(images, beam, np.int64),
    }
