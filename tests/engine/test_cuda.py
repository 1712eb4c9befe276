"""CUDA for a graph executor: memory with mirrors, replayed work, owners. On the double, and on a GPU that is there."""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saccade.errors import BackendError
from tests.cuda_double import Gpu
from tests.tensorrt_double import gpu

__all__ = ["gpu"]


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.gpu)])
def layer(request: pytest.FixtureRequest) -> Any:
    """The module, over the double or over PyCUDA."""
    if request.param == "double":
        request.getfixturevalue("gpu")
    else:
        pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed", exc_type=ImportError)
    return importlib.import_module("engine.backends.cuda")


@pytest.fixture
def opened(layer: Any) -> Iterator[tuple[Any, Any]]:
    """A `Cuda` and a stream of it."""
    cuda = layer.Cuda()
    yield cuda, cuda.stream(cuda)
    cuda.close()


Opened = tuple[Any, Any]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_an_array_gives_back_what_was_written(layer: Any, opened: Opened, dtype: str) -> None:
    cuda, stream = opened
    array = layer.Array(cuda, stream, (2, 3, 2), dtype)
    array.write(np.arange(6).reshape(2, 3, 1))
    expected = np.broadcast_to(np.arange(6).reshape(2, 3, 1), (2, 3, 2)).astype(dtype)
    found = array.read()
    assert np.array_equal(found, expected)
    assert found.dtype == ("float32" if dtype == "float16" else dtype)
    array.write(np.ones((2, 3, 2)))
    assert np.array_equal(found, expected)  # it was a copy
    assert (array.read() == 1).all()


def test_bfloat16_is_rounded_to_nearest_even(layer: Any, opened: Opened) -> None:
    cuda, stream = opened
    array = layer.Array(cuda, stream, (5,), "bfloat16")
    step = 2.0**-7  # of numbers between 1 and 2
    array.write(np.array([1 + step / 2, 1 + step * 1.5, 1 + step * 0.51, -3.0, -np.inf], np.float32))
    assert array.read().tolist() == [1.0, 1 + 2 * step, 1 + step, -3.0, -np.inf]


def work_on(layer: Any, cuda: Any, array: Any) -> tuple[NDArray[np.float32], Callable[[Any], None]]:
    """Memory of the host, and work that copies it to the array."""
    source = cuda.pinned(array, array.shape, np.dtype(np.float32))
    return source, lambda stream: layer.driver.memcpy_htod_async(array.address, source, stream.raw)


def test_work_is_captured_the_second_time_and_replayed_from_then_on(layer: Any, opened: Opened) -> None:
    """What it reads may change from time to time, as long as it stays where it is."""
    cuda, stream = opened
    array = layer.Array(cuda, cuda.stream(cuda), (4,), "float32")
    source, work = work_on(layer, cuda, array)
    calls: list[int] = []

    def enqueue(stream: Any) -> None:
        calls.append(len(calls))
        work(stream)

    replay = layer.Replay(cuda, "copy", enqueue)
    found = []
    for value in range(4):
        source[...] = value
        with cuda.current():
            replay(stream)
            array.fetch(stream)
            stream.finish()
        found.append(array.read().tolist())
    assert found == [[value] * 4 for value in range(4)]
    assert len(calls) == 2


def test_work_that_no_graph_can_hold_goes_on_as_it_is(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    layer = importlib.import_module("engine.backends.cuda")
    gpu.refuses_capture = True
    cuda = layer.Cuda()
    stream = cuda.stream(cuda)
    array = layer.Array(cuda, stream, (4,), "float32")
    source, work = work_on(layer, cuda, array)
    replay = layer.Replay(cuda, "copy", work)
    for value in range(4):
        source[...] = value
        with cuda.current():
            replay(stream)
            stream.finish()
    assert array.read().tolist() == [3] * 4
    assert caplog.messages == ["copy runs without a CUDA graph: CUDA says cudaErrorStreamCaptureInvalidated"]
    cuda.close()


def test_an_error_while_capturing_leaves_the_stream_as_it_was(layer: Any, opened: Opened) -> None:
    cuda, stream = opened
    array = layer.Array(cuda, cuda.stream(cuda), (4,), "float32")
    source, work = work_on(layer, cuda, array)
    fails = iter([False, True, False, False])

    def enqueue(stream: Any) -> None:
        work(stream)
        if next(fails):
            raise BackendError("no")

    replay = layer.Replay(cuda, "copy", enqueue)
    for value in range(3):
        source[...] = value
        with cuda.current():
            replay(stream)
            stream.finish()
    assert array.read().tolist() == [2] * 4


def test_memory_goes_with_its_owner(layer: Any, opened: Opened) -> None:
    cuda, stream = opened
    released: list[str] = []
    array = layer.Array(cuda, stream, (4,), "float32")
    cuda.own(array, lambda: released.append("array"))
    del array
    gc.collect()
    assert released == ["array"]


def test_closing_frees_what_is_left_last_made_first_and_once(layer: Any) -> None:
    cuda = layer.Cuda()
    released: list[int] = []
    for number in range(3):
        cuda.own(cuda, lambda number=number: released.append(number))
    cuda.close()
    cuda.close()
    assert released == [2, 1, 0]
    with pytest.raises(BackendError, match="this backend is closed: open it again"), cuda.current():
        pass


def test_another_thread_may_use_and_free_it(layer: Any, opened: Opened) -> None:
    cuda, stream = opened
    array = layer.Array(cuda, stream, (3,), "float32")
    failures: list[BaseException] = []

    def use() -> None:
        nonlocal array
        try:
            array.write(np.arange(3))
            assert array.read().tolist() == [0, 1, 2]
            del array
        except BaseException as error:  # noqa: BLE001 - for the thread that waits
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert failures == []
