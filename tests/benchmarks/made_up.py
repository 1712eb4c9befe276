"""What tests of results have instead of a machine and of what was measured on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.benchmark_results import SCHEMA, Benchmark, Row, Unavailable, latency_of
from benchmarks.machine import Machine
from benchmarks.windows import spread_of

MACHINE = Machine(
    processor="A processor",
    cores=2,
    memory_gib=16.0,
    system="Linux",
    gpus=(),
    load=0.1,
    commit="0123456789abcdef",
    changed=False,
    versions={"saccade": "1"},
)


def row(**changes: Any) -> Row:
    """A row with some figures."""
    known = Row(
        scenario="offline",
        backend="ort",
        precision="fp32",
        batch=8,
        beam=3,
        runs_on="ONNX Runtime",
        open_s=0.5,
        first_run_s=0.25,
        images_per_s=spread_of([99.0, 100.0, 101.0, 100.0]),
        tokens_per_s=1234.0,
        words=12.34,
        latency=latency_of([0.08, 0.09]),
        peak_mib=321.0,
        device_mib=None,
    )
    return replace(known, **changes)


def benchmark(*rows: Row, **changes: Any) -> Benchmark:
    """A benchmark of these rows."""
    known = Benchmark(
        schema=SCHEMA,
        bundle="a/bundle",
        fingerprint="f" * 64,
        encoder="compact",
        images="24 images of somewhere",
        images_digest="d" * 64,
        max_length=40,
        threads=0,
        options={"batches": [8]},
        machine=MACHINE,
        rows=rows,
        unavailable=(Unavailable(name="trt fp16", reason="tensorrt is not installed"),),
        warnings=("the load was <9> on 2 cores",),
    )
    return replace(known, **changes)
