"""Weights in 16 bits, rounded so that what cancels in float32 still cancels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.encoders import EncoderOptions
from training.lowering import lowered, rounded
from training.model import DecoderOptions, build_captioner

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def weights() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 5, 3, 3)


@DTYPES
def test_weights_become_numbers_of_the_precision_near_those_of_before(dtype: torch.dtype) -> None:
    before = weights()
    after = rounded(before, dtype)
    torch.testing.assert_close(after.to(dtype).float(), after, rtol=0, atol=0)
    smallest = torch.finfo(dtype).eps
    assert ((after - before).abs() <= 1.1 * smallest * before.abs().amax()).all()
    assert (after - before).norm() <= 2 * (before.to(dtype).float() - before).norm()


@DTYPES
def test_sums_over_each_output_stay(dtype: torch.dtype) -> None:
    before = weights()
    error = (rounded(before, dtype) - before).flatten(1).sum(1).abs()
    nearest = (before.to(dtype).float() - before).flatten(1).sum(1).abs()
    assert error.max() < 0.05 * nearest.mean()


def test_float32_stays_as_it_is() -> None:
    torch.testing.assert_close(rounded(weights(), torch.float32), weights(), rtol=0, atol=0)


@DTYPES
def test_a_lowered_captioner_has_such_weights_and_the_first_one_its_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    captioner = build_captioner(
        EncoderOptions(name="compact"), DecoderOptions(), words=9, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    ).eval()
    before = {name: values.clone() for name, values in captioner.state_dict().items()}
    low = lowered(captioner, dtype, size=32)
    folded = lowered(captioner, torch.float32, size=32)
    torch.testing.assert_close(dict(captioner.state_dict()), before, rtol=0, atol=0)
    checked = 0
    for (name, module), (_, other) in zip(low.named_modules(), folded.named_modules(), strict=True):
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert isinstance(other, nn.Conv2d | nn.Linear)
            expected = rounded(other.weight.data, dtype).to(dtype)
            torch.testing.assert_close(module.weight.data, expected, rtol=0, atol=0, msg=name)
            checked += 1
    assert checked > 8
