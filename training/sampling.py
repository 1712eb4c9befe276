"""Words that the decoder draws from its own predictions while it is trained. No gradient flows through a drawn word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from training.losses import at_least_float32
from training.model import Annotations, Decoder


def with_own_words(decoder: Decoder, tokens: Tensor, annotations: Annotations, share: float) -> Tensor:
    """Captions as scheduled sampling feeds them (Bengio et al. 2015, arXiv:1506.03099).

    tokens : int64 (B, K, T), each caption from `<start>` on; not modified
    share : probability of every word but `<start>` that a word of the decoder's own stands in its place
    A word is drawn from the prediction after the words fed before it, of the decoder as it captions: without dropout
    and, of hard attention, with the expected annotation. Draws come from torch's global random state.
    """
    own = torch.rand(tokens.shape, device=tokens.device) < share
    fed = [tokens[..., 0]]
    with as_it_captions(decoder), torch.no_grad():
        state = decoder.initial_rows(annotations.values, tokens.shape[1])
        for time in range(1, tokens.shape[2]):
            logits, _, state = decoder.step(fed[-1], state, annotations)
            fed.append(torch.where(own[..., time], drawn(logits), tokens[..., time]))
    return torch.stack(fed, dim=2)


def drawn(logits: Tensor) -> Tensor:
    """A word for each of logits (..., V), with its probability: the Gumbel-max trick."""
    logits = at_least_float32(logits)
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(dim=-1)


@contextmanager
def as_it_captions(decoder: Decoder) -> Iterator[None]:
    """The decoder without dropout inside, as it was afterwards."""
    was_training = decoder.training
    decoder.eval()
    try:
        yield
    finally:
        decoder.train(was_training)
