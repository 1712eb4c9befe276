"""ONNX Runtime: on the CPU, on a GPU by its CUDA provider, and on a GPU by TensorRT through it."""

from __future__ import annotations

import ctypes
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engine.backends.buffers import Buffer, BufferedBackend, Run, TakesArrays, axis_sizes
from saccade.bundle import Bundle, Precision, TensorSpec
from saccade.errors import BackendError
from saccade.files import cache_directory
from saccade.machine import saturates_int8

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Place(Protocol):
    """Where work is done."""

    def __call__(self, work: Callable[[], T]) -> T: ...


_Providers = Sequence[tuple[str, Mapping[str, Any]]]
_ERROR, _FATAL = 3, 4

_DEVICES = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
}
_CAPTURING: Mapping[str, Mapping[str, str]] = {"CUDAExecutionProvider": {"enable_cuda_graph": "1"}}
"""Providers that replay what they launched once, and how they are told to."""


def check(*, provider: str) -> None:
    """Raise BackendError if this build of ONNX Runtime has no such provider."""
    if provider not in (available := onnxruntime.get_available_providers()):
        raise BackendError(
            f"this ONNX Runtime ({onnxruntime.__version__}) has no {provider}, it has {', '.join(available)}: "
            "pip uninstall onnxruntime, then pip install 'saccade[gpu]'"
        )
    if _DEVICES[provider] == "cuda":
        with redirect_stdout(io.StringIO()):  # what is missing is told when a graph does not run on the GPU
            onnxruntime.preload_dlls()
    if provider == "TensorrtExecutionProvider":
        _load_tensorrt()


def _load_tensorrt() -> None:
    """Load the version of TensorRT that ONNX Runtime was built for. Raises BackendError where there is none."""
    with suppress(ImportError, OSError):
        import_module("tensorrt")  # which loads what its own package brings
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    wanted = re.search(rb"libnvinfer\.so\.\d+", library.read_bytes() if library.exists() else b"")
    name = wanted[0].decode() if wanted else "libnvinfer.so"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} needs TensorRT ({error}): pip install 'saccade[tensorrt]' with "
            f"a tensorrt that has {name}, or choose another --backend"
        ) from error


def open_backend(bundle: Bundle, *, threads: int, precision: Precision | None, provider: str) -> BufferedBackend:
    """Open both graphs on a provider. Raises BackendError if ONNX Runtime refuses one, or would run it elsewhere."""
    precision = precision or "fp32"
    if _DEVICES[provider] == "cuda":
        # cuDNN reports every kernel that it looked for in vain as an error, past the severity of a session.
        onnxruntime.set_default_logger_severity(_FATAL)
    place: _Place = _OneThread() if provider in _CAPTURING else _here
    kind = _Graph if _DEVICES[provider] == "cuda" else _HostGraph
    graphs = {name: kind(bundle, name, precision, provider, threads, place) for name in ("encoder", "step")}
    device = provider.removesuffix("ExecutionProvider")
    slow = " (slow: this processor has no VNNI)" if precision == "int8" and saturates_int8() else ""
    return BufferedBackend(
        bundle,
        **graphs,
        description=f"ONNX Runtime {onnxruntime.__version__}, {device}, {precision}{slow}",
        precision=precision,
    )


def _providers(provider: str, precision: Precision) -> _Providers:
    cuda = {"use_tf32": str(int(precision != "fp32")), "cudnn_conv_algo_search": "EXHAUSTIVE"}
    if precision == "fp16":  # less than half the time of an encoder: decision 0017
        cuda |= {"prefer_nhwc": "1", "fuse_conv_bias": "1"}
    if provider == "TensorrtExecutionProvider":
        # TensorRT takes what it can, CUDA the rest; never the CPU.
        trt = _kept_plans() | {"trt_fp16_enable": precision == "fp16"}
        return [(provider, trt), ("CUDAExecutionProvider", cuda)]
    return [(provider, cuda)] if provider == "CUDAExecutionProvider" else [(provider, {})]


def _kept_plans() -> dict[str, Any]:
    folder = cache_directory("onnxruntime-tensorrt")
    if folder is None:
        return {}
    kinds = ("engine", "timing")
    enabled = {f"trt_{kind}_cache_enable": True for kind in kinds}
    return enabled | {f"trt_{kind}_cache_path": str(folder) for kind in kinds}


def _here(work: Callable[[], T]) -> T:
    return work()


