"""A backend whose transfers and steps are counted by a stopwatch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.stopwatch import Stopwatch
from engine.backends.base import Backend
from engine.backends.buffers import Buffer, BufferedBackend, Executor, Run
from saccade.bundle import TensorSpec
from saccade.decoding import Decoding
from saccade.hypotheses import StepReport


class TimedDecoding:
    """A `saccade.decoding.Decoding` whose every step counts as "step"."""

    def __init__(self, decoding: Decoding, watch: Stopwatch) -> None:
        self.images = decoding.images
        self._decoding, self._watch = decoding, watch

    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step."""
        with self._watch.stage("step"):
            return self._decoding.advance(word_bias)


@contextmanager
def timed_transfers(backend: Backend, watch: Stopwatch) -> Iterator[bool]:
    """Inside the block, pixels on their way to the backend count as "upload", what comes back as "download".

    Gives False for a backend without buffers, which is eager PyTorch: it copies inside its own code, and its copies
    stay in the stage around them. Buffers are allocated anew on both sides of the block: warm up.
    """
    if not isinstance(backend, BufferedBackend):
        yield False
        return
    with backend.wrapped(lambda executor: _Executor(executor, watch)):
        yield True


class _Executor:
    def __init__(self, executor: Executor, watch: Stopwatch) -> None:
        self.spec = executor.spec
        self._executor, self._watch = executor, watch

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        return _Buffer(self._executor.empty(tensor, shape), self._watch, is_pixels=tensor.name == "pixels")

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        return self._executor.bind(_bare(inputs), _bare(outputs))


class _Buffer:
    def __init__(self, buffer: Buffer, watch: Stopwatch, *, is_pixels: bool) -> None:
        self.bare, self._watch, self._is_pixels = buffer, watch, is_pixels

    def write(self, values: NDArray[Any]) -> None:
        if not self._is_pixels:  # some bytes of state, part of the encoding or of the step
            self.bare.write(values)
            return
        with self._watch.stage("upload"):
            self.bare.write(values)

    def read(self) -> NDArray[Any]:
        with self._watch.stage("download"):
            return self.bare.read()


def _bare(buffers: Mapping[str, Buffer]) -> dict[str, Buffer]:
    return {name: cast("_Buffer", buffer).bare for name, buffer in buffers.items()}
