"""Numbers in 16 bits, and weights rounded so that what cancels in float32 still cancels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Half = Literal["fp16", "bf16"]

_AT_A_TIME = 8
"""One by one would be slower, and no better where it was tried: MobileNetV2."""


def bfloat16_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that `bfloat16_bits` made bits of."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(weight: NDArray[np.float32], precision: Half) -> NDArray[np.float32]:
    """A weight (outputs, ...) whose numbers are of a precision, and whose sums over each output are nearly as before.

    Rounded one by one, the errors of an output's weights add up, and inputs that are alike, as most behind a rectifier
    are, show it: what should cancel does not. Here the numbers are rounded some at a time, from the largest to the
    smallest, and the first of them takes over the error of those before.
    """
    nearest = _NEAREST[precision]
    rows = weight.reshape(len(weight), -1)
    order = np.argsort(-np.abs(rows), axis=1, kind="stable")
    found = np.ascontiguousarray(np.take_along_axis(rows, order, axis=1).T)
    error = np.zeros_like(found[0])
    for first in range(0, len(found), _AT_A_TIME):
        wanted = found[first : first + _AT_A_TIME]
        wanted[0] += error
        made = nearest(wanted)
        error = (wanted - made).sum(axis=0)
        wanted[...] = made
    placed = np.empty_like(rows)
    np.put_along_axis(placed, order, found.T, axis=1)
    return placed.reshape(weight.shape)


_NEAREST: dict[Half, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "fp16": lambda values: values.astype(np.float16).astype(np.float32),
    "bf16": lambda values: from_bfloat16_bits(bfloat16_bits(values)),
}
