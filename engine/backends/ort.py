"""ONNX Runtime: on the CPU, on a GPU by its CUDA provider, and on a GPU by TensorRT through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engine.backends.buffers import Buffer, BufferedBackend, Run
from saccade.bundle import Bundle, Precision, TensorSpec
from saccade.errors import BackendError
from saccade.files import cache_directory
from saccade.machine import saturates_int8

_Providers = Sequence[str | tuple[str, Mapping[str, Any]]]

_DEVICES = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
}


def check(*, provider: str) -> None:
    """Raise BackendError if this build of ONNX Runtime has no such provider."""
    if provider not in (available := onnxruntime.get_available_providers()):
        raise BackendError(
            f"this ONNX Runtime ({onnxruntime.__version__}) has no {provider}, it has {', '.join(available)}: "
            "pip uninstall onnxruntime, then pip install 'saccade[gpu]'"
        )


def open_backend(bundle: Bundle, *, threads: int, precision: Precision | None, provider: str) -> BufferedBackend:
    """Open both graphs on a provider. Raises BackendError if ONNX Runtime refuses one, or would run it elsewhere."""
    precision = precision or "fp32"
    graphs = {
        name: _Graph(bundle, name, precision, _providers(provider, precision), threads) for name in ("encoder", "step")
    }
    device = provider.removesuffix("ExecutionProvider")
    slow = " (slow: this processor has no VNNI)" if precision == "int8" and saturates_int8() else ""
    return BufferedBackend(
        bundle,
        **graphs,
        description=f"ONNX Runtime {onnxruntime.__version__}, {device}, {precision}{slow}",
        precision=precision,
    )


def _providers(provider: str, precision: Precision) -> _Providers:
    tf32 = {"use_tf32": str(int(precision != "fp32"))}
    cuda = ("CUDAExecutionProvider", tf32 | {"cudnn_conv_algo_search": "EXHAUSTIVE"})
    if provider == "TensorrtExecutionProvider":
        # TensorRT takes what it can, CUDA the rest; never the CPU.
        return [(provider, _kept_plans() | {"trt_fp16_enable": precision == "fp16"}), cuda]
    return [cuda] if provider == "CUDAExecutionProvider" else [provider]


def _kept_plans() -> dict[str, Any]:
    folder = cache_directory("onnxruntime-tensorrt")
    if folder is None:
        return {}
    kinds = ("engine", "timing")
    enabled = {f"trt_{kind}_cache_enable": True for kind in kinds}
    return enabled | {f"trt_{kind}_cache_path": str(folder) for kind in kinds}


class _Graph:
    """A session as an `Executor`."""

    def __init__(self, bundle: Bundle, name: str, precision: Precision, providers: _Providers, threads: int) -> None:
        self.spec = bundle.graph(name, precision)
        path = bundle.path / self.spec.file
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        self._device = _DEVICES[wanted]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Encoding, search and loading go on at once: threads that spin while they wait take cores from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if precision == "int8" and saturates_int8():
            # Fused, sums of products would overflow. Node by node they are computed in float32: slow, but right.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
        if (found := self._session.get_providers())[0] != wanted:
            raise BackendError(
                f"ONNX Runtime {onnxruntime.__version__} would run {path} on {found[0]}, not on {wanted}: "
                'look at the driver and the CUDA libraries, or choose "--backend ort"'
            )

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        """Memory of the provider's device."""
        return _Buffer(shape, np.dtype(tensor.dtype), self._device)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        """An IOBinding: nothing is copied between the runs."""
        binding = self._session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, cast("_Buffer", buffer).value)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, cast("_Buffer", buffer).value)

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run


class _Buffer:
    """An OrtValue that stays where it is."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> None:
        self._shape, self._dtype = shape, dtype
        self.value: Any = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, device, 0)

    def write(self, values: NDArray[Any]) -> None:
        """Copy from the host."""
        self.value.update_inplace(np.ascontiguousarray(np.broadcast_to(values, self._shape), self._dtype))

    def read(self) -> NDArray[Any]:
        """A copy on the host."""
        values: NDArray[Any] = self.value.numpy()  # of a CPU, not a copy yet
        return values.astype(np.float32 if values.dtype == np.float16 else values.dtype)
