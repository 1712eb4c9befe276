"""Scores of decoded captions: never teacher-forced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade.search import Hypothesis, SearchOptions
from saccade.vocabulary import Vocabulary
from training.data import Progress, Split
from training.decoding import TorchDecoder
from training.metrics import caption_scores
from training.model import Captioner
from training.scene_scores import SceneReport, point, score_caption


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
            pixels = split.pixels[start : start + batch_images]
            found = decoder.search(pixels, options, with_alphas=bool(split.scenes))
            hypotheses += [best[0] for best in found]
            progress(len(hypotheses))
    finally:
        captioner.train(was_training)
    words = [vocabulary.decode(hypothesis.tokens) for hypothesis in hypotheses]
    scores = caption_scores(words, split.captions)
    scores["truncated"] = sum(hypothesis.truncated for hypothesis in hypotheses) / len(hypotheses)
    if split.scenes:
        scores |= _scene_scores(split, words, hypotheses, grid)
    return Evaluation(scores, hypotheses)


def _scene_scores(
    split: Split, words: Sequence[tuple[str, ...]], hypotheses: Sequence[Hypothesis], grid: tuple[int, int]
) -> dict[str, float]:
    report = SceneReport()
    for scene, caption, hypothesis in zip(split.scenes, words, hypotheses, strict=True):
        pointing = point(caption, hypothesis.alphas, grid, scene) if hypothesis.alphas is not None else None
        report.add(score_caption(caption, scene), pointing)
    return {name: float(value) for name, value in report.as_json().items() if value is not None and name != "captions"}
