"""The two graphs on buffers that are bound once: what runtimes on arrays of their own share.

A runtime brings two `Executor`s. Everything above them is here: which buffers there are, the ping-pong of the decoder
state between two sets of them, and what a step reads back. Per step, only arrays of B x K visit the host.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from saccade.bundle import Bundle, GraphSpec, Precision, TensorSpec
from saccade.decoding import Arrays, Decoding, initial_rows
from saccade.glimpses import Glimpses
from saccade.hypotheses import StepReport
from saccade.search import SearchOptions, glimpses_of

Run = Callable[[], None]
"""Executes a graph on the buffers that it was bound to, and returns when they can be read."""


class Buffer(Protocol):
    """An array where the runtime wants it."""

    def write(self, values: NDArray[Any]) -> None:
        """Copy from the host; `values` has the buffer's shape or broadcasts to it."""
        ...

    def read(self) -> NDArray[Any]:
        """A copy on the host, float32 where the buffer holds a shorter float."""
        ...


class Executor(Protocol):
    """One graph on a runtime."""

    spec: GraphSpec

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> Buffer:
        """A buffer for an input or output of this graph; its values are arbitrary."""
        ...

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        """Fix the buffers of all inputs and outputs. Raises BackendError where the graph refuses their shapes."""
        ...


@runtime_checkable
class SharedExecutor(Executor, Protocol):
    """One that can copy images between its buffers."""

    def take(
        self,
        places: NDArray[np.intp],
        others: Sequence[tuple[Buffer, Buffer]],
        images: NDArray[np.intp],
    ) -> None:
        """Copy `images`, along the first axis, of the second buffer of each pair to these places of the first."""
        ...


class _OnArray(Protocol):
    array: NDArray[Any]


class TakesArrays:
    """What makes a `SharedExecutor` of an executor whose buffers are arrays of the host, each in its `array`."""

    def take(self, places: NDArray[np.intp], others: Sequence[tuple[Buffer, Buffer]], images: NDArray[np.intp]) -> None:
        """Copy images between buffers."""
        for here, there in others:
            cast("_OnArray", here).array[places] = cast("_OnArray", there).array[images]


class BufferedBackend:
    """A `Backend` over two executors. Buffers are allocated at the first batch of their size and then used again.

    executors : of the graphs "encoder" and "step"
    """

    def __init__(
        self, bundle: Bundle, *, encoder: Executor, step: Executor, description: str, precision: Precision
    ) -> None:
        self.description = description
        self.precision = precision
        self._start = bundle.vocabulary.start
        self._attention = bundle.manifest.attention
        self._places = bundle.manifest.dimensions.rows * bundle.manifest.dimensions.columns
        self.executors = {"encoder": encoder, "step": step}
        self._idle: dict[tuple[int, int], list[_Workspace]] = defaultdict(list)

    def begin(self, pixels: NDArray[np.uint8], options: SearchOptions, *, with_alphas: bool) -> Decoding:
        """Encode a batch and prepare its search."""
        glimpses = glimpses_of(pixels, options, self._attention, places=self._places)
        size = len(pixels), options.beam
        idle = self._idle[size]
        workspace = idle.pop() if idle else _Workspace(*self.executors.values(), images=size[0], beam=size[1])
        # Streams of noise are not moved from batch to batch: images that draw where to look stay together.
        can_share = options.decode_mode != "sample" and isinstance(workspace.step, SharedExecutor)
        kind = _SharedBufferedDecoding if can_share else _BufferedDecoding
        decoding = kind(workspace, with_alphas=with_alphas, glimpses=glimpses)
        # Nobody says when a search has ended: whoever held it has let go of it.
        weakref.finalize(decoding, idle.append, workspace).atexit = False
        workspace.encode(pixels, start=self._start)
        return decoding

    def run(self, graph: str, inputs: Arrays) -> Arrays:
        """Run graph "encoder" or "step" once on arrays of the host, with fresh buffers: for comparisons."""
        executor = self.executors[graph]
        sizes = axis_sizes(executor.spec, {name: values.shape for name, values in inputs.items()})
        given = {tensor.name: _buffer(executor, tensor, sizes) for tensor in executor.spec.inputs}
        found = {tensor.name: _buffer(executor, tensor, sizes) for tensor in executor.spec.outputs}
        for name, buffer in given.items():
            buffer.write(inputs[name])
        executor.bind(given, found)()
        return {name: buffer.read() for name, buffer in found.items()}

    @contextmanager
    def wrapped(self, wrap: Callable[[Executor], Executor]) -> Iterator[None]:
        """Inside the block, other executors stand before these, to watch them. At its ends, buffers are let go of."""
        bare = dict(self.executors)
        self._idle.clear()
        self.executors.update({name: wrap(executor) for name, executor in bare.items()})
        try:
            yield
        finally:
            self._idle.clear()
            self.executors.update(bare)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._idle.clear()
        self.executors.clear()


