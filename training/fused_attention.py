"""The energies of attention in one kernel, written in Triton.

Eagerly, keys and queries are added, rectified and multiplied by the weights in three passes over (B, K, L, A) numbers.
Here a program reads the keys of some places once, for all rows of the beam, and writes (B, K, L) numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from training.model import Attention, Captioner

_PLACES = 16
"""Of a program."""


class FusedAttention(Attention):
    """An `Attention` for captioning alone, on a GPU."""

    def energies(self, query: Tensor, keys: Tensor) -> Tensor:
        """Energies float32 (B, K, L)."""
        images, rows, width = query.shape
        places = keys.shape[1]
        energies = torch.empty(images, rows, places, dtype=torch.float32, device=keys.device)
        grid = (images, triton.cdiv(places, _PLACES))
        _energies[grid](
            *(keys.contiguous(), query, self.energy.weight, energies),
            *(query.stride(0), query.stride(1), places, rows, width),
            PLACES=_PLACES,
            WIDTH=triton.next_power_of_2(width),
            IS_TANH=self.is_tanh,
        )
        return energies


def fuse_attention(captioner: Captioner) -> None:
    """Give the captioner's decoder a `FusedAttention` of the same weights."""
    decoder = captioner.decoder
    weights = decoder.attention.state_dict()
    fused = FusedAttention(decoder.annotation_width, decoder.options)
    fused.to(captioner.mean.device, decoder.embedding.weight.dtype).load_state_dict(weights)
    decoder.attention = fused.eval()


@triton.jit  # type: ignore[untyped-decorator]
def _energies(  # type: ignore[no-untyped-def]  # Triton evaluates annotations, but in no scope that has `Any`
    keys,
    query,
    weight,
    energies,
    query_image,
    query_row,
    places,
    rows,
    width,
    PLACES: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    IS_TANH: tl.constexpr,  # noqa: N803
):
    image = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    channel = tl.arange(0, WIDTH)
    is_place, is_channel = place < places, channel < width
    offsets = (image * places + place[:, None]) * width + channel[None, :]
    key = tl.load(keys + offsets, mask=is_place[:, None] & is_channel[None, :], other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    for row in range(rows):
        asked = tl.load(query + image * query_image + row * query_row + channel, mask=is_channel, other=0.0)
        seen = key + asked.to(tl.float32)[None, :]
        seen = 2 * tl.sigmoid(2 * seen) - 1 if IS_TANH else tl.maximum(seen, 0.0)
        found = tl.sum(seen * factor[None, :], axis=1)
        tl.store(energies + (image * rows + row) * places + place, found, mask=is_place)
