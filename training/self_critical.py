"""Self-critical sequence training (Rennie et al. 2017, arXiv:1612.00563): a trained captioner goes on by CIDEr-D.

The decoder draws captions y^n of an image from its own predictions. Training maximises the expected reward

    J = sum_y p(y | a) r(y),   whose gradient is estimated by   1/N sum_n (r(y^n) - b^n) d log p(y^n | a)

with a baseline b^n that does not depend on y^n: the reward of greedy search, or the mean reward of the other captions
drawn for the image (Luo 2020, arXiv:2003.09971). The decoder is trained as it captions, without dropout, and the
encoder stays as it is.

CIDEr-D likes a caption that says much in the words of the references, whether it is true or not. Of a generated scene
it is known what is true, and that can be rewarded too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.vocabulary import Vocabulary
from training.annotations import Annotations
from training.distribution import total
from training.losses import caption_log_probs
from training.metrics import Caption, CiderD
from training.model import Decoder
from training.sampling import as_it_captions, drawn_captions
from training.scene_objects import SceneObject
from training.scene_scores import score_caption


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCriticalOptions:
    """Training by rewards instead of likelihood, after it.

    epochs : by rewards, after the best of the epochs by likelihood
    learning_rate : of the decoder, the largest
    start : run or checkpoint of the same model whose weights to begin with; such a run has no epochs by likelihood
    samples : captions drawn per image and step
    baseline : what a caption's reward is compared with: the mean reward of the image's "others", or that of "greedy"
        search, which takes one more caption per image
    objects : weight, beside CIDEr-D, of the objects of a generated scene: each that a caption names counts 1/2 if it is
        there and not named before, and -1/2 if not; and 1 less if it stands beside the sentence, in no relation
    relations : weight of the relations a caption states: each counts 1 - confidence if it holds and -confidence if not
    confidence : how likely a relation must be to hold for stating it to be worth it
    """

    epochs: int
    learning_rate: float
    start: str = ""
    samples: int = 5
    baseline: Literal["others", "greedy"] = "others"
    objects: float = 0.0
    relations: float = 0.0
    confidence: float = 0.75

    def __post_init__(self) -> None:
        least = 2 if self.baseline == "others" else 1
        problems = []
        if self.samples < least:
            problems.append(f'samples must be at least {least} with baseline = "{self.baseline}", got {self.samples}')
        if self.epochs < 1:
            problems.append(f"epochs must be at least 1, got {self.epochs}")
        if not self.learning_rate > 0:
            problems.append(f"learning_rate must be above 0, got {self.learning_rate}")
        if not (self.objects >= 0 and self.relations >= 0):
            problems.append(f"objects and relations must be 0 or more, got {self.objects} and {self.relations}")
        if not 0 <= self.confidence <= 1:
            problems.append(f"confidence must be in [0, 1], got {self.confidence}")
        if problems:
            raise ConfigError("invalid self_critical: " + "; ".join(problems))

    @property
    def asks_for_truth(self) -> bool:
        """Whether what captions say of a scene is rewarded."""
        return self.objects > 0 or self.relations > 0


class SelfCritical:
    """Draws captions and rewards them with their CIDEr-D against the references of the training split, and as asked.

    `<end>` counts as a word, in references and captions: without it fragments such as "a man on a" are well rewarded
    (Rennie et al. 2017). A caption that has not ended by `max_length` words lacks it.
    """

    def __init__(
        self,
        options: SelfCriticalOptions,
        references: Sequence[Sequence[Caption]],
        vocabulary: Vocabulary,
        *,
        max_length: int,
        objects: Sequence[Sequence[SceneObject]] = (),
    ) -> None:
        """Objects : per image what stands in the scene, where the truth is rewarded."""
        self._options = options
        self._objects = objects
        self._vocabulary = vocabulary
        self._max_length = max_length
        end = vocabulary.words[vocabulary.end]
        ended = [[(*reference, end) for reference in image] for image in references]
        self._metric = CiderD(ended, unknown=vocabulary.words[vocabulary.unk])

    def losses(self, decoder: Decoder, annotations: Annotations, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The mean reward of captions drawn now, and the loss whose gradient is minus the estimate of dJ.

        indices : int64 (B,), the images' places in the references
        Of several processes each gets its part of both means: the parts add up.
        """
        greedy = self._options.baseline == "greedy"
        with as_it_captions(decoder):
            words = drawn_captions(
                decoder,
                annotations,
                rows=self._options.samples + greedy,
                greedy_rows=int(greedy),
                start=self._vocabulary.start,
                end=self._vocabulary.end,
                max_length=self._max_length,
            )
            rewards = self._rewards(words, indices)
            if greedy:
                words, baseline, rewards = words[:, 1:], rewards[:, :1], rewards[:, 1:]
            else:
                baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
            log_probs = self._log_probs(decoder, annotations, words)
        captions = total(rewards.new_tensor(rewards.numel()))
        return rewards.sum() / captions, -((rewards - baseline) * log_probs).sum() / captions

    def _rewards(self, words: Tensor, indices: Tensor) -> Tensor:
        """(B, K), of words (B, K, T)."""
        rows = words.flatten(0, 1).cpu()
        captions = [self._vocabulary.decode(row[spoken]) for row, spoken in zip(rows, self._spoken(rows), strict=True)]
        images = indices.repeat_interleave(words.shape[1]).tolist()
        rewards = self._metric.score(captions, images=images).per_image
        if self._options.asks_for_truth:
            rewards = rewards + np.array(
                [self._truth(said, self._objects[image]) for said, image in zip(captions, images, strict=True)]
            )
        return torch.from_numpy(rewards).to(words.device, torch.float32).view(words.shape[:2])

    def _truth(self, said: Caption, objects: Sequence[SceneObject]) -> float:
        counts, options = score_caption(said, objects), self._options
        named = counts.objects_correct - counts.objects_predicted / 2 - counts.objects_untied
        stated = len(counts.relations_correct) - options.confidence * len(counts.relations_stated)
        return options.objects * named + options.relations * stated

    def _log_probs(self, decoder: Decoder, annotations: Annotations, words: Tensor) -> Tensor:
        """Of every caption log p(y | a), (B, K)."""
        order = self._spoken(words).sum(dim=-1).argsort(dim=-1, descending=True)  # as teacher forcing likes it
        words = words.gather(1, order.unsqueeze(-1).expand_as(words))
        start = torch.full_like(words[..., :1], self._vocabulary.start)
        spoken = self._spoken(words)
        forced = decoder.teacher_forced(torch.cat([start, words[..., :-1]], dim=-1), spoken, annotations)
        log_probs = caption_log_probs(forced.logits, words[spoken], spoken)
        return torch.zeros_like(log_probs).scatter(1, order, log_probs)

    def _spoken(self, words: Tensor) -> Tensor:
        """Where words (..., T) belong to a caption: up to its first `<end>`, that included."""
        return (words == self._vocabulary.end).cumsum(dim=-1) <= 1
