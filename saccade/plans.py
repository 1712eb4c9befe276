"""TensorRT plans in a bundle: where they lie, what was recorded of them, and why one is refused.

    plans/encoder.fp16.plan       the encoder, for every bucket of batches
    plans/step.fp16.beam3.plan    one step of the search with three rows an image
    plans/*.json                  the record of each: what it was built from, for and by

`saccade build` writes them and the TensorRT backend reads them. No runtime is imported: what asks one for something is
given the module.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from saccade.bundle import Bundle, GraphSpec, Precision
from saccade.errors import BackendError, ConfigError
from saccade.files import write_atomically, write_json
from saccade.structure import structure, unstructure

FOLDER = "plans"

Shapes = tuple[tuple[int, ...], ...]
"""Smallest, best and largest shape of an input."""
Profile = dict[str, Shapes]
"""The shapes of every input, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a plan depends on, but for the driver, which is recorded only: plans outlive an update of it."""

    tensorrt: str
    compute_capability: str
    gpu: str
    system: str
    driver: str

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} (compute capability {self.compute_capability}), {self.system}"


def machine_of(driver: Any, *, tensorrt: str) -> Machine:
    """Describe this machine and its first GPU. Raises BackendError where there is none.

    driver : the module `pycuda.driver`; tensorrt : version of TensorRT
    """
    try:
        driver.init()
        device = driver.Device(0)
        major, minor = device.compute_capability()
        cuda = driver.get_driver_version()
    except driver.Error as error:
        raise BackendError(
            f'no NVIDIA GPU can be used ({error}): look at "nvidia-smi", or choose another --backend'
        ) from error
    return Machine(
        tensorrt=tensorrt,
        compute_capability=f"{major}.{minor}",
        gpu=device.name(),
        system=f"{platform.system()} {platform.machine()}",
        driver=f"CUDA {cuda // 1000}.{cuda % 1000 // 10}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Which plans are built.

    batches : largest batches of the optimisation profiles; each profile begins where the one before ends
    beams : rows an image, one plan of the step graph each
    """

    batches: tuple[int, ...] = (1, 8, 32, 128)
    beams: tuple[int, ...] = (3,)
    precision: Precision = "fp16"

    def __post_init__(self) -> None:
        problems = []
        for name, values in (("batches", self.batches), ("beams", self.beams)):
            if not values or values[0] < 1 or any(first >= second for first, second in pairwise(values)):
                problems.append(f"{name} must be 1 or more and increase, got {', '.join(map(str, values)) or 'none'}")
        if problems:
            raise ConfigError("invalid plan options: " + "; ".join(problems))

    def command(self, bundle: Path) -> str:
        """The command that builds them."""
        lists = {"batch": self.batches, "beam": self.beams}
        options = " ".join(f"--{name} {','.join(map(str, values))}" for name, values in lists.items())
        return f"saccade build {bundle} {options} --precision {self.precision}"


@dataclass(frozen=True, slots=True)
class Target:
    """One plan: of the graph "encoder", or of "step" with `beam` rows an image. The encoder has no beam, hence 0."""

    graph: str
    beam: int
    precision: Precision

    def file(self, bundle: Bundle) -> Path:
        """Where the plan lies; its record lies beside it."""
        name = f"{self.graph}.{self.precision}" + (f".beam{self.beam}" if self.beam else "")
        return bundle.path / FOLDER / f"{name}.plan"

    def spec(self, bundle: Bundle) -> GraphSpec:
        """The graph it is built from. Raises BundleError where the bundle has none of that precision."""
        return bundle.graph(self.graph, self.precision)

    def profiles(self, bundle: Bundle, batches: tuple[int, ...]) -> tuple[Profile, ...]:
        """One profile a bucket: from the bucket before to its own largest batch, for which it is tuned."""
        smallest = (1, *(batch + 1 for batch in batches[:-1]))
        bounds = zip(smallest, batches, batches, strict=True)
        return tuple(self._profile(bundle, bucket) for bucket in bounds)

    def _profile(self, bundle: Bundle, bucket: tuple[int, int, int]) -> Profile:
        sizes = [{"images": images, "beam": self.beam} for images in bucket]
        return {
            tensor.name: tuple(tuple(axes[a] if isinstance(a, str) else a for a in tensor.shape) for axes in sizes)
            for tensor in self.spec(bundle).inputs
            if any(isinstance(axis, str) for axis in tensor.shape)
        }


