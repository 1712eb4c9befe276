"""PyTorch on a GPU, for speed: 16 bits, channels last, fused kernels, and both graphs captured as CUDA graphs.

Each graph has a stream of its own, so that one batch is encoded while the one before is searched; the steps of the
search, which are many and short, go first. The reference is `engine.backends.pytorch`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.backends.buffers import Buffer, BufferedBackend, Run
from engine.backends.pytorch import captioner_of
from saccade.bundle import Bundle, GraphSpec, Precision, TensorSpec
from saccade.errors import BackendError
from training.fused_convolutions import with_fused_convolutions
from training.graphs import EncoderGraph, StepGraph
from training.lowering import lowered
from training.model import Captioner

log = logging.getLogger(__name__)

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
    dtype, size = _DTYPES[precision], bundle.manifest.preprocessing.size
    captioner = lowered(captioner_of(bundle).eval().to(device), dtype, size=size)
    captioner.encoder.to(memory_format=torch.channels_last)
    if device == "cuda" and precision != "fp32":  # float32 is to round as the reference does
        _fuse(captioner)
    # For the process: 16 bits do not need it, and whoever compares has a backend in float32 beside this one.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    step = StepGraph(captioner.decoder, end=bundle.vocabulary.end)
    return BufferedBackend(
        bundle,
        encoder=_Graph(EncoderGraph(captioner), bundle.graph("encoder"), dtype, _Queue(device)),
        step=_Graph(step, bundle.graph("step"), dtype, _Queue(device, goes_first=True)),
        description=f"PyTorch {torch.__version__}, {device.upper()}, {precision}, captured graphs",
        precision=precision,
    )


def _fuse(captioner: Captioner) -> None:
    """Use kernels that do several things in one pass over memory; of attention, as far as Triton runs here."""
    captioner.encoder.trunk = with_fused_convolutions(captioner.encoder.trunk)
    attention, weight = captioner.decoder.attention, captioner.decoder.attention.energy.weight
    try:
        from training.fused_attention import fuse_attention

        fuse_attention(captioner)
        captioner.decoder.attention.energies(weight[:, None], weight[:, None])
    except Exception as error:  # noqa: BLE001 - Triton is missing, or finds no compiler, or no driver that it knows
        log.warning("attention runs in three kernels instead of one: %s", str(error).strip().rpartition("\n")[2])
        captioner.decoder.attention = attention


class _Queue:
    """A stream of a GPU; on a CPU, where all is done at once, nothing."""

    def __init__(self, device: str, *, goes_first: bool = False) -> None:
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(priority=-int(goes_first)) if device == "cuda" else None  # type: ignore[no-untyped-call]

    def entered(self) -> AbstractContextManager[object]:
        """Inside the block, work goes to this stream."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def finish(self) -> None:
        """Return when all that was enqueued is done."""
        if self._stream:
            self._stream.synchronize()

    def captured(self, work: Run) -> Run:
        """The work as one launch, recorded now; on a CPU, as it is."""
        if not self._stream:
            return work
        # Beside the stream, in which another thread may be searching meanwhile: its calls are none of the capture's.
        # A graph keeps the priority of the stream that it was captured on.
        beside = torch.cuda.Stream(priority=self._stream.priority)  # type: ignore[no-untyped-call]
        self.finish()
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                work()
        beside.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
            work()
        return graph.replay


class _Graph:
    """A module as an `Executor`."""

    def __init__(self, module: nn.Module, spec: GraphSpec, dtype: torch.dtype, queue: _Queue) -> None:
        self.spec = spec
        self._module = module
        self._dtype = dtype
        self._queue = queue

    def empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> _Buffer:
        """Memory of the device; what is float32 but scores, alphas, noise and biases takes the weights' precision."""
        dtype = self._dtype if tensor.name.removeprefix("next_") in _LOWERED else getattr(torch, tensor.dtype)
        with self._queue.entered():
            return _Buffer(torch.zeros(shape, dtype=dtype, device=self._queue.device), self._queue)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Run:
        """Capture the graph on the buffers; on a CPU, run it as it is."""
        given = {name: cast("_Buffer", buffer).tensor for name, buffer in inputs.items()}
        made = [cast("_Buffer", outputs[tensor.name]) for tensor in self.spec.outputs]

        @torch.inference_mode()
        def work() -> None:
            for buffer, values in zip(made, self._module(**given), strict=True):
                buffer.tensor.copy_(values)

        launch = self._queue.captured(work)

        def run() -> None:
            with self._queue.entered():
                launch()
                for buffer in made:
                    buffer.fetch()
                self._queue.finish()

        return run

    def take(self, places: NDArray[np.intp], others: Sequence[tuple[Buffer, Buffer]], images: NDArray[np.intp]) -> None:
        """Copy images between buffers, in one piece each."""
        with self._queue.entered():
            to, of = (torch.from_numpy(rows).to(self._queue.device) for rows in (places, images))
            for here, there in others:
                cast("_Buffer", here).tensor.index_copy_(0, to, cast("_Buffer", there).tensor.index_select(0, of))
            self._queue.finish()


_LOWERED = ("annotations", "keys", "hidden", "cell")


class _Buffer:
    """A tensor that stays where it is, with a mirror in memory of the host once there is need of one.

    What was read once is brought to the mirror with every run that changes it, so that a step waits for the GPU once.
    """

    def __init__(self, tensor: Tensor, queue: _Queue) -> None:
        self.tensor = tensor
        self._queue = queue
        self._is_read = False

    def write(self, values: NDArray[Any]) -> None:
        """Copy from the host, and return when it is there."""
        self._mirror.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        with self._queue.entered():
            self.tensor.copy_(self._mirror, non_blocking=True)
            self._queue.finish()

    def read(self) -> NDArray[Any]:
        """A copy on the host, float32 where the buffer holds a shorter float."""
        if not self._is_read:
            self._is_read = True
            with self._queue.entered():
                self.fetch()
                self._queue.finish()
        dtype = torch.float32 if self._mirror.is_floating_point() else self._mirror.dtype
        values: NDArray[Any] = self._mirror.to(dtype, copy=True).numpy()
        return values

    def fetch(self) -> None:
        """Where the buffer is read, enqueue that the mirror becomes what the buffer is then."""
        if self._is_read:
            self._mirror.copy_(self.tensor, non_blocking=True)

    @cached_property
    def _mirror(self) -> Tensor:
        return torch.empty(self.tensor.shape, dtype=self.tensor.dtype, pin_memory=self.tensor.is_cuda)
