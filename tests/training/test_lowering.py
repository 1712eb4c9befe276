"""A captioner in 16 bits has weights that keep their sums."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saccade.rounding import Half, rounded
from training.encoders import EncoderOptions
from training.lowering import lowered
from training.model import DecoderOptions, build_captioner


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_a_lowered_captioner_has_rounded_weights_and_the_first_one_its_own(dtype: torch.dtype, precision: Half) -> None:
    torch.manual_seed(0)
    captioner = build_captioner(
        EncoderOptions(name="compact"), DecoderOptions(), words=9, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    ).eval()
    before = {name: values.clone() for name, values in captioner.state_dict().items()}
    low, folded = (lowered(captioner, one, size=32) for one in (dtype, torch.float32))
    torch.testing.assert_close(dict(captioner.state_dict()), before, rtol=0, atol=0)
    checked = 0
    for module, other in zip(low.modules(), folded.modules(), strict=True):
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert isinstance(other, nn.Conv2d | nn.Linear)
            expected = torch.from_numpy(rounded(other.weight.detach().numpy(), precision))
            torch.testing.assert_close(module.weight.detach().float(), expected, rtol=0, atol=0)
            checked += 1
    assert checked > 8
