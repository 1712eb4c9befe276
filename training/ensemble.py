"""Several captioners that write one caption: each word is chosen by the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.decoding import initial_rows
from saccade.hypotheses import Hypothesis, StepReport
from saccade.search import SearchOptions, glimpses_of, search
from saccade.vocabulary import Vocabulary
from training.graphs import predict, rows_of, survivors
from training.model import Captioner, Choice, DecoderState


class Ensemble:
    """Captions pixels with captioners in evaluation mode, on one device, that share a vocabulary.

    Their encoders may differ, and so the places they look at: the alphas of a hypothesis are the first captioner's.
    """

    def __init__(self, captioners: Sequence[Captioner], vocabulary: Vocabulary) -> None:
        self._captioners = captioners
        self._vocabulary = vocabulary

    def search(
        self, images: NDArray[Any], options: SearchOptions, *, with_alphas: bool = False
    ) -> list[list[Hypothesis]]:
        """Hypotheses of each image of pixels uint8 (B, S, S, 3), best first."""
        members = [_Member(captioner, images, options) for captioner in self._captioners]
        decoding = _EnsembleDecoding(members, len(images), self._vocabulary, options, with_alphas=with_alphas)
        return search(decoding, self._vocabulary, options)


class _Member:
    """One captioner of an ensemble, in the middle of a search."""

    @torch.inference_mode()
    def __init__(self, captioner: Captioner, images: NDArray[Any], options: SearchOptions) -> None:
        self.device = captioner.mean.device
        self._decoder = captioner.decoder
        self._annotations = captioner.annotate(torch.from_numpy(images).to(self.device))
        self._state = self._decoder.initial_rows(self._annotations, options.beam)
        places = self._annotations.keys.shape[1]
        self._glimpses = glimpses_of(images, options, self._decoder.options.attention, places=places)

    def advance(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs (B, K, V) of the words after `tokens` (B, K), and the alphas (B, K, L)."""
        choice = None
        if self._glimpses:
            given = {name: torch.from_numpy(value).to(self.device) for name, value in self._glimpses.step().items()}
            choice = Choice(**given)
        log_probs, alphas, self._state = predict(self._decoder, tokens, self._state, self._annotations, choice)
        return log_probs, alphas

    def follow(self, parents: Tensor) -> None:
        """Go on with the rows that survived."""
        self._state = DecoderState(*(rows_of(part, parents) for part in self._state))


class _EnsembleDecoding:
    """A `saccade.decoding.Decoding`: what the step graph does, with one selection after several predictions."""

    def __init__(
        self,
        members: Sequence[_Member],
        images: int,
        vocabulary: Vocabulary,
        options: SearchOptions,
        *,
        with_alphas: bool,
    ) -> None:
        self.images = images
        self._members = members
        self._end = vocabulary.end
        self._with_alphas = with_alphas
        self._device = members[0].device
        rows = initial_rows(images, beam=options.beam, start=vocabulary.start)
        self._tokens, self._scores, self._slots = (
            torch.from_numpy(rows[name]).to(self._device) for name in ("tokens", "scores", "slots")
        )

    @torch.inference_mode()
    def advance(self, word_bias: NDArray[np.float32]) -> StepReport:
        """Run one step; only the small arrays come to the host."""
        log_probs, alphas = zip(*(member.advance(self._tokens) for member in self._members), strict=True)
        mean = torch.stack(log_probs).logsumexp(dim=0) - math.log(len(log_probs))  # of the probabilities, as log-probs
        live = self._scores.masked_fill(self._tokens == self._end, -torch.inf)
        self._tokens, parents, self._scores, self._slots = survivors(
            live, mean + torch.from_numpy(word_bias).to(self._device), self._slots, end=self._end
        )
        for member in self._members:
            member.follow(parents)
        return StepReport(
            tokens=self._tokens.cpu().numpy(),
            parents=parents.cpu().numpy(),
            scores=self._scores.cpu().numpy(),
            alphas=alphas[0].float().cpu().numpy() if self._with_alphas else None,
        )
