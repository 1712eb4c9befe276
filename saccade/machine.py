"""The processor, and the state of this code, as far as the system tells. Needs no runtime."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

_INFORMATION = Path("/proc/cpuinfo")
_EXACT_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")


def processor() -> str:
    """Its name, as Linux has it, elsewhere as Python does."""
    return _cpu_information("model name") or platform.processor() or "unknown processor"


def saturates_int8() -> bool:
    """Whether products of 8-bit integers are summed in 16 bits here, where they overflow: x86 without VNNI.

    The runtimes use those instructions all the same, and their results are wrong without a word. False where the flags
    cannot be read.
    """
    flags = _cpu_information("flags").split()
    return platform.machine() in ("x86_64", "AMD64") and bool(flags) and not any(one in flags for one in _EXACT_INT8)


def commit() -> str | None:
    """The commit of this code; None outside a repository."""
    return _git("rev-parse", "HEAD")


def has_changes() -> bool:
    """Whether files differ from that commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def output_of(program: str, *arguments: str) -> str | None:
    """What a program writes; None where it is not there, fails or has nothing to say."""
    found = shutil.which(program)
    if found is None:
        return None
    done = subprocess.run(  # noqa: S603 - fixed command lines
        [found, *arguments], capture_output=True, text=True, check=False
    )
    return (done.stdout.strip() or None) if done.returncode == 0 else None


def _git(*arguments: str) -> str | None:
    return output_of("git", "-C", str(Path(__file__).parent), *arguments)


def _cpu_information(field: str) -> str:
    """Of the first processor; empty where the system does not tell."""
    lines = _INFORMATION.read_text().splitlines() if _INFORMATION.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