class _OneThread:
    """Does all work in a thread of its own, one thing after the other.

    ONNX Runtime keeps captured graphs by thread, and what another thread does on the GPU during a capture breaks it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saccade-onnxruntime")

    def __call__(self, work: Callable[[], T]) -> T:
        return self._pool.submit(work).result()


class _Graph:
    """Sessions of one graph as an `Executor`.

    One session runs every size. Where the provider captures graphs, each size gets a session of its own, with its
    shapes written into it: only then nothing is left to be computed by the CPU, which no captured graph can hold.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        precision: Precision,
        provider: str,
        threads: int,
        place: _Place,
    ) -> None:
        """Place : where ONNX Runtime is called."""
        self.spec = bundle.graph(name, precision)
        self._path = bundle.path / self.spec.file
        self._provider, self._threads, self._place = provider, threads, place
        self._providers = _providers(provider, precision)
        self._as_it_is = precision == "int8" and saturates_int8()
        self._numbers = count(1)
        self._fixed: dict[tuple[tuple[str, int], ...], Any] = {}
        try:
            self._session = place(lambda: self._opened(self._providers))
        except Exception as error:
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot load {self._path}: {error}") from error
        if (found := self._session.get_providers())[0] != provider:
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} would run {self._path} on {found[0]}, not on {provider}: "
                'look at the driver and the CUDA libraries, or choose "--backend ort"'
            )

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        """Memory of the provider's device."""
        dtype = np.dtype(tensor.dtype)
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return _Buffer(self._place(lambda: make(shape, dtype.type, "cuda", 0)), shape, dtype, self._place)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        """An IOBinding: nothing is copied between the runs."""
        run = self._place(lambda: self._bound(inputs, outputs))
        return lambda: self._place(run)

    def _bound(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        session = self._session_for({name: cast("_Buffer", buffer).shape for name, buffer in inputs.items()})
        binding = session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, cast("_Buffer", buffer).value)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, cast("_Buffer", buffer).value)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))  # each binding has a captured graph

        def run() -> None:
            try:
                session.run_with_iobinding(binding, options)
                binding.synchronize_outputs()
            except Exception as error:
                raise BackendError(
                    f"ONNX Runtime {onnxruntime.__version__} cannot run {self._path}: {error}"
                ) from error

        return run

    def _session_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        if self._provider not in _CAPTURING:
            return self._session
        sizes = tuple(sorted(axis_sizes(self.spec, shapes).items()))
        if sizes not in self._fixed:
            self._fixed[sizes] = self._capturing(dict(sizes))
        return self._fixed[sizes]

    def _capturing(self, sizes: Mapping[str, int]) -> Any:
        ((name, options),) = self._providers
        try:
            return self._opened([(name, {**options, **_CAPTURING[name]})], sizes)
        except Exception as error:  # noqa: BLE001 - of ONNX Runtime, which has no class of its own
            log.warning("%s runs without a CUDA graph: %s", self._path.name, str(error))  # a kept one keeps the session
            return self._session

    def _opened(self, providers: _Providers, sizes: Mapping[str, int] = MappingProxyType({})) -> Any:
        options = onnxruntime.SessionOptions()
        for axis, size in sizes.items():
            options.add_free_dimension_override_by_name(axis, size)
        options.intra_op_num_threads = self._threads
        # Encoding, search and loading go on at once: threads that spin while they wait take cores from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _FATAL if sizes else _ERROR
        if self._as_it_is:
            # Fused, sums of products would overflow. Node by node they are computed in float32: slow, but right.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(self._path, options, providers=list(providers))


class _HostGraph(TakesArrays, _Graph):
    """One on the CPU, which shares its memory with NumPy."""

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> _HostBuffer:
        """Memory of the host."""
        return _HostBuffer(np.zeros(shape, tensor.dtype))


class _Buffer:
    """An OrtValue that stays where it is."""

    def __init__(self, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], place: _Place) -> None:
        self.value, self.shape, self._dtype, self._place = value, shape, dtype, place

    def write(self, values: NDArray[Any]) -> None:
        """Copy from the host."""
        values = np.ascontiguousarray(np.broadcast_to(values, self.shape), self._dtype)
        self._place(lambda: self.value.update_inplace(values))

    def read(self) -> NDArray[Any]:
        """A copy on the host."""
        values: NDArray[Any] = self._place(lambda: self.value.numpy())
        return values.astype(np.float32) if values.dtype == np.float16 else values


class _HostBuffer(_Buffer):
    """An array, and the OrtValue that is the same memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
        super().__init__(value, array.shape, array.dtype, _here)
        self.array = array

    def write(self, values: NDArray[Any]) -> None:
        """Copy into the array."""
        self.array[...] = values

    def read(self) -> NDArray[Any]:
        """A copy of the array."""
        return self.array.astype(np.float32 if self.array.dtype == np.float16 else self.array.dtype)
