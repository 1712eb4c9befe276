"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def doubly_stochastic_penalty(alphas: Tensor, mask: Tensor) -> Tensor:
    """sum_i (1 - sum_t alpha_ti)^2 of every caption, per word (Eq. 14): every place is to be looked at once.

    alphas : (B, K, T, L); those at padded places count for nothing
    mask : bool (B, K, T)
    Eq. 14 sums over the words of a caption, as its likelihood does. Both are divided by the number of words, so that
    the learning rate does not depend on caption length.
    """
    attended = (at_least_float32(alphas) * mask.unsqueeze(-1)).sum(dim=2)
    captions = mask.any(dim=2)
    return ((1 - attended) ** 2).sum(dim=-1)[captions].sum() / mask.sum()


def caption_log_probs(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Log-probability (B, K) of every caption: the sum over its words.

    logits : (N, V) and targets : int64 (N,), of the N places of mask (B, K, T)
    """
    words = -F.cross_entropy(at_least_float32(logits), targets, reduction="none")
    return words.new_zeros(mask.shape).masked_scatter(mask, words).sum(dim=-1)


def at_least_float32(values: Tensor) -> Tensor:
    """Losses are summed in float32 whatever the precision of the model, and in float64 where that is asked for."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
