"""Scores of decoded captions: never teacher-forced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saccade.errors import AttentionError
from saccade.hypotheses import Hypothesis
from saccade.search import SearchOptions
from saccade.vocabulary import Vocabulary
from training.data import Progress, Split
from training.decoding import TorchDecoder
from training.metrics import caption_scores
from training.model import Captioner
from training.scene_scores import Described, scene_scores

LEAST_ALPHA_VARIATION = 0.01
"""An `alpha_variation` below this is as good as none: every word of a caption sees the same places."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metric name to value, and the best hypothesis of every image."""

    scores: dict[str, float]
    hypotheses: Sequence[Hypothesis]


def evaluate(
    captioner: Captioner,
    vocabulary: Vocabulary,
    split: Split,
    options: SearchOptions,
    *,
    grid: tuple[int, int],
    batch_images: int = 50,
    progress: Progress = lambda _: None,
) -> Evaluation:
    """Caption every image by beam search and score the best hypotheses.

    grid : rows and columns of the annotations, to tell where the attention points
    The captioner is in evaluation mode during the call and in its former mode afterwards.
    """
    was_training = captioner.training
    captioner.eval()
    decoder = TorchDecoder(captioner, vocabulary)
    hypotheses: list[Hypothesis] = []
    try:
        for start in range(0, len(split), batch_images):
            images = split.images[start : start + batch_images]
            found = decoder.search(images, options, with_alphas=True)
            hypotheses += [best[0] for best in found]
            progress(len(hypotheses))
    finally:
        captioner.train(was_training)
    words = [vocabulary.decode(hypothesis.tokens) for hypothesis in hypotheses]
    scores = caption_scores(words, split.captions)
    scores["truncated"] = sum(hypothesis.truncated for hypothesis in hypotheses) / len(hypotheses)
    scores["alpha_variation"] = float(np.mean([_variation(best.alphas) for best in hypotheses]))
    if split.objects:
        described = zip(words, split.objects, hypotheses, strict=True)
        scores |= scene_scores(Described(said, objects, best.alphas, grid) for said, objects, best in described)
    return Evaluation(scores, hypotheses)


def attention_stays(attention: str, scores: Mapping[str, float]) -> bool:
    """Whether a captioner with this kind of attention looks at the same places whatever it says.

    scores : of `evaluate`, also with the name of a split before each
    """
    (variation,) = (value for name, value in scores.items() if name.endswith("alpha_variation"))
    return attention != "none" and variation < LEAST_ALPHA_VARIATION


def check_attention(attention: str, scores: Mapping[str, float]) -> None:
    """Raise AttentionError where the attention stays."""
    if attention_stays(attention, scores):
        raise AttentionError(
            f"the attention does not move: the best epoch's alpha_variation is below {LEAST_ALPHA_VARIATION}, every "
            "word of a caption sees the same places; train longer, or lower doubly_stochastic or hard.entropy, which "
            "favour alphas that are all alike"
        )


def _variation(alphas: NDArray[np.float32] | None) -> float:
    """How far the attention moves while a caption is written, from 0 (not at all) towards 1.

    The mean over the words of the total variation distance between the alphas (T, L) of a word and their mean: the
    share of the attention that would have to be moved.
    """
    if alphas is None or not len(alphas):
        return 0.0
    return float(np.abs(alphas - alphas.mean(axis=0)).sum(axis=1).mean() / 2)
