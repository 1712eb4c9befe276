"""What a run ran on, for the record."""

from __future__ import annotations

import platform
from typing import Any

import torch

from saccade import __version__
from saccade.machine import commit, has_changes, processor
from training.distribution import processes
from training.precision import multiplies_bfloat16


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, the commit of this code (None outside a repository), whether it was changed since, and hardware."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "saccade": __version__,
        "commit": commit(),
        "uncommitted_changes": has_changes(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor()} ({platform.machine()}, {capability})",
        "bfloat16_in_hardware": multiplies_bfloat16(device),
        "processes": processes(),
        "threads": torch.get_num_threads(),
    }
