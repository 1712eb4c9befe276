"""The parts of `tensorrt` that the project calls, executing ONNX by ONNX Runtime on the GPU of `tests.cuda_double`.

As strict as the real one where it can be seen from outside: what is missing, outside of the profile or of another
machine gives None, False or -1 and a line in the log. `tests/export/test_tensorrt_names.py` holds every name and
signature against the real bindings.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests import cuda_double
from tests.cuda_double import Gpu, counted

_MAGIC = b"a plan of the double\n"
_DTYPES = {tensor: onnx.helper.tensor_dtype_to_np_dtype(tensor) for tensor in (1, 2, 3, 6, 7, 9, 10)}


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None: ...

    def log(self, severity: Severity, msg: str) -> None:
        raise AssertionError("a logger must override log")


class NetworkDefinitionCreationFlag(Enum):
    STRONGLY_TYPED = 1

    def __int__(self) -> int:
        return self.value


class BuilderFlag(Enum):
    TF32 = 1


class ExecutionContextAllocationStrategy(Enum):
    USER_MANAGED = 2


class IHostMemory(bytes): ...


class INetworkDefinition:
    def __init__(self) -> None:
        self.model_: bytes = b""


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes_: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:  # noqa: A002
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("not min <= opt <= max")
        self.shapes_[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content_ = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.content_)


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags_ = {BuilderFlag.TF32}
        self.profiles_: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags_.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile.shapes_:
            return -1
        self.profiles_.append(profile)
        return len(self.profiles_) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache or b"0 %d.%d" % cuda_double.gpu.compute_capability)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.content_.split()[1] != b"%d.%d" % cuda_double.gpu.compute_capability and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        counted(self, "builder")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << 1, "the network is not strongly typed"
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        inputs = {value.name: _shape(value) for value in onnx.load_from_string(network.model_).graph.input}
        for profile in config.profiles_:
            for name, shape in inputs.items():
                bounds = profile.shapes_.get(name, (shape,) * 3)
                if not all(_fits(shape, bound) for bound in bounds):
                    self._logger.log(ILogger.Severity.ERROR, f"{name} of shape {shape} does not take {bounds}")
                    return None
        cache = config.get_timing_cache()
        if cache is not None:  # every building adds one measurement
            count, capability = cache.content_.split()
            cache.content_ = b"%d %s" % (int(count) + 1, capability)
        header = {
            "tensorrt": cuda_double.gpu.tensorrt,
            "compute_capability": cuda_double.gpu.compute_capability,
            "tf32": BuilderFlag.TF32 in config.flags_,
            "profiles": [profile.shapes_ for profile in config.profiles_],
        }
        return IHostMemory(_MAGIC + json.dumps(header).encode() + b"\n" + network.model_)


class ParserError:
    def __init__(self, index: int, node: onnx.NodeProto) -> None:
        self._index, self._node = index, node

    def desc(self) -> str:
        return f"no importer for {self._node.op_type}"

    def node(self) -> int:
        return self._index

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        self._network.model_ = Path(model).read_bytes()
        nodes = enumerate(onnx.load_from_string(self._network.model_).graph.node)
        refused = cuda_double.gpu.refused_operators
        self._errors = [ParserError(index, node) for index, node in nodes if node.op_type in refused]
        return not self._errors


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        counted(self, "runtime")
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        cuda_double.gpu.require_current()
        header, _, model = serialized_engine.removeprefix(_MAGIC).partition(b"\n")
        values = json.loads(header)
        found = values["tensorrt"], tuple(values["compute_capability"])
        if found != (cuda_double.gpu.tensorrt, cuda_double.gpu.compute_capability):
            self._logger.log(ILogger.Severity.ERROR, f"the version tag {found} does not match")
            return None
        return ICudaEngine(model, values["profiles"], self._logger)


class ICudaEngine:
    def __init__(self, model: bytes, profiles: list[dict[str, list[list[int]]]], logger: ILogger) -> None:
        counted(self, "engine")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session_: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(model).graph
        self.inputs_ = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.outputs_ = [value.name for value in graph.output]
        self.shapes_ = {value.name: _shape(value) for value in graph.input}
        self.profiles_, self.logger_ = profiles, logger

    @property
    def device_memory_size_v2(self) -> int:
        return 4096

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext:
        cuda_double.gpu.require_current()
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        counted(self, "execution context")
        self._engine = engine
        self._profile = -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        cuda_double.gpu.at(memory, size)
        assert size >= self._engine.device_memory_size_v2
        self._scratch = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < len(self._engine.profiles_):
            return self._refuse(f"there is no profile {profile_index}")
        assert stream_handle in cuda_double.gpu.streams
        self._profile = profile_index
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self._engine.inputs_ or not _fits(self._engine.shapes_[name], shape):
            return self._refuse(f"{name} does not take {shape}")
        smallest, _, largest = self._engine.profiles_[self._profile].get(name, (shape,) * 3)
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            return self._refuse(f"{name} of shape {shape} is outside of profile {self._profile}")
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        cuda_double.gpu.addresses_set += 1
        if name not in (*self._engine.inputs_, *self._engine.outputs_):
            return self._refuse(f"there is no tensor {name}")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.inputs_ if name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        missing = [name for name in (*engine.inputs_, *engine.outputs_) if name not in self._addresses]
        if missing or self._profile < 0 or self.infer_shapes() or not self._scratch:
            return self._refuse(f"not everything is set: {missing}")
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        run = ("tokens" in engine.inputs_ and "step") or "encoder", stream_handle, self._profile

        def work() -> None:
            cuda_double.gpu.runs.append(run)
            given = {name: _read(addresses[name], shapes[name], kind) for name, kind in engine.inputs_.items()}
            for name, values in zip(engine.outputs_, engine.session_.run(None, given), strict=True):
                np.copyto(cuda_double.gpu.at(addresses[name], values.nbytes), values.reshape(-1).view(np.uint8))

        cuda_double.gpu.streams[stream_handle].enqueue_(work)
        return True

    def _refuse(self, why: str) -> bool:
        self._engine.logger_.log(ILogger.Severity.ERROR, why)
        return False


OFFERED = {
    kind.__name__: kind
    for kind in (
        Builder,
        BuilderFlag,
        ExecutionContextAllocationStrategy,
        IBuilderConfig,
        ICudaEngine,
        IExecutionContext,
        IHostMemory,
        ILogger,
        INetworkDefinition,
        IOptimizationProfile,
        ITimingCache,
        NetworkDefinitionCreationFlag,
        OnnxParser,
        ParserError,
        Runtime,
    )
}
"""What `tensorrt` offers; attributes that end in an underscore are the double's own."""

USERS = ("engine.backends.cuda", "engine.backends.trt", "export.tensorrt_plans")
"""Modules that must be imported anew, as they hold the modules that the double replaces."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A machine with a GPU and TensorRT. At the end nothing may be left on it, and nothing have been written astray."""
    machine = Gpu()
    tensorrt = ModuleType("tensorrt")
    vars(tensorrt).update(OFFERED, __version__=machine.tensorrt)
    for name, module in {"tensorrt": tensorrt, **cuda_double.plug_in(machine)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in USERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield machine
    for name in USERS:
        sys.modules.pop(name, None)
    if any(machine.live.values()):
        gc.collect()  # a caught error keeps what its frames held
    left = {kind: count for kind, count in machine.live.items() if count}
    assert (machine.faults, left) == ([], {})


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def _fits(axes: list[int | str], shape: Sequence[int | str]) -> bool:
    return len(axes) == len(shape) and all(isinstance(a, str) or a == b for a, b in zip(axes, shape, strict=True))


def _read(address: int, shape: tuple[int, ...], kind: int) -> Any:
    dtype = _DTYPES[kind]
    size = int(np.prod(shape)) * dtype.itemsize
    return cuda_double.gpu.at(address, size).view(dtype).reshape(shape).copy()
