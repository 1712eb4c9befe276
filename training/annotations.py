"""What a decoder looks at: annotations of the encoder's cells, and the places that attention chooses from."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Annotations(NamedTuple):
    """What the decoder looks at, computed once per image.

    values : (B, C, D), of the encoder's cells
    keys : (B, L, A), the attention's projections of the places that it chooses from
    Places are cells, L = C, or a finer grid that cells are pooled to, L > C. Annotations of such places are means of
    cells, and are never computed: whatever is linear in them is computed of the cells.
    """

    values: Tensor
    keys: Tensor

    def expected(self, alphas: Tensor) -> Tensor:
        """Means of the places' annotations, (B, K, D), weighted by alphas (B, K, L)."""
        pooling = self._pooling(alphas)
        weights = alphas if pooling is None else alphas @ pooling
        return weights.to(self.values.dtype) @ self.values

    def at(self, places: Tensor) -> Tensor:
        """Annotations (B, K, D) of places int64 (B, K)."""
        pooling = self._pooling(self.values)
        if pooling is None:
            return self.values.gather(1, places[..., None].expand(-1, -1, self.values.shape[-1]))
        return pooling[places] @ self.values

    def mean(self) -> Tensor:
        """The mean annotation (B, D) of all places."""
        pooling = self._pooling(self.values)
        if pooling is None:
            return self.values.mean(dim=1)
        return (pooling.mean(dim=0, keepdim=True) @ self.values).squeeze(1)

    def _pooling(self, like: Tensor) -> Tensor | None:
        """Shares (L, C) of the cells in each place; None where they are the same."""
        cells, places = self.values.shape[1], self.keys.shape[1]
        return pooling_weights(cells, places, like) if places > cells else None


def pooled(values: Tensor, places: int) -> Tensor:
    """What cells (B, C, D) are on a finer grid, (B, L, D); the cells themselves where places are no more than they."""
    cells = values.shape[1]
    return pooling_weights(cells, places, values) @ values if places > cells else values


def pooling_weights(cells: int, places: int, like: Tensor) -> Tensor:
    """Adaptive average pooling from one square grid to another as a linear map (places, cells).

    like : a tensor whose type and device it gets
    One matrix product is what runtimes compute best: exported, PyTorch's own becomes gathers of all channels. Outside
    of exports it is made once, where it is needed: nothing may come from the host while CUDA graphs are captured.
    """
    make = _pooling_weights if torch.compiler.is_exporting() else _kept_pooling_weights
    return make(math.isqrt(cells), math.isqrt(places), like.dtype, like.device)


def _pooling_weights(side: int, grid: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    places = torch.arange(grid, device=device)[:, None]
    cells = torch.arange(side, device=device)
    inside = (cells >= places * side // grid) & (cells * grid < (places + 1) * side)
    along = inside / inside.sum(dim=1, keepdim=True)
    return torch.kron(along, along).to(dtype)


@cache
def _kept_pooling_weights(side: int, grid: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # a tensor of that mode could never be a part of training
        return _pooling_weights(side, grid, dtype, device)
