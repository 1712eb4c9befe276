"""Steps of decoders with and without fused attention, compared: a program, for Triton's interpreter."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from training.annotations import Annotations
from training.encoders import EncoderOptions
from training.fused_attention import fuse_attention
from training.model import Captioner, DecoderOptions, build_captioner

WIDTH = 20


def captioner(**options: Any) -> Captioner:
    """Random, but the same for the same options."""
    torch.manual_seed(0)
    return build_captioner(
        EncoderOptions(name="compact"),
        DecoderOptions(attention_width=WIDTH, hidden_width=24, embedding_width=12, **options),
        words=9,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    ).eval()


@torch.inference_mode()
def compare(device: str, places: int, **options: Any) -> None:
    """The second step of 5 rows for 3 images: queries are part of a wider array, widths and places fill no block."""
    model, fused = (captioner(**options).to(device) for _ in range(2))
    fuse_attention(fused)
    torch.testing.assert_close(dict(fused.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    width = model.decoder.annotation_width
    annotations = Annotations(*(torch.randn(3, places, size).to(device) for size in (width, WIDTH)))
    tokens = torch.randint(0, 9, (3, 5)).to(device)
    state = model.decoder.step(tokens, model.decoder.initial_rows(annotations, 5), annotations)[2]
    expected = model.decoder.step(tokens, state, annotations)
    found = fused.decoder.step(tokens, state, annotations)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-5)


def check(device: str) -> int:
    """How many cases were compared. Raises AssertionError where one differs."""
    cases = [*product(("tanh", "relu"), ("hidden", "hidden+word"), (1, 16, 49))]
    for nonlinearity, query, places in cases:
        compare(device, places, nonlinearity=nonlinearity, query=query)
    for attention in ("hard", "none"):
        compare(device, 49 if attention == "hard" else 1, attention=attention)
    return len(cases) + 2


if __name__ == "__main__":
    print(f"{check('cpu')} cases")  # noqa: T201
