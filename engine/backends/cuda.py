"""CUDA for a graph executor: memory, streams, and graphs that replay what was enqueued once.

PyCUDA on the primary context, which PyTorch and ONNX Runtime use as well. PyCUDA has no CUDA graphs: these come from
`cuda.bindings`, on PyCUDA's streams. Everything here has an owner and goes with it, or at the latest with the `Cuda`.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pycuda.driver as driver
from cuda.bindings import runtime
from numpy.typing import NDArray

from saccade.errors import BackendError
from saccade.rounding import bfloat16_bits, from_bfloat16_bits

log = logging.getLogger(__name__)


class Cuda:
    """The first GPU. It is current in a thread only inside of `current()`: batches are encoded in one thread and
    searched in another.
    """

    def __init__(self) -> None:
        """Retain the primary context. `close` it in the same thread: PyCUDA keeps the context otherwise."""
        driver.init()
        self._context: Any = driver.Device(0).retain_primary_context()
        self._owned: list[weakref.finalize[..., Any]] = []
        self._lock = threading.RLock()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU current in this thread. Raises BackendError after `close`."""
        if self._context is None:
            raise BackendError("this backend is closed: open it again")
        self._context.push()
        try:
            yield
        finally:
            driver.Context.pop()

    def own(self, owner: object, release: Callable[[], object]) -> None:
        """Call `release` when `owner` is gone, or at `close`, whichever comes first."""
        finalizer = weakref.finalize(owner, self._release, release)
        finalizer.atexit = False
        with self._lock:
            self._owned = [known for known in self._owned if known.alive] + [finalizer]

    def memory(self, owner: object, size: int) -> int:
        """The address of `size` bytes on the GPU. Raises BackendError if there is not enough."""
        try:
            with self.current():
                memory = driver.mem_alloc(max(size, 1))
        except driver.MemoryError as error:
            raise BackendError(
                f"the GPU has no {size / 1e6:.0f} MB left ({error}): choose a smaller --batch, or free some of it"
            ) from error
        self.own(owner, memory.free)
        return int(memory)

    def pinned(self, owner: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory of the host that the GPU reads and writes while others work."""
        with self.current():
            array = driver.pagelocked_empty(shape, dtype)
        self.own(owner, array.base.free)
        pinned: NDArray[Any] = array
        return pinned

    def stream(self, owner: object) -> Stream:
        """A new stream."""
        with self.current():
            stream = Stream()
        self.own(owner, stream.close)
        return stream

    def close(self) -> None:
        """Free everything, last made first. Does nothing the second time."""
        if self._context is None:
            return
        for finalizer in reversed(self._owned):
            finalizer()
        self._context.detach()
        self._context = None

    def _release(self, release: Callable[[], object]) -> None:
        with self.current():
            release()


class Stream:
    """Work that is done in order, beside the work of other streams."""

    def __init__(self) -> None:
        self.raw: Any = driver.Stream()
        # The cores are needed elsewhere: a thread that waits for the GPU sleeps.
        flags = driver.event_flags
        self._reached: Any = driver.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)
        self.lock = threading.Lock()
        """Held while something is enqueued: what another thread enqueued during a capture would become part of it."""

    @property
    def handle(self) -> int:
        """For TensorRT and the CUDA runtime."""
        handle: int = self.raw.handle
        return handle

    def mark(self) -> None:
        """What was enqueued up to here is what `wait` waits for."""
        self._reached.record(self.raw)

    def wait(self) -> None:
        """Return when the GPU has reached the last mark."""
        self._reached.synchronize()

    def finish(self) -> None:
        """Return when all that was enqueued is done."""
        self.mark()
        self.wait()

    def close(self) -> None:
        """Let go of the stream."""
        self.raw = self._reached = None


class Array:
    """An array on the GPU with a mirror in pinned memory, once there is need of one.

    What was read once is brought to the mirror with every run that changes it, so that a step waits for the GPU once.
    """

    def __init__(self, cuda: Cuda, copies: Stream, shape: tuple[int, ...], dtype: str) -> None:
        """Copies : the stream for what is copied apart from the runs; dtype : NumPy's name of it, or "bfloat16"."""
        self.shape, self.dtype = shape, dtype
        self._cuda, self._copies = cuda, copies
        self._is_read = False
        self._stored = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        self.address = cuda.memory(self, int(np.prod(shape)) * self._stored.itemsize)

    def write(self, values: NDArray[Any]) -> None:
        """Copy from the host, and return when it is there."""
        with self._cuda.current(), self._copies.lock:
            self._mirror[...] = bfloat16_bits(values) if self.dtype == "bfloat16" else values
            driver.memcpy_htod_async(self.address, self._mirror, self._copies.raw)
            self._copies.finish()

    def read(self) -> NDArray[Any]:
        """A copy on the host, float32 where the array holds a shorter float."""
        if not self._is_read:
            with self._cuda.current(), self._copies.lock:
                driver.memcpy_dtoh_async(self._mirror, self.address, self._copies.raw)
                self._copies.finish()
            self._is_read = True
        if self.dtype == "bfloat16":
            return from_bfloat16_bits(self._mirror)
        return self._mirror.astype(np.float32 if self.dtype == "float16" else self.dtype)

    def take(self, place: int, other: Array, image: int, stream: Stream) -> None:
        """Enqueue a copy of an image, along the first axis, of another array. Whoever calls holds the stream's lock."""
        size = int(np.prod(self.shape[1:])) * self._stored.itemsize
        driver.memcpy_dtod_async(self.address + place * size, other.address + image * size, size, stream.raw)

    def fetch(self, stream: Stream) -> None:
        """Where the array is read, enqueue that the mirror becomes what the array is at that place of the stream."""
        if self._is_read:
            driver.memcpy_dtoh_async(self._mirror, self.address, stream.raw)

    @cached_property
    def _mirror(self) -> NDArray[Any]:
        return self._cuda.pinned(self, self.shape, self._stored)


class Replay:
    """Work that is enqueued again and again: the first time as it is, then captured and replayed as a CUDA graph.

    Where the capture is refused, it goes on as it is.
    """

    def __init__(self, cuda: Cuda, name: str, enqueue: Callable[[Stream], None]) -> None:
        """Enqueue : puts the work on a stream; what it reads and writes is always in the same places."""
        self._cuda, self._name, self._enqueue = cuda, name, enqueue
        self._calls = 0
        self._graph: Any = None

    def __call__(self, stream: Stream) -> None:
        """Enqueue the work once. Whoever calls holds the lock of the stream."""
        self._calls += 1
        if self._calls == 2:  # the first time, runtimes still allocate and load, which no graph can hold
            self._capture(stream)
        if self._graph is None:
            self._enqueue(stream)
        else:
            _result(runtime.cudaGraphLaunch(self._graph, stream.handle))

    def _capture(self, stream: Stream) -> None:
        try:
            graph = self._captured(stream)
        except BackendError as error:
            runtime.cudaGetLastError()  # the next call would report it as its own
            log.warning("%s runs without a CUDA graph: %s", self._name, str(error))  # a kept error keeps what it met
            return
        try:
            self._graph = _result(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            _result(runtime.cudaGraphDestroy(graph))
        graph = self._graph
        self._cuda.own(self, lambda: runtime.cudaGraphExecDestroy(graph))

    def _captured(self, stream: Stream) -> Any:
        # Other threads go on with other streams meanwhile.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _result(runtime.cudaStreamBeginCapture(stream.handle, mode))
        try:
            self._enqueue(stream)
        except BackendError:
            _discard(runtime.cudaStreamEndCapture(stream.handle))
            raise
        return _result(runtime.cudaStreamEndCapture(stream.handle))


def _discard(ended: tuple[Any, ...]) -> None:
    error, graph = ended
    if error == runtime.cudaError_t.cudaSuccess:
        runtime.cudaGraphDestroy(graph)


def _result(returned: tuple[Any, ...]) -> Any:
    """What a call of the CUDA runtime gave. Raises BackendError."""
    error, *values = returned
    if error != runtime.cudaError_t.cudaSuccess:
        raise BackendError(f"CUDA says {error.name}")
    return values[0] if values else None