class _Side(NamedTuple):
    """The step graph reading one set of buffers and writing the other."""

    run: Run
    outputs: Mapping[str, Buffer]


class _Workspace:
    """All buffers for B images and K rows, and the graphs bound to them."""

    def __init__(self, encoder: Executor, step: Executor, *, images: int, beam: int) -> None:
        self.step, self.images = step, images
        self._beam = beam
        sizes = {"images": images, "beam": beam}
        self._pixels = _buffer(encoder, encoder.spec.inputs[0], sizes)
        self._encoded = {tensor.name: _buffer(encoder, tensor, sizes) for tensor in encoder.spec.outputs}
        self._encode = encoder.bind({encoder.spec.inputs[0].name: self._pixels}, self._encoded)

        inputs = {tensor.name: tensor for tensor in step.spec.inputs}
        state = [tensor.name for tensor in step.spec.outputs if tensor.name.startswith("next_")]
        states = [{name: _buffer(step, inputs[name.removeprefix("next_")], sizes) for name in state} for _ in range(2)]
        self.states = tuple({name.removeprefix("next_"): one for name, one in set_.items()} for set_ in states)
        self.constants = {name: self._encoded[name] for name in ("annotations", "keys")}
        reported = {t.name: _buffer(step, t, sizes) for t in step.spec.outputs if t.name not in state}
        self.given = {
            name: _buffer(step, tensor, sizes)
            for name, tensor in inputs.items()
            if name not in self.constants and name not in self.states[0]
        }
        self.sides = tuple(
            self._side(step, self.constants | self.given, here, reported | there)
            for here, there in (states, reversed(states))
        )

    def encode(self, pixels: NDArray[np.uint8], *, start: int) -> None:
        """Fill the buffers of the first step."""
        self._pixels.write(pixels)
        self._encode()
        for name, values in initial_rows(self.images, beam=self._beam, start=start).items():
            self.states[0][name].write(values)
        for name in ("hidden", "cell"):
            self.states[0][name].write(self._encoded[name].read()[:, None])

    @staticmethod
    def _side(
        step: Executor, given: Mapping[str, Buffer], state: Mapping[str, Buffer], out: Mapping[str, Buffer]
    ) -> _Side:
        inputs = {name.removeprefix("next_"): buffer for name, buffer in state.items()}
        return _Side(step.bind({**given, **inputs}, out), MappingProxyType(dict(out)))


class _BufferedDecoding:
    """A `saccade.decoding.Decoding` whose state goes to and fro between two sets of buffers."""

    def __init__(self, workspace: _Workspace, *, with_alphas: bool, glimpses: Glimpses | None) -> None:
        self.images = workspace.images
        self._workspace = workspace
        self._with_alphas = with_alphas
        self._glimpses = glimpses
        self._steps = 0
        self._bias: NDArray[np.float32] | None = None

    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step."""
        if word_bias is not self._bias:
            self._workspace.given["word_bias"].write(word_bias)
            self._bias = word_bias
        for name, values in (self._glimpses.step() if self._glimpses else {}).items():
            self._workspace.given[name].write(values)
        side = self._workspace.sides[self._steps % 2]
        self._steps += 1
        side.run()
        return StepReport(
            tokens=side.outputs["next_tokens"].read(),
            parents=side.outputs["parents"].read(),
            scores=side.outputs["next_scores"].read(),
            alphas=side.outputs["alphas"].read() if self._with_alphas else None,
        )


class _SharedBufferedDecoding(_BufferedDecoding):
    """A `saccade.decoding.SharedDecoding`."""

    def take(self, places: NDArray[np.intp], other: Self, images: NDArray[np.intp]) -> None:
        """Copy what the next step reads from what the first step of the other one would read."""
        here, there = self._workspace, other._workspace
        state = here.states[self._steps % 2]
        pairs = [(here.constants[name], buffer) for name, buffer in there.constants.items()]
        pairs += [(state[name], buffer) for name, buffer in there.states[0].items()]
        cast("SharedExecutor", here.step).take(places, pairs, images)


def _buffer(executor: Executor, tensor: TensorSpec, sizes: Mapping[str, int]) -> Buffer:
    return executor.empty(tensor, tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape))


def axis_sizes(spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The axes that vary, by name, as inputs of these shapes have them."""
    pairs = ((axis, size) for t in spec.inputs for axis, size in zip(t.shape, shapes[t.name], strict=True))
    return {axis: size for axis, size in pairs if isinstance(axis, str)}
