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


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, the commit of this code (None outside a repository), and hardware."""
    commit = None
    if git := shutil.which("git"):
        answer = subprocess.run(  # noqa: S603 - a fixed command line
            [git, "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        commit = answer.stdout.strip() or None
    return {
        "saccade": __version__,
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": processes(),
        "threads": torch.get_num_threads(),
    }
