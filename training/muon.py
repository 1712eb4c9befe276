"""The optimiser Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

A matrix moves as far along every direction in which its gradients have pointed, not mostly along the few largest: its
update is their running mean with all singular values set to about one. A filter counts as the matrix that multiplies
a patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

_MOMENTUM = 0.95

_ITERATIONS = 5

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic of Jordan et al.: five times applied, it brings singular values of 0.01 to 1 near one."""

_SCALE = 0.2
"""Root mean square of an update of AdamW, as Liu et al. (2025, "Muon is scalable for LLM training") found it."""


class Muon(AdamW):
    """Muon for the parameter groups whose "orthogonal" is True, AdamW for the others; one learning rate suits both."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, fused=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)  # AdamW's own misses its count of steps where there is a momentum instead

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move what has a gradient. The gradients of orthogonal groups are gone afterwards."""
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])
                    parameter.grad = None  # AdamW passes over it
        return super().step(closure)

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        update = orthogonalised(gradient.lerp(momentum, _MOMENTUM).flatten(1))  # Nesterov's look ahead
        if decay:
            parameter.mul_(1 - rate * decay)
        parameter.add_(update.view(parameter.shape), alpha=-rate * _SCALE * math.sqrt(max(update.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with nearly the same singular vectors and all singular values about 1; one of zeros stays so.

    Computed by an iteration of Newton and Schulz. Its steps are polynomials of the matrix times its transpose, which
    commute: they are multiplied among themselves, in the smaller dimension, and with the matrix once.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    gram = wide @ wide.T
    product = factor = _factor(gram)
    for _ in range(_ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    found: Tensor = product @ wide
    return (found if len(matrix) <= matrix.shape[1] else found.T).contiguous()


def _factor(gram: Tensor) -> Tensor:
    """By which a step of the iteration multiplies a matrix whose product with its transpose is `gram`."""
    linear, cubic, quintic = _COEFFICIENTS
    factor = torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic)
    factor.diagonal().add_(linear)
    return factor
