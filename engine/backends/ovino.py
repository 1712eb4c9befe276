"""OpenVINO on the CPU: bfloat16 where the processor has instructions for it, and 8-bit encoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
import openvino
from numpy.typing import NDArray

from engine.backends.buffers import Buffer, BufferedBackend, Run, TakesArrays
from engine.backends.ovino_graphs import HALVED, read_graph
from saccade.bundle import Bundle, Precision, TensorSpec
from saccade.errors import BackendError
from saccade.files import held_cache
from saccade.machine import saturates_int8
from saccade.rounding import bfloat16_bits, from_bfloat16_bits

_DEVICE = "CPU"


def open_backend(
    bundle: Bundle, *, threads: int, precision: Precision | None, counters: bool = False
) -> BufferedBackend:
    """Read both graphs.

    counters : have OpenVINO measure how long each operator takes, which costs a little itself
    Raises BackendError if OpenVINO refuses a graph, or has no such arithmetic on this processor.
    """
    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise BackendError("this processor has no bfloat16 instructions: choose --precision fp32 or int8")
    if precision == "int8" and saturates_int8():
        raise BackendError(
            "this processor has no VNNI instructions: sums of 8-bit products overflow on it, and captions come out "
            "wrong; choose --precision fp32"
        )
    precision = precision or ("bf16" if has_bf16 else "fp32")
    floats = "bf16" if has_bf16 and precision != "fp32" else "fp32"
    settings = _settings(threads, floats) | {"PERF_COUNT": counters}
    graphs = {name: Graph(core, bundle, name, precision, settings) for name in ("encoder", "step")}
    # A float precision needs no graphs of its own: it is how OpenVINO runs those in float32.
    arithmetic = f"int8 encoder, {floats}" if precision == "int8" else precision
    return BufferedBackend(
        bundle,
        **graphs,
        description=f"OpenVINO {openvino.__version__.partition('-')[0]}, CPU, {arithmetic}",
        precision=precision,
    )


def _settings(threads: int, floats: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[floats],
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # images are decoded on the same cores
    }


Shapes = Mapping[str, tuple[int, ...]]


class Graph(TakesArrays):
    """A graph as an `Executor`. Each set of shapes is compiled by itself: fixed shapes are faster.

    compiled : what was compiled so far, by the shapes of the inputs in their order
    is_bfloat16 : whether it computes in bfloat16 what is not in integers
    """

    def __init__(
        self, core: openvino.Core, bundle: Bundle, name: str, precision: Precision, settings: Mapping[str, Any]
    ) -> None:
        self.spec = bundle.graph(name, "int8" if precision == "int8" else "fp32")
        self._core, self._settings = core, settings
        self.is_bfloat16 = settings["INFERENCE_PRECISION_HINT"] == "bf16"
        self._path = bundle.path / self.spec.file
        self.compiled: dict[tuple[tuple[int, ...], ...], openvino.CompiledModel] = {}

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        """Memory of the host."""
        if self.is_bfloat16 and tensor.name in HALVED:
            return _Bfloat16Buffer(shape)
        return _Buffer(np.zeros(shape, tensor.dtype))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        """An inference request on the buffers: nothing is copied between the runs."""
        shapes = {name: cast("_Buffer", buffer).array.shape for name, buffer in inputs.items()}
        request = self._compiled_for(shapes).create_infer_request()
        for name, buffer in (*inputs.items(), *outputs.items()):
            request.set_tensor(name, cast("_Buffer", buffer).tensor)
        return lambda: request.infer() and None

    def model(self, shapes: Shapes) -> openvino.Model:
        """What is compiled for inputs of these shapes."""
        model = self._read.clone()
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        return model

    def _compiled_for(self, shapes: Shapes) -> openvino.CompiledModel:
        key = tuple(shapes[tensor.name] for tensor in self.spec.inputs)
        if key not in self.compiled:
            try:
                self.compiled[key] = self._compile(self.model(shapes))
            except RuntimeError as error:
                raise BackendError(f"OpenVINO {openvino.__version__} cannot compile {self._path}: {error}") from error
        return self.compiled[key]

    def _compile(self, model: openvino.Model) -> openvino.CompiledModel:
        # OpenVINO removes what it cannot read from its cache, such as what another process is writing.
        with held_cache("openvino") as cache:
            where = {} if cache is None else {"CACHE_DIR": str(cache)}
            return self._core.compile_model(model, _DEVICE, {**self._settings, **where})

    @cached_property
    def _read(self) -> openvino.Model:
        return read_graph(self._core, self._path, bfloat16=self.is_bfloat16)


class _Buffer:
    """An array that OpenVINO reads and writes in place."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.tensor = openvino.Tensor(array, shared_memory=True)  # without it, a copy of the zeros of now

    def write(self, values: NDArray[Any]) -> None:
        """Copy into the array."""
        self.array[...] = values

    def read(self) -> NDArray[Any]:
        """A copy of the array."""
        return self.array.copy()


class _Bfloat16Buffer(_Buffer):
    """Bits in an array of 16-bit integers, since NumPy has no such numbers."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.array = np.zeros(shape, np.uint16)
        self.tensor = openvino.Tensor(self.array, openvino.Shape(shape), openvino.Type.bf16)  # shares its memory

    def write(self, values: NDArray[Any]) -> None:
        """Round into the array."""
        self.array[...] = bfloat16_bits(values)

    def read(self) -> NDArray[np.float32]:
        """The numbers as float32."""
        return from_bfloat16_bits(self.array)
