"""Weights in 16 bits keep the sums over each output, and stay near what they were."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from saccade.rounding import Half, bfloat16_bits, from_bfloat16_bits, rounded

WEIGHT = np.random.default_rng(0).standard_normal((7, 5, 3, 3)).astype(np.float32)
EPSILON: dict[Half, float] = {"fp16": 2.0**-10, "bf16": 2.0**-7}


def nearest(values: NDArray[np.float32], precision: Half) -> NDArray[np.float32]:
    if precision == "bf16":
        return from_bfloat16_bits(bfloat16_bits(values))
    return values.astype(np.float16).astype(np.float32)


def test_bfloat16_is_the_upper_half_of_a_number_rounded_to_nearest_even() -> None:
    values = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -3, np.inf], np.float32)
    assert from_bfloat16_bits(bfloat16_bits(values)).tolist() == [1, 1, 1 + 2**-6, -3, np.inf]


@pytest.mark.parametrize("precision", EPSILON)
def test_weights_become_numbers_of_the_precision_near_those_of_before(precision: Half) -> None:
    found = rounded(WEIGHT, precision)
    np.testing.assert_array_equal(nearest(found, precision), found)
    assert found.shape == WEIGHT.shape
    assert (np.abs(found - WEIGHT) <= EPSILON[precision] * np.abs(WEIGHT).max()).all()
    error, usual = (np.linalg.norm(one - WEIGHT) for one in (found, nearest(WEIGHT, precision)))
    assert error < 2 * usual


@pytest.mark.parametrize("precision", EPSILON)
def test_sums_over_each_output_stay(precision: Half) -> None:
    """Rounded one by one, they are off by some ten times as much and more."""
    error, usual = (
        np.abs((one - WEIGHT).astype(np.float64).sum(axis=(1, 2, 3)))
        for one in (rounded(WEIGHT, precision), nearest(WEIGHT, precision))
    )
    assert error.max() < 0.1 * usual.mean()


def test_an_output_of_one_weight_is_rounded_to_nearest() -> None:
    weight = WEIGHT.reshape(-1, 1)
    np.testing.assert_array_equal(rounded(weight, "bf16"), nearest(weight, "bf16"))
