"""Words that the decoder draws from its own predictions while it is trained. No gradient flows through a drawn word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from training.annotations import Annotations
from training.losses import at_least_float32
from training.model import Decoder


def with_own_words(decoder: Decoder, tokens: Tensor, annotations: Annotations, share: float) -> Tensor:
    """Captions as scheduled sampling feeds them (Bengio et al. 2015, arXiv:1506.03099).

    tokens : int64 (B, K, T), each caption from `<start>` on; not modified
    share : probability of every word but `<start>` that a word of the decoder's own stands in its place
    A word is drawn from the prediction after the words fed before it, of the decoder as it captions: without dropout,
    but for what annotations brought to a width have had, and, of hard attention, with the expected annotation. Draws
    come from torch's global random state.
    """
    own = torch.rand(tokens.shape, device=tokens.device) < share
    fed = [tokens[..., 0]]
    with as_it_captions(decoder), torch.no_grad():
        state = decoder.initial_rows(annotations, tokens.shape[1])
        for time in range(1, tokens.shape[2]):
            logits, _, state = decoder.step(fed[-1], state, annotations)
            fed.append(torch.where(own[..., time], drawn(logits), tokens[..., time]))
    return torch.stack(fed, dim=2)


@torch.no_grad()
def drawn_captions(
    decoder: Decoder,
    annotations: Annotations,
    *,
    rows: int,
    greedy_rows: int,
    start: int,
    end: int,
    max_length: int,
) -> Tensor:
    """Words int64 (B, K, T) of K = `rows` captions per image, T at most `max_length`.

    Each word is drawn from the prediction after the words before it; in the first `greedy_rows` rows of an image it is
    the likeliest one. What follows an `end` is `end` again. Draws come from torch's global random state.
    """
    state = decoder.initial_rows(annotations, rows)
    said = state.hidden.new_full(state.hidden.shape[:2], start, dtype=torch.int64)
    ended = torch.zeros_like(said, dtype=torch.bool)
    words: list[Tensor] = []
    while len(words) < max_length and not ended.all():
        logits, _, state = decoder.step(said, state, annotations)
        said = torch.cat([logits[:, :greedy_rows].argmax(dim=-1), drawn(logits[:, greedy_rows:])], dim=1)
        said = said.masked_fill(ended, end)
        ended = said == end
        words.append(said)
    return torch.stack(words, dim=2)


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
