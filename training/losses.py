"""What training minimises."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def caption_loss(
    logits: Tensor, targets: Tensor, alphas: Tensor, mask: Tensor, *, doubly_stochastic: float
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per word, and the same with the penalty of doubly stochastic attention (Eq. 14).

    logits (N, V) and targets (N,) : of the N places in `mask`
    alphas : (B, K, T, L); those at padded places count for nothing
    mask : bool (B, K, T)
    Eq. 14 sums over the words of a caption; both terms are divided by the number of words, so that the learning rate
    does not depend on caption length.
    """
    likelihood = F.cross_entropy(logits.float(), targets)
    attended = (alphas.float() * mask.unsqueeze(-1)).sum(dim=2)
    captions = mask.any(dim=2)
    penalty = ((1 - attended) ** 2).sum(dim=-1)[captions].sum() / mask.sum()
    return likelihood, likelihood + doubly_stochastic * penalty
