"""How caption metrics change from the reference to a candidate, with intervals by a bootstrap paired over images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison_results import Change
from benchmarks.scoring import read_references, tokenised
from saccade.errors import DataError
from saccade.vocabulary import UNK
from training.metrics import Caption, bleu, cider_d

RESAMPLES = 1000
_N = 4


def references_of(path: Path) -> dict[str, list[str]]:
    """Captions by file name, from a COCO captions file or from `{"file.jpg": ["a caption", ...], ...}`.

    Raises DataError where it is neither.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): give a COCO captions file") from error
    if isinstance(content, dict) and "annotations" in content:
        return {str(name): texts for name, texts in read_references(path, key="file_name").items()}
    lists = isinstance(content, dict) and all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in content.values()
    )
    if not lists:
        raise DataError(f"{path}: expected a COCO captions file, or an object of file names and lists of captions")
    return dict(content)


def changes(
    reference: Sequence[str], candidate: Sequence[str], references: Sequence[Sequence[str]], *, seed: int = 0
) -> dict[str, Change]:
    """BLEU-4 and CIDEr-D of both sides, and the change; of each image its two captions and the texts that are right."""
    known = [list(tokenised(texts)) for texts in references]
    sides = [tokenised(reference), tokenised(candidate)]
    images = np.random.default_rng(seed).integers(0, len(known), (RESAMPLES, len(known)))
    terms = [np.array([bleu_terms(*pair) for pair in zip(side, known, strict=True)]) for side in sides]
    ciders = [cider_d(side, known).per_image for side in sides]
    return {
        "BLEU-4": _change(
            [bleu(side, known)[3] for side in sides], terms, lambda rows: bleu_4(rows.sum(axis=-2)), images
        ),
        "CIDEr-D": _change([float(one.mean()) for one in ciders], ciders, lambda rows: rows.mean(axis=-1), images),
    }


def bleu_terms(hypothesis: Caption, references: Sequence[Caption]) -> list[int]:
    """What corpus BLEU sums over images: matched n-grams of order 1 to 4, possible ones, and both lengths."""
    counts = [_ngrams(reference) for reference in references]
    matched = [0] * _N
    for ngram, count in _ngrams(hypothesis).items():
        if UNK not in ngram:
            matched[len(ngram) - 1] += min(count, max(one[ngram] for one in counts))
    possible = [max(len(hypothesis) - n, 0) for n in range(_N)]
    closest = min(map(len, references), key=lambda length: (abs(length - len(hypothesis)), length))
    return [*matched, *possible, len(hypothesis), closest]


def bleu_4(terms: NDArray[np.int64]) -> NDArray[np.float64]:
    """BLEU-4 of sums of `bleu_terms` (..., 10), as `training.metrics.bleu` has it of the whole set."""
    matched, possible = terms[..., :_N], terms[..., _N : 2 * _N]
    precision = np.prod((matched + 1e-15) / (possible + 1e-9), axis=-1) ** (1 / _N)
    ratio = (terms[..., -2] + 1e-15) / (terms[..., -1] + 1e-9)
    return np.asarray(precision * np.exp(np.minimum(0.0, 1 - 1 / ratio)))


def _change(
    scores: Sequence[float],
    sides: Sequence[NDArray[Any]],
    score: Callable[[NDArray[Any]], NDArray[np.float64]],
    images: NDArray[np.int64],
) -> Change:
    """Each resample takes the same images on both sides."""
    differences = [float(score(sides[1][drawn]) - score(sides[0][drawn])) for drawn in images]
    low, high = np.quantile(differences, [0.025, 0.975]).tolist()
    return Change(reference=scores[0], candidate=scores[1], change=scores[1] - scores[0], low=low, high=high)


def _ngrams(caption: Caption) -> Counter[tuple[str, ...]]:
    words = tuple(caption)
    return Counter(words[i : i + n] for n in range(1, _N + 1) for i in range(len(words) - n + 1))
