"""A GPU made of host memory, with the parts of `pycuda.driver` and `cuda.bindings.runtime` that the project calls.

Work on a stream happens when somebody waits for it and no earlier: who reads too soon reads the past. Memory lies
between guards and begins as NaN. Everything that is made is counted until it is freed.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

GUARD = 64
_FILLING, _FENCE = 0xFF, 0xA5

Work = Callable[[], None]


class Gpu:
    """The state of the machine.

    live : what was made and not yet freed, by kind
    runs : what was run, as (name of the engine's graph, handle of the stream, index of the profile)
    refuses_capture : a capture fails at its end, as one does that met something no graph can hold
    """

    def __init__(self) -> None:
        self.name = "NVIDIA Double"
        self.compute_capability = (9, 0)
        self.driver_version = 13010
        self.tensorrt = "10.16.1.11"
        self.memory_left = 1 << 32
        self.refuses_capture = False
        self.refused_operators: set[str] = set()
        self.live: Counter[str] = Counter()
        self.runs: list[tuple[str, int, int]] = []
        self.launches = 0
        self.addresses_set = 0
        self.faults: list[str] = []
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.last_error = cudaError_t.cudaSuccess
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._next_address = itertools.count(1 << 20, 1 << 32)
        self.next_handle = itertools.count(1000)
        self._depth = threading.local()

    def current(self) -> int:
        """How often the context is pushed in this thread."""
        depth: int = getattr(self._depth, "value", 0)
        return depth

    def push(self, change: int) -> None:
        self._depth.value = self.current() + change

    def require_current(self) -> None:
        if not self.current():
            raise LogicError("no context is current in this thread")

    def allocate(self, size: int) -> int:
        if size > self.memory_left:
            raise MemoryError_("out of memory")
        self.memory_left -= size
        address = next(self._next_address)
        memory = np.full(size + 2 * GUARD, _FENCE, np.uint8)
        memory[GUARD : GUARD + size] = _FILLING
        self._memory[address] = memory
        self.live["memory"] += 1
        return address

    def free(self, address: int) -> None:
        memory = self._memory.pop(address)
        self.memory_left += len(memory) - 2 * GUARD
        self.live["memory"] -= 1
        if (memory[:GUARD] != _FENCE).any() or (memory[-GUARD:] != _FENCE).any():
            self.faults.append("something was written beside an allocation")

    def at(self, address: int, size: int) -> NDArray[np.uint8]:
        """Bytes on the GPU; they must all be of one allocation."""
        for start, memory in self._memory.items():
            offset = address - start
            if 0 <= offset < max(len(memory) - 2 * GUARD, 1):
                if offset + size > len(memory) - 2 * GUARD:
                    raise AssertionError(f"{size} bytes from {offset} of an allocation of {len(memory) - 2 * GUARD}")
                return memory[GUARD + offset : GUARD + offset + size]
        raise AssertionError(f"{address:#x} is in no allocation")


gpu = Gpu.__new__(Gpu)  # set by `plug_in`


class Error(Exception):
    """The root of what PyCUDA raises."""


class LogicError(Error):
    pass


class MemoryError_(Error):  # noqa: N801, N818 - PyCUDA calls it MemoryError
    pass


def counted(owner: object, kind: str) -> None:
    """Count an object as long as it is there."""
    machine = gpu
    machine.live[kind] += 1
    weakref.finalize(owner, lambda: machine.live.subtract([kind])).atexit = False


def init(flags: int = 0) -> None:
    if gpu.name == "":
        raise LogicError("cuInit failed: no CUDA-capable device is detected")


def get_driver_version() -> int:
    return gpu.driver_version


class Device:
    def __init__(self, number: int) -> None:
        assert number == 0

    def name(self) -> str:
        return gpu.name

    def compute_capability(self) -> tuple[int, int]:
        return gpu.compute_capability

    def retain_primary_context(self) -> Context:
        return Context()


class Context:
    def __init__(self) -> None:
        gpu.live["context"] += 1

    def push(self) -> None:
        gpu.push(+1)

    @staticmethod
    def pop() -> None:
        gpu.require_current()
        gpu.push(-1)

    def detach(self) -> None:
        gpu.live["context"] -= 1


class DeviceAllocation:
    def __init__(self, address: int) -> None:
        self._address = address

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        gpu.require_current()
        gpu.free(self._address)


class PagelockedHostAllocation(bytearray):
    def free(self) -> None:
        gpu.require_current()
        gpu.live["pinned"] -= 1


def mem_alloc(bytes: int) -> DeviceAllocation:  # noqa: A002 - as in PyCUDA
    gpu.require_current()
    return DeviceAllocation(gpu.allocate(bytes))


def pagelocked_empty(
    shape: tuple[int, ...], dtype: np.dtype[Any], order: str = "C", mem_flags: int = 0
) -> NDArray[Any]:
    gpu.require_current()
    gpu.live["pinned"] += 1
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, PagelockedHostAllocation(b"\xff" * size))


class Stream:
    def __init__(self, flags: int = 0) -> None:
        gpu.require_current()
        counted(self, "stream")
        self.handle = next(gpu.next_handle)
        gpu.streams[self.handle] = self
        self._waiting: list[Work] = []
        self._captured: list[Work] | None = None
        self._lock = threading.RLock()

    def enqueue_(self, work: Work) -> None:
        gpu.require_current()
        with self._lock:
            (self._waiting if self._captured is None else self._captured).append(work)

    def drain_(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for work in waiting:
                work()

    def begin_(self) -> None:
        assert self._captured is None
        self._captured = []

    def end_(self) -> list[Work]:
        captured, self._captured = self._captured, None
        assert captured is not None
        return captured


class Event:
    def __init__(self, flags: int = 0) -> None:
        gpu.require_current()
        counted(self, "event")
        self._stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        gpu.require_current()
        self._stream = stream

    def synchronize(self) -> None:
        gpu.require_current()
        if self._stream is not None:
            self._stream.drain_()


def memcpy_htod_async(dest: int, src: NDArray[Any], stream: Stream) -> None:
    _must_be_pinned(src)
    stream.enqueue_(lambda: np.copyto(gpu.at(dest, src.nbytes), src.reshape(-1).view(np.uint8)))


def memcpy_dtoh_async(dest: NDArray[Any], src: int, stream: Stream) -> None:
    _must_be_pinned(dest)
    stream.enqueue_(lambda: np.copyto(dest.reshape(-1).view(np.uint8), gpu.at(src, dest.nbytes)))


def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
    stream.enqueue_(lambda: np.copyto(gpu.at(dest, size), gpu.at(src, size)))


def _must_be_pinned(array: NDArray[Any]) -> None:
    assert isinstance(array.base, PagelockedHostAllocation), "a copy beside the other work needs pinned memory"


class event_flags:  # noqa: N801 - as in PyCUDA
    BLOCKING_SYNC = 1
    DISABLE_TIMING = 2


class cudaError_t(Enum):  # noqa: N801 - as in cuda.bindings
    cudaSuccess = 0  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class cudaStreamCaptureMode(Enum):  # noqa: N801 - as in cuda.bindings
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815


class _Graph:
    """Captured work."""

    def __init__(self, works: list[Work]) -> None:
        self.works = works


def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:  # noqa: N802
    gpu.require_current()
    gpu.streams[stream].begin_()
    return (cudaError_t.cudaSuccess,)


def cudaStreamEndCapture(stream: int) -> tuple[cudaError_t, _Graph | None]:  # noqa: N802
    works = gpu.streams[stream].end_()
    if gpu.refuses_capture:
        gpu.last_error = cudaError_t.cudaErrorStreamCaptureInvalidated
        return gpu.last_error, None
    gpu.live["graph"] += 1
    return cudaError_t.cudaSuccess, _Graph(works)


def cudaGraphInstantiate(graph: _Graph, flags: int) -> tuple[cudaError_t, _Graph]:  # noqa: N802
    gpu.live["executable graph"] += 1
    return cudaError_t.cudaSuccess, _Graph(graph.works)


def cudaGraphLaunch(graphExec: _Graph, stream: int) -> tuple[cudaError_t]:  # noqa: N802, N803
    gpu.launches += 1
    for work in graphExec.works:
        gpu.streams[stream].enqueue_(work)
    return (cudaError_t.cudaSuccess,)


def cudaGraphDestroy(graph: _Graph) -> tuple[cudaError_t]:  # noqa: N802
    gpu.live["graph"] -= 1
    return (cudaError_t.cudaSuccess,)


def cudaGraphExecDestroy(graphExec: _Graph) -> tuple[cudaError_t]:  # noqa: N802, N803
    gpu.require_current()
    gpu.live["executable graph"] -= 1
    return (cudaError_t.cudaSuccess,)


def cudaGetLastError() -> tuple[cudaError_t]:  # noqa: N802
    error, gpu.last_error = gpu.last_error, cudaError_t.cudaSuccess
    return (error,)


DRIVER = {
    "Context": Context,
    "Device": Device,
    "Error": Error,
    "Event": Event,
    "MemoryError": MemoryError_,
    "Stream": Stream,
    "event_flags": event_flags,
    "get_driver_version": get_driver_version,
    "init": init,
    "mem_alloc": mem_alloc,
    "memcpy_dtod_async": memcpy_dtod_async,
    "memcpy_dtoh_async": memcpy_dtoh_async,
    "memcpy_htod_async": memcpy_htod_async,
    "pagelocked_empty": pagelocked_empty,
}
"""What `pycuda.driver` offers."""
RUNTIME = {
    "cudaError_t": cudaError_t,
    "cudaGetLastError": cudaGetLastError,
    "cudaGraphDestroy": cudaGraphDestroy,
    "cudaGraphExecDestroy": cudaGraphExecDestroy,
    "cudaGraphInstantiate": cudaGraphInstantiate,
    "cudaGraphLaunch": cudaGraphLaunch,
    "cudaStreamBeginCapture": cudaStreamBeginCapture,
    "cudaStreamCaptureMode": cudaStreamCaptureMode,
    "cudaStreamEndCapture": cudaStreamEndCapture,
}
"""What `cuda.bindings.runtime` offers."""


def plug_in(machine: Gpu) -> dict[str, ModuleType]:
    """Make a machine the one that the double stands for. Returns the modules for `sys.modules`."""
    global gpu
    gpu = machine
    made = {
        name: ModuleType(name) for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime")
    }
    vars(made["pycuda.driver"]).update(DRIVER)
    vars(made["cuda.bindings.runtime"]).update(RUNTIME)
    vars(made["pycuda"])["driver"] = made["pycuda.driver"]
    vars(made["cuda"])["bindings"] = made["cuda.bindings"]
    vars(made["cuda.bindings"])["runtime"] = made["cuda.bindings.runtime"]
    return made
