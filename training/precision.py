"""In which numbers the arithmetic of a training runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""`auto` is bfloat16 where the device multiplies it in hardware, and float32 elsewhere."""

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions of x86 processors and, the last one, of ARM's, as PyTorch names them."""


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A context in which products and convolutions run in this precision; weights and losses stay float32."""
    bfloat16 = precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device is known to have instructions for bfloat16; one without emulates it, a CPU very slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    flags: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions do not tell
    return any(flags.get(name, False) for name in _BFLOAT16)
