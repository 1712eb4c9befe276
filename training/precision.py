"""In which numbers the arithmetic of a training runs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""`auto` is bfloat16 where the device multiplies it in hardware, and float32 elsewhere."""


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A context in which products and convolutions run in this precision; weights and losses stay float32."""
    bfloat16 = precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; one without emulates it, on a CPU many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
