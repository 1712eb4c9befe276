"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.distribution import total


def doubly_stochastic_penalty(alphas: Tensor, mask: Tensor) -> Tensor:
    """sum_i (1 - sum_t alpha_ti)^2 of every caption, per word (Eq. 14): every place is to be looked at once.

    alphas : (B, K, T, L); those at padded places count for nothing
    mask : bool (B, K, T)
    Eq. 14 sums over the words of a caption, as its likelihood does. Both are divided by the number of words, so that
    the learning rate does not depend on caption length (`per_word`).
    """
    attended = (at_least_float32(alphas) * mask.unsqueeze(-1)).sum(dim=2)
    captions = mask.any(dim=2)
    return per_word(((1 - attended) ** 2).sum(dim=-1)[captions].sum(), mask)


def per_word(summed: Tensor, mask: Tensor) -> Tensor:
    """A sum over the words of `mask`, divided by the number of words in the whole batch.

    Of several processes each has its own sum and mask, and gets its part of the mean: the parts add up to it.
    """
    return summed / total(mask.sum())


def caption_log_probs(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Log-probability (B, K) of every caption: the sum over its words.

    logits : (N, V) and targets : int64 (N,), of the N places of mask (B, K, T)
    """
    words = -F.cross_entropy(at_least_float32(logits), targets, reduction="none")
    return words.new_zeros(mask.shape).masked_scatter(mask, words).sum(dim=-1)


def at_least_float32(values: Tensor) -> Tensor:
    """Losses are summed in float32 whatever the precision of the model, and in float64 where that is asked for."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
