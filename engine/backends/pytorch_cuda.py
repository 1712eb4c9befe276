"""PyTorch on a GPU, for speed: 16 bits, channels last, and both graphs captured as CUDA graphs.

The reference is `engine.backends.pytorch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.backends.buffers import Buffer, BufferedBackend, Run
from engine.backends.pytorch import captioner_of
from saccade.bundle import Bundle, GraphSpec, Precision, TensorSpec
from saccade.errors import BackendError
from training.graphs import EncoderGraph, StepGraph
from training.lowering import lowered

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WARM_UP = 3
"""Runs before a capture, in which libraries choose their kernels and allocate."""


def check(*, device: str) -> None:
    """Raise BackendError where PyTorch sees no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"PyTorch {torch.__version__} sees no GPU: look at the driver, or choose another --backend")


def open_backend(bundle: Bundle, *, threads: int, precision: Precision | None, device: str) -> BufferedBackend:
    """Build the model on the device. Raises BackendError if the bundle has no weights."""
    if threads:
        torch.set_num_threads(threads)
    precision = precision or "fp16"
    size = bundle.manifest.preprocessing.size
    captioner = lowered(captioner_of(bundle).eval().to(device), _DTYPES[precision], size=size)
    captioner.encoder.to(memory_format=torch.channels_last)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = True
    modules = {"encoder": EncoderGraph(captioner), "step": StepGraph(captioner.decoder, end=bundle.vocabulary.end)}
    graphs = {name: _Graph(module, bundle.graph(name), _DTYPES[precision]) for name, module in modules.items()}
    return BufferedBackend(
        bundle,
        **graphs,
        description=f"PyTorch {torch.__version__}, {device.upper()}, {precision}, captured graphs",
        precision=precision,
    )


class _Graph:
    """A module as an `Executor`."""

    def __init__(self, module: nn.Module, spec: GraphSpec, dtype: torch.dtype) -> None:
        self.spec = spec
        self._module = module
        self._dtype = dtype
        self._device = next(module.parameters()).device

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        """Memory of the device; what is float32 but scores, alphas, noise and biases takes the weights' precision."""
        stated = getattr(torch, tensor.dtype)
        dtype = self._dtype if tensor.name.removeprefix("next_") in _LOWERED else stated
        return _Buffer(torch.zeros(shape, dtype=dtype, device=self._device))

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        """Capture the graph on the buffers; on a CPU, run it as it is."""
        given = {name: cast("_Buffer", buffer).tensor for name, buffer in inputs.items()}
        targets = [cast("_Buffer", outputs[tensor.name]).tensor for tensor in self.spec.outputs]

        @torch.inference_mode()
        def run() -> None:
            for target, made in zip(targets, self._module(**given), strict=True):
                target.copy_(made)

        return run if self._device.type == "cpu" else _captured(run)


_LOWERED = ("annotations", "keys", "hidden", "cell")


def _captured(run: Run) -> Run:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Another thread may be searching meanwhile: its calls are none of this capture's business.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()

    def replay() -> None:
        graph.replay()
        torch.cuda.current_stream().synchronize()

    return replay


class _Buffer:
    """A tensor that stays where it is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def write(self, values: NDArray[Any]) -> None:
        """Copy from the host."""
        self.tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    def read(self) -> NDArray[Any]:
        """A copy on the host."""
        tensor = self.tensor.float() if self.tensor.is_floating_point() else self.tensor
        values: NDArray[Any] = tensor.cpu().numpy()
        return values.copy() if tensor is self.tensor and not tensor.is_cuda else values