def targets(options: PlanOptions) -> tuple[Target, ...]:
    """All plans of the options."""
    steps = (Target("step", beam, options.precision) for beam in options.beams)
    return (Target("encoder", 0, options.precision), *steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """The record of a plan.

    onnx_sha256, plan_sha256 : of the graph it was built from, and of the plan itself
    flags : how its building departed from TensorRT's defaults
    """

    graph: str
    beam: int
    precision: Precision
    machine: Machine
    onnx_sha256: str
    plan_sha256: str
    profiles: tuple[Profile, ...]
    flags: tuple[str, ...]
    build_seconds: float

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Smallest and largest batch of each profile."""
        shapes = [next(iter(profile.values())) for profile in self.profiles]
        return tuple((smallest[0], largest[0]) for smallest, _, largest in shapes)


def write_plan(bundle: Bundle, record: PlanRecord, plan: bytes) -> Path:
    """Write a plan and its record, each atomically, the record last: a plan without its own record is refused."""
    path = Target(record.graph, record.beam, record.precision).file(bundle)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, plan)
    write_json(path.with_suffix(".json"), unstructure(replace(record, plan_sha256=hashlib.sha256(plan).hexdigest())))
    return path


def read_plan(bundle: Bundle, target: Target, machine: Machine) -> tuple[PlanRecord, bytes]:
    """A plan that fits the bundle and the machine. Raises BackendError with the reason and the command to build it."""
    path = target.file(bundle)
    try:
        values = json.loads(path.with_suffix(".json").read_bytes())
        record = structure(values, PlanRecord, source=str(path.with_suffix(".json")), error=BackendError)
        plan = path.read_bytes()
    except FileNotFoundError:
        raise BackendError(f"{path} is missing or incomplete: {_advice(bundle, target)}") from None
    except (OSError, ValueError, BackendError) as error:
        raise BackendError(f"{path} cannot be used ({error}): {_advice(bundle, target)}") from error
    if reason := _why_not(bundle, target, record, plan, machine):
        raise BackendError(f"{path} {reason}: {_advice(bundle, target, record)}")
    return record, plan


def beams_built(bundle: Bundle, precision: Precision) -> tuple[int, ...]:
    """The beams for which plans of the step graph lie in the bundle, whether or not they can be used."""
    pattern = Target("step", 0, precision).file(bundle)
    found = pattern.parent.glob(f"{pattern.stem}.beam*.plan")
    return tuple(sorted(int(path.stem.rpartition(".beam")[2]) for path in found))


def _why_not(bundle: Bundle, target: Target, record: PlanRecord, plan: bytes, machine: Machine) -> str | None:
    if (record.graph, record.beam, record.precision) != (target.graph, target.beam, target.precision):
        return f"is recorded as {record.graph}, beam {record.beam}, {record.precision}"
    if replace(record.machine, driver=machine.driver) != machine:
        return f"was built by {record.machine}; this is {machine}"
    if record.onnx_sha256 != onnx_sha256(bundle, target):
        return f"was built from another {target.spec(bundle).file}"
    if record.plan_sha256 != hashlib.sha256(plan).hexdigest():
        return "is damaged, or its record belongs to another plan"
    return None


def onnx_sha256(bundle: Bundle, target: Target) -> str:
    """Of the graph that the target is built from, as the checked manifest says."""
    return bundle.manifest.files[target.spec(bundle).file].sha256


def _advice(bundle: Bundle, target: Target, record: PlanRecord | None = None) -> str:
    """What to do next: build the same profiles, and the beams there are."""
    beams = {*beams_built(bundle, target.precision), *([target.beam] if target.beam else [])}
    options = PlanOptions(beams=tuple(sorted(beams)) or PlanOptions().beams, precision=target.precision)
    if record:
        options = replace(options, batches=tuple(largest for _, largest in record.buckets))
    return f'run "{options.command(bundle.path)}"'


@cache
def collecting_logger(trt: Any) -> Any:
    """The logger of TensorRT that keeps what went wrong in `lines`: one a process, as TensorRT knows no more.

    trt : the module `tensorrt`
    """

    class Log(trt.ILogger):  # type: ignore[misc] # TensorRT has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.lines.append(msg)

    return Log()


def reason(logger: Any) -> str:
    """What such a logger kept since it was last asked, on one line."""
    lines = [logger.lines.pop(0) for _ in range(len(logger.lines))]
    return "; ".join(lines) or "it gave no reason"
