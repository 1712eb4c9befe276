"""What a benchmark ran on, and what it took of it: versions, hardware, memory, energy. Needs no runtime."""

from __future__ import annotations

import csv
import os
import platform
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from saccade import __version__
from saccade.machine import commit, has_changes, output_of, processor

_PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch", "transformers")
_PROC = Path("/proc")
_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as its driver calls it."""

    name: str
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides figures beside the bundle and the options.

    load : average over the minute before the benchmark; above 0, other work was there
    commit : of this code, None outside a repository; `changed` says whether files differ from it
    versions : of saccade, Python and what computes
    """

    processor: str
    cores: int
    memory_gib: float
    system: str
    gpus: tuple[Gpu, ...]
    load: float
    commit: str | None
    changed: bool
    versions: dict[str, str]

    @property
    def hardware(self) -> str:
        """What has to be the same for figures to be comparable."""
        gpus = "".join(f", {gpu.name} (driver {gpu.driver})" for gpu in self.gpus)
        return f"{self.processor}, {self.cores} cores{gpus}"


def this_machine() -> Machine:
    """What is here now."""
    return Machine(
        processor=f"{processor()} ({platform.machine()})",
        cores=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        gpus=tuple(Gpu(name=name, driver=driver) for name, driver in _nvidia("name,driver_version")),
        load=round(os.getloadavg()[0], 2),
        commit=commit(),
        changed=has_changes(),
        versions=dict(_versions()),
    )


def forget_peak() -> None:
    """Let the peak of resident memory start again at what is resident now, where the system allows it."""
    with suppress(OSError):
        (_PROC / "self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most memory of this process that was resident since the peak was last forgotten."""
    status = _PROC / "self/status"
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(found[1]) / 1024 if found else 0.0


def device_mib() -> float | None:
    """Memory of all GPUs that is taken now, by any process; None without a GPU."""
    taken = [float(row[0]) for row in _nvidia("memory.used")]
    return sum(taken) if taken else None


class MemoryUse:
    """Memory that was taken since it was made: of backends that are opened one after the other, each has its own."""

    def __init__(self, *, bare_mib: float = 0.0) -> None:
        """bare_mib : resident memory of the process without any backend, which counts for each."""
        forget_peak()
        self._resident, self._device = peak_mib() - bare_mib, device_mib()

    def peak_mib(self) -> float:
        """The most that was resident, without what other backends had taken before."""
        return peak_mib() - self._resident

    def device_mib(self) -> float | None:
        """Of all GPUs, by any process; None without a GPU."""
        now = device_mib()
        return None if now is None or self._device is None else now - self._device


class Energy:
    """Joules that the processors took since it was made, as RAPL counts them."""

    def __init__(self, folder: Path = _POWERCAP) -> None:
        # A name with one colon is a whole processor, with two a part of it.
        self._zones = [zone for zone in sorted(folder.glob("*-rapl:*")) if zone.name.count(":") == 1]
        self._before = self._read()

    def joules(self) -> float | None:
        """None where the machine does not tell."""
        now = self._read()
        if not now or len(now) != len(self._before):
            return None
        pairs = zip(now, self._before, self._zones, strict=True)
        return sum((after - before) % _range(zone) for after, before, zone in pairs) / 1e6

    def _read(self) -> list[int]:
        try:
            return [int((zone / "energy_uj").read_text()) for zone in self._zones]
        except OSError:  # for the superuser alone, on most systems
            return []


def _range(zone: Path) -> int:
    """At which the counter starts again."""
    return int((zone / "max_energy_range_uj").read_text()) + 1


def _versions() -> Iterator[tuple[str, str]]:
    yield "saccade", __version__
    yield "python", platform.python_version()
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield package, version(package)


def _nvidia(fields: str) -> list[list[str]]:
    said = output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return list(csv.reader((said or "").splitlines(), skipinitialspace=True))
