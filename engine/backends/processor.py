"""What this processor can do, as far as the operating system tells."""

from __future__ import annotations

import platform
from pathlib import Path

_FLAGS = Path("/proc/cpuinfo")
_EXACT_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")


def saturates_int8() -> bool:
    """Whether products of 8-bit integers are summed in 16 bits here, where they overflow: x86 without VNNI.

    The runtimes use those instructions all the same, and their results are wrong without a word. False where the flags
    cannot be read.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        flags = next(line for line in _FLAGS.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False
    return not any(flag in flags for flag in _EXACT_INT8)
