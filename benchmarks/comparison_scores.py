"""How caption metrics change from the reference to a candidate, with intervals by a bootstrap paired over images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison_results import Change
from benchmarks.scoring import read_references, tokenised
from saccade.errors import DataError
from training.metrics import Caption, bleu_counts, bleu_of, cider_d

RESAMPLES = 1000


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
    reference: Sequence[str], candidate: Sequence[str], references: Sequence[Sequence[Caption]], *, seed: int = 0
) -> dict[str, Change]:
    """BLEU-4 and CIDEr-D of both sides, and the change; of each image its two captions and those that are right."""
    sides = [tokenised(reference), tokenised(candidate)]
    images = np.random.default_rng(seed).integers(0, len(references), (RESAMPLES, len(references)))
    counts = [bleu_counts(side, references) for side in sides]
    ciders = [cider_d(side, references).per_image for side in sides]
    return {
        "BLEU-4": _change([_bleu_4(side) for side in counts], counts, _bleu_4, images),
        "CIDEr-D": _change([float(one.mean()) for one in ciders], ciders, lambda rows: float(rows.mean()), images),
    }


def _bleu_4(counts: NDArray[Any]) -> float:
    return float(bleu_of(counts.sum(axis=0))[3])


def _change(
    scores: Sequence[float],
    sides: Sequence[NDArray[Any]],
    score: Callable[[NDArray[Any]], float],
    images: NDArray[np.int64],
) -> Change:
    """Each resample takes the same images on both sides."""
    differences = [score(sides[1][drawn]) - score(sides[0][drawn]) for drawn in images]
    low, high = np.quantile(differences, [0.025, 0.975]).tolist()
    return Change(reference=scores[0], candidate=scores[1], change=scores[1] - scores[0], low=low, high=high)
