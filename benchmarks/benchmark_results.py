"""What `saccade benchmark` finds: the values of its JSON file, described in docs/benchmark.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.machine import Machine
from benchmarks.stages import StageTimes
from benchmarks.windows import Ratio, Spread, ratio_of
from saccade.errors import ConfigError, DataError
from saccade.files import write_json
from saccade.structure import structure, unstructure

SCHEMA = "saccade-benchmark/1"

Scenario = Literal["single-stream", "offline", "server"]
Level = Literal["device", "host", "files-warm", "files-cold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds that requests took.

    by_percent_ms : what 0, 1, ... 100 percent of them were done in
    """

    requests: int
    mean_ms: float
    by_percent_ms: tuple[float, ...]

    def percentile(self, percent: int) -> float:
        """Milliseconds that so many percent of the requests were done in."""
        return self.by_percent_ms[percent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests at a rate, for a while.

    rate : requests per second
    seconds : from the first arrival until the last answer
    lost : requests without an answer
    """

    rate: float
    seconds: float
    requests: int
    lost: int
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server with dynamic batches holds.

    p99_bound_ms, wait_ms : asked of it; see `benchmarks.server.ServerOptions`
    highest_rate : that holds the bound; None where a rate was given
    trials : those of the bisection
    held : the load that the row's latency is of
    mean_batch : requests that were answered together
    """

    p99_bound_ms: float
    wait_ms: float
    highest_rate: float | None
    trials: tuple[Load, ...]
    held: Load
    mean_batch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration in one scenario.

    precision : that it ran in
    runs_on : runtime, version, device, precision
    open_s : until both graphs were loaded and built; first_run_s : of the first batch of this size
    images_per_s : over windows, pixels in memory of the host; of a server what it answered, without interval
    words : in a caption on average
    latency : of a batch; of a server from a request's arrival to its answer
    peak_mib : of resident memory, of the process and what this backend added; device_mib : of GPUs, what came into use
    joules_per_image : of the processors; None where the machine does not tell
    levels, bottleneck : with other inputs than pixels of the host, and what had the least rest with files
    """

    scenario: Scenario
    backend: str
    precision: str
    batch: int
    beam: int
    runs_on: str
    open_s: float
    first_run_s: float
    images_per_s: Spread | None
    tokens_per_s: float
    words: float
    latency: Latency
    peak_mib: float
    device_mib: float | None
    joules_per_image: float | None = None
    levels: dict[Level, Spread] = field(default_factory=dict)
    bottleneck: str | None = None
    stages: StageTimes | None = None
    server: Server | None = None
    warnings: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What makes two rows of two benchmarks the same configuration."""
        return self.scenario, self.backend, self.precision, self.batch, self.beam

    @property
    def name(self) -> str:
        """Backend and precision."""
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """A configuration that does not run here."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """All rows of a run.

    fingerprint : of the bundle
    images, images_digest : what was captioned; the digest is of the pixels that the encoder got
    options : what was asked for
    """

    schema: str
    bundle: str
    fingerprint: str
    encoder: str
    images: str
    images_digest: str
    max_length: int
    threads: int
    options: dict[str, Any]
    machine: Machine
    rows: tuple[Row, ...]
    unavailable: tuple[Unavailable, ...]
    warnings: tuple[str, ...]


class Pair(NamedTuple):
    """The same configuration in two benchmarks: how many times the first's rate the second has."""

    one: Row
    other: Row
    ratio: Ratio


def latency_of(seconds: Sequence[float]) -> Latency:
    """Percentiles that were really measured: of few requests, the 99th is the slowest."""
    milliseconds = 1000 * np.asarray(seconds)
    found = np.percentile(milliseconds, np.arange(101), method="higher")
    return Latency(requests=len(seconds), mean_ms=float(milliseconds.mean()), by_percent_ms=tuple(found.tolist()))


def as_json(benchmark: Benchmark) -> dict[str, Any]:
    """Plain values."""
    values: dict[str, Any] = unstructure(benchmark)
    return values


def write(benchmark: Benchmark, path: Path) -> None:
    """Write the JSON file. Raises OSError."""
    write_json(path, as_json(benchmark))


def read(path: Path) -> Benchmark:
    """Read a JSON file of `saccade benchmark`. Raises DataError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): give a file of `saccade benchmark --out`") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise DataError(f"{path} has the schema {schema!r}, expected {SCHEMA!r}: measure again")
    return structure(values, Benchmark, source=str(path), error=DataError)


def pairs_of(one: Benchmark, other: Benchmark, *, force: bool = False) -> list[Pair]:
    """The configurations that both have and that were measured in windows.

    Raises ConfigError where there is none, and, unless forced, where the bundle, the images, the options that decide
    the work, or the hardware differ: the ratio would be of several things at once.
    """
    problems = differing(one, other)
    if problems and not force:
        raise ConfigError(f"not comparable: {'; '.join(problems)}; compare anyway with --force")
    others = {row.key: row for row in other.rows}
    pairs = [
        Pair(row, others[row.key], ratio_of(row.images_per_s, rate))
        for row in one.rows
        if row.key in others and row.images_per_s and (rate := others[row.key].images_per_s)
    ]
    if not pairs:
        raise ConfigError("the two benchmarks have no configuration of single-stream or offline in common")
    return pairs


def differing(one: Benchmark, other: Benchmark) -> list[str]:
    """In words, what makes the rates of two benchmarks those of different things."""
    names = {"fingerprint": "bundle", "images_digest": "images", "max_length": "max_length", "threads": "threads"}
    found = [
        f"{name} {getattr(one, field):.12} and {getattr(other, field):.12}"
        if isinstance(getattr(one, field), str)
        else f"{name} {getattr(one, field)} and {getattr(other, field)}"
        for field, name in names.items()
        if getattr(one, field) != getattr(other, field)
    ]
    if one.machine.hardware != other.machine.hardware:
        found.append(f"hardware {one.machine.hardware} and {other.machine.hardware}")
    return found
