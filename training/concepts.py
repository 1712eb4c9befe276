"""Pretraining of an encoder on which words an image's captions use, in no order.

An encoder that starts from scratch learns little from the captioner's loss until the attention finds things, and the
attention finds nothing until the encoder tells things apart. Words without their order break the circle: each place
says how much it looks like each word, and the image has a word if some place does (multiple-instance learning as in
Fang et al. 2015, "From captions to visual concepts and back"). No boxes are used. The head is thrown away afterwards.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.errors import DivergenceError
from saccade.vocabulary import Vocabulary
from training.config import ConceptOptions, OptimisationOptions
from training.data import Progress, Split
from training.model import Captioner

_WARMUP_STEPS = 100


class ConceptHead(nn.Module):
    """Word logits (B, V) of annotations (B, L, D): the odds of the places add up."""

    def __init__(self, annotation_width: int, words: int) -> None:
        super().__init__()
        self.words = nn.Linear(annotation_width, words)
        nn.init.constant_(self.words.bias, -8.0)  # the odds of some hundred places start near those of a rare word

    def forward(self, values: Tensor) -> Tensor:
        """Logits of each word being said of the image."""
        logits: Tensor = self.words(values).float().logsumexp(dim=1)
        return logits


def concept_targets(split: Split, vocabulary: Vocabulary) -> Tensor:
    """Share of an image's references that use each word: float32 (N, V), zero for the special tokens."""
    targets = torch.zeros(len(split), len(vocabulary))
    for row, references in zip(targets, split.captions, strict=True):
        for words in references:
            row[sorted(set(vocabulary.encode(words)))] += 1 / len(references)
    targets[:, [vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.unk]] = 0
    return targets


def pretrain_encoder(
    captioner: Captioner,
    split: Split,
    vocabulary: Vocabulary,
    options: ConceptOptions,
    optimisation: OptimisationOptions,
    *,
    progress: Progress = lambda _: None,
) -> None:
    """Fit the captioner's encoder and a passing `ConceptHead` for `options.epochs` epochs.

    Batch size, precision, gradient clip and seed are those of `optimisation`. The learning rate falls linearly to zero.
    """
    device = captioner.mean.device
    head = ConceptHead(captioner.encoder.width, len(vocabulary)).to(device)
    parameters = [*captioner.encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    targets = concept_targets(split, vocabulary)
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
            chosen = order[start : start + images]
            with torch.autocast(device.type, torch.bfloat16, enabled=optimisation.precision == "bfloat16"):
                values = captioner.annotate(torch.from_numpy(split.pixels[chosen]).to(device)).values
                logits = head(values)
            loss = (
                F.binary_cross_entropy_with_logits(logits, targets[chosen].to(device), reduction="none").sum(1).mean()
            )
            if not torch.isfinite(loss):
                raise DivergenceError(f"pretraining diverged after {done} images: lower concepts.learning_rate")
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, optimisation.gradient_clip)
            optimiser.step()
            schedule.step()
            done += len(chosen)
            progress(done)
