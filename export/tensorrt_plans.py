"""Bundle to TensorRT plans: strongly typed networks, one profile a bucket of batches, a timing cache that is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pycuda.driver as driver
import tensorrt as trt

from saccade.bundle import Bundle
from saccade.errors import BackendError
from saccade.files import write_atomically
from saccade.plans import (
    FOLDER,
    Machine,
    PlanOptions,
    PlanRecord,
    Target,
    collecting_logger,
    machine_of,
    onnx_sha256,
    reason,
    targets,
    write_plan,
)

log = logging.getLogger(__name__)


def build_plans(bundle: Bundle, options: PlanOptions) -> Iterator[tuple[Path, PlanRecord]]:
    """Build and write one plan after the other. Raises BackendError with all that TensorRT said."""
    machine = machine_of(driver, tensorrt=trt.__version__)
    for target in targets(options):
        began = time.perf_counter()
        plan, flags = _Build(bundle, target, options, machine).run()
        record = PlanRecord(
            graph=target.graph,
            beam=target.beam,
            precision=target.precision,
            machine=machine,
            onnx_sha256=onnx_sha256(bundle, target),
            plan_sha256="",
            profiles=target.profiles(bundle, options.batches),
            flags=flags,
            build_seconds=round(time.perf_counter() - began, 1),
        )
        yield write_plan(bundle, record, plan), record


class _Build:
    """The building of one plan."""

    def __init__(self, bundle: Bundle, target: Target, options: PlanOptions, machine: Machine) -> None:
        self._path = bundle.path / target.spec(bundle).file
        self._profiles = target.profiles(bundle, options.batches)
        self._is_float32 = target.precision == "fp32"
        self._cache = bundle.path / FOLDER / timing_cache(machine)
        self._log = collecting_logger(trt)
        self._builder: trt.Builder = trt.Builder(self._log)

    def run(self) -> tuple[bytes, tuple[str, ...]]:
        """The plan, and how its building departed from TensorRT's defaults."""
        network = self._network()
        config: trt.IBuilderConfig = self._builder.create_builder_config()
        self._add_profiles(config)
        flags = ["strongly typed"]
        if self._is_float32:
            config.clear_flag(trt.BuilderFlag.TF32)
            flags.append("no TF32")
        self._read_cache(config)
        plan: trt.IHostMemory = self._builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(f"TensorRT {trt.__version__} built no plan of {self._path}: {reason(self._log)}")
        self._write_cache(config)
        return bytes(plan), tuple(flags)

    def _network(self) -> trt.INetworkDefinition:
        """The parsed graph, with the precisions that are in it. Raises BackendError with all errors of the parser."""
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network: trt.INetworkDefinition = self._builder.create_network(flags)
        parser: trt.OnnxParser = trt.OnnxParser(network, self._log)
        if not parser.parse_from_file(str(self._path)):
            errors = [_text_of(parser.get_error(index)) for index in range(parser.num_errors)]
            raise BackendError(f"TensorRT {trt.__version__} cannot read {self._path}: {'; '.join(errors)}")
        return network

    def _add_profiles(self, config: trt.IBuilderConfig) -> None:
        for shapes in self._profiles:
            profile: trt.IOptimizationProfile = self._builder.create_optimization_profile()
            for name, bounds in shapes.items():
                profile.set_shape(name, *bounds)
            if config.add_optimization_profile(profile) < 0:
                raise BackendError(f"TensorRT refuses the profile {shapes} of {self._path}: {reason(self._log)}")

    def _read_cache(self, config: trt.IBuilderConfig) -> None:
        content = self._cache.read_bytes() if self._cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(content), False):
            log.warning("%s is of another machine: the timing begins anew", self._cache)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _write_cache(self, config: trt.IBuilderConfig) -> None:
        cache: trt.ITimingCache = config.get_timing_cache()
        self._cache.parent.mkdir(exist_ok=True)
        write_atomically(self._cache, bytes(cache.serialize()))


def timing_cache(machine: Machine) -> str:
    """Name of the file that keeps how long kernels took."""
    return f"timing.{machine.tensorrt}.{machine.compute_capability}.cache"


def _text_of(error: Any) -> str:
    found: trt.ParserError = error
    return f"{found.node_operator()} {found.node_name()} (node {found.node()}): {found.desc()}"
