"""What a backend is: something that executes the two graphs. The search loop above it is shared."""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from saccade.bundle import Bundle, Precision
from saccade.decoding import Arrays, Decoding
from saccade.errors import BackendError
from saccade.search import SearchOptions

log = logging.getLogger(__name__)


class Backend(Protocol):
    """An opened bundle on one runtime. A context manager: everything it holds is freed at the end."""

    description: str
    """What truly runs, in a few words: runtime, version, device, precision."""
    precision: Precision
    """Of the arithmetic."""

    def begin(self, pixels: NDArray[np.uint8], options: SearchOptions, *, with_alphas: bool) -> Decoding:
        """Encode pixels uint8 (B, S, S, 3) and prepare their search. Raises ConfigError for an unfit decode mode."""
        ...

    def run(self, graph: str, inputs: Arrays) -> Arrays:
        """Run graph "encoder" or "step" once on arrays of the host: for comparisons. Floats come back as float32."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """Where a backend lives, which package it needs, which extra brings that, and which precisions it knows.

    The module has `open_backend`, and `check` where there is more to be wrong than that its package is missing.
    """

    module: str
    package: str
    extra: str
    precisions: tuple[Precision, ...] = ("fp32",)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of both functions, for backends that share a module."""
    driver: str | None = None
    """The shared library of the device's driver: where it is missing, nothing is imported."""

    def open(self, bundle: Bundle, *, threads: int, precision: Precision | None = None) -> Backend:
        """Open the bundle; `precision` None is the backend's choice.

        Raises BackendError where the runtime is missing or does not work, BundleError where the bundle has no graphs of
        that precision.
        """
        if precision not in (None, *self.precisions):
            raise BackendError(
                f"this backend knows {', '.join(self.precisions)}, not {precision}: choose another --precision"
            )
        self.check()
        backend: Backend = self._module().open_backend(bundle, threads=threads, precision=precision, **self.arguments)
        return backend

    def check(self) -> None:
        """Raise BackendError where the runtime is missing, or cannot run here as far as that shows without a bundle."""
        if self.driver:
            _check_driver(self.driver)
        module = self._module()
        if hasattr(module, "check"):
            module.check(**self.arguments)

    def _module(self) -> Any:
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise BackendError(
                f"{error.name} is not installed: pip install 'saccade[{self.extra}]', or choose another --backend"
            ) from error
        except (ImportError, OSError) as error:  # OSError: a shared library is missing or broken
            raise BackendError(
                f"{self.package} is installed but does not import ({error}): pip install --force-reinstall "
                f"'saccade[{self.extra}]', or choose another --backend"
            ) from error


def _check_driver(library: str) -> None:
    try:
        ctypes.CDLL(library)
    except OSError as error:
        raise BackendError(
            f"this machine has no NVIDIA driver that works ({error}): install one, or choose another --backend"
        ) from error


_CUDA = "libcuda.so.1"

BACKENDS = {
    "trt": BackendEntry("engine.backends.trt", "tensorrt", "tensorrt", ("fp32", "fp16", "bf16", "int8")),
    "ort-tensorrt": BackendEntry(
        "engine.backends.ort", "onnxruntime", "gpu", ("fp32", "fp16"), {"provider": "TensorrtExecutionProvider"}, _CUDA
    ),
    "ort-cuda": BackendEntry(
        "engine.backends.ort", "onnxruntime", "gpu", ("fp32", "fp16"), {"provider": "CUDAExecutionProvider"}, _CUDA
    ),
    "pytorch-cuda": BackendEntry(
        "engine.backends.pytorch_cuda", "torch", "train", ("fp32", "bf16", "fp16"), {"device": "cuda"}, _CUDA
    ),
    "openvino": BackendEntry("engine.backends.ovino", "openvino", "cpu", ("fp32", "bf16", "int8")),
    "ort": BackendEntry(
        "engine.backends.ort", "onnxruntime", "cpu", ("fp32", "fp16", "int8"), {"provider": "CPUExecutionProvider"}
    ),
    "pytorch": BackendEntry("engine.backends.pytorch", "torch", "train", ("fp32",)),
}
"""By name, best first: the order in which `auto` tries them."""


def open_backend(name: str, bundle: Bundle, *, threads: int = 0, precision: Precision | None = None) -> Backend:
    """Open a bundle on the named backend, or with "auto" on the best one that truly works here.

    threads : for the arithmetic of CPU backends; 0 leaves the choice to the runtime
    precision : None leaves the choice to the backend
    """
    if name != "auto":
        if name not in BACKENDS:
            raise BackendError(f"unknown backend {name!r}, choose auto, {', '.join(BACKENDS)}")
        return BACKENDS[name].open(bundle, threads=threads, precision=precision)
    reasons = []
    for candidate, entry in BACKENDS.items():
        try:
            backend = entry.open(bundle, threads=threads, precision=precision)
        except BackendError as error:
            reasons.append(f"{candidate}: {error}")
            continue
        for reason in reasons:
            log.debug("not used: %s", reason)  # `saccade doctor` tells it to whoever asks
        return backend
    raise BackendError("no backend works here, pip install 'saccade[cpu]' brings some; " + "; ".join(reasons))
