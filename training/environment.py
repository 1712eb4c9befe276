"""What a run ran on, for the record."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from saccade import __version__
from training.distribution import processes
from training.precision import multiplies_bfloat16


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, the commit of this code (None outside a repository), whether it was changed since, and hardware."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "saccade": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(changes),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "bfloat16_in_hardware": multiplies_bfloat16(device),
        "processes": processes(),
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run(  # noqa: S603 - fixed command lines
        [git, *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def _processor() -> str:
    """As Linux calls it, elsewhere as Python does."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor())} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
