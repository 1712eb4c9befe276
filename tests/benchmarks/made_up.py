"""What tests of results have instead of a machine."""

from __future__ import annotations

from benchmarks.machine import Machine

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
