"""An encoder learns which words, and which pairs of words, an image's captions use.

An encoder that starts from scratch learns little from the captioner's loss until the attention finds things, and the
attention finds nothing until the encoder tells things apart. Words without their order break the circle: each place
says how much it looks like each word, and the image has a word if some place does (multiple-instance learning as in
Fang et al. 2015, "From captions to visual concepts and back"). Pairs of near words teach what belongs together ("red",
"star") and what stands next to something ("star", "left"). No boxes are used.

This can come before the training of the captioner, and go on beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.errors import DivergenceError
from saccade.vocabulary import Vocabulary
from training.config import ConceptOptions
from training.data import Progress, Split
from training.distribution import share, total, total_gradients
from training.model import Captioner
from training.optimisation import OptimisationOptions, build_optimiser
from training.precision import arithmetic

Concept = tuple[int, ...]
"""The id of a word, or of two in the order of the sentence."""

_WARMUP_STEPS = 100


class Concepts(nn.Module):
    """The concepts of a training split, and the head that tells which of them an image's captions mention.

    The head adds up the odds of all annotations of an image, of places or of the cells that they are pooled from. It
    belongs to training: a captioner does not have it.
    """

    def __init__(self, annotation_width: int, split: Split, vocabulary: Vocabulary, options: ConceptOptions) -> None:
        super().__init__()
        concepts, self._targets = concept_targets(split, vocabulary, options)
        self.head = nn.Linear(annotation_width, len(concepts))
        nn.init.constant_(self.head.bias, -8.0)  # the odds of some hundred places start near those of a rare word

    def forward(self, values: Tensor) -> Tensor:
        """Logits (B, N) of each concept being mentioned of images with annotations (B, C, D)."""
        logits: Tensor = self.head(values).float().logsumexp(dim=1)
        return logits

    def loss(self, values: Tensor, indices: Tensor) -> Tensor:
        """Cross-entropy with the references, summed over the concepts and averaged over the images.

        values : annotations (B, C, D) of the images of the split with these indices, int64 (B,)
        Of several processes each gets the part of its own images: the parts add up to the average over all.
        """
        targets = self._targets[indices.cpu()].to(values.device)
        images = total(targets.new_tensor(len(targets)))
        return F.binary_cross_entropy_with_logits(self(values), targets, reduction="sum") / images


def concept_targets(split: Split, vocabulary: Vocabulary, options: ConceptOptions) -> tuple[list[Concept], Tensor]:
    """The concepts, sorted, and the share of an image's references that mention each: float32 (images, N)."""
    mentioned = [
        [_mentioned(vocabulary.encode(words), options.pairs_within, vocabulary.unk) for words in references]
        for references in split.captions
    ]
    images = Counter(concept for references in mentioned for concept in set().union(*references))
    concepts = sorted(concept for concept, count in images.items() if count >= options.least_share * len(split))
    columns = {concept: column for column, concept in enumerate(concepts)}
    targets = torch.zeros(len(split), len(concepts))
    for row, references in zip(targets, mentioned, strict=True):
        for said in references:
            row[[columns[concept] for concept in said if concept in columns]] += 1 / len(references)
    return concepts, targets


def _mentioned(caption: Sequence[int], pairs_within: int, unknown: int) -> set[Concept]:
    words = {(word,) for word in caption}
    pairs = {
        (first, second)
        for place, first in enumerate(caption)
        for second in caption[place + 1 : place + 1 + pairs_within]
    }
    return {concept for concept in words | pairs if unknown not in concept}


def pretrain_encoder(
    captioner: Captioner,
    concepts: Concepts,
    split: Split,
    options: ConceptOptions,
    optimisation: OptimisationOptions,
    *,
    progress: Progress = lambda _: None,
) -> None:
    """Fit the captioner's encoder and the head of `concepts` for `options.epochs` epochs of the split.

    Optimiser, batch size, precision, gradient clip and seed are those of `optimisation`. The learning rate falls
    linearly to zero.
    """
    device = captioner.mean.device
    parameters = [*captioner.encoder.parameters(), *concepts.parameters()]
    optimiser = build_optimiser(
        [(captioner.encoder, options.learning_rate), (concepts, options.learning_rate)],
        replace(optimisation, weight_decay=0.0),
    )
    images = optimisation.batch_images
    steps = options.epochs * math.ceil(len(split) / images)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / _WARMUP_STEPS) * (1 - step / steps)
    )
    rng = np.random.default_rng((optimisation.seed, 0))
    done = 0
    for _ in range(options.epochs):
        order = rng.permutation(len(split))
        for start in range(0, len(order), images):
            batch = order[start : start + images]
            chosen = batch[share()]
            with arithmetic(optimisation.precision, device):
                values = captioner.encode(torch.from_numpy(split.images[chosen]).to(device))
                loss = concepts.loss(values, torch.from_numpy(chosen))
            if not torch.isfinite(loss):
                raise DivergenceError(f"pretraining diverged after {done} images: lower concepts.learning_rate")
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            total_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, optimisation.gradient_clip)
            optimiser.step()
            schedule.step()
            done += len(batch)
            progress(done)
