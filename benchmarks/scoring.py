"""Scores of a results folder against references: the metrics that training reports, from what was really written."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.records import Record
from engine.results import read_records
from saccade.errors import DataError
from saccade.vocabulary import tokenise
from training.metrics import caption_scores
from training.scene_objects import SceneObject
from training.scene_scores import Described, scene_scores
from training.scenes import read_scenes


def score_results(results: Path, references: Path, scenes: Path | None = None) -> dict[str, float]:
    """Metric name to value.

    results : folder that `saccade caption --out` wrote
    references : COCO captions file; images are matched by file name
    scenes : scenes.json of `saccade scenes`, to score what the captions say and, with attention, where they look
    Raises DataError where a record has no references, or an image with references has no record.
    """
    records = list(read_records(results))
    captions = read_references(references)
    _require_same_images(records, captions)
    names = [Path(record.path).name for record in records]
    scores = caption_scores([record.words for record in records], [captions[name] for name in names])
    scores["truncated"] = sum(record.truncated for record in records) / len(records)
    if scenes is not None:
        objects = read_scenes(scenes)
        scores |= scene_scores(_described(record, objects) for record in records)
    return scores


def read_references(path: Path) -> dict[str, list[tuple[str, ...]]]:
    """Tokenised references by image file name, from a COCO captions file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for annotation in content["annotations"]:
            captions[names[annotation["image_id"]]].append(tokenise(annotation["caption"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a COCO captions file with images and annotations ({error!r})") from error
    return dict(captions)


def _require_same_images(records: Sequence[Record], captions: Mapping[str, Any]) -> None:
    names = [Path(record.path).name for record in records]
    if len(set(names)) != len(names):
        raise DataError("several records have one file name, so references cannot be told apart: score them separately")
    unknown, missing = sorted(set(names) - captions.keys()), sorted(captions.keys() - set(names))
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(names)} captioned images have no references, the first is {unknown[0]}"
        )
    if missing:
        raise DataError(f"{len(missing)} of {len(captions)} images with references have no caption: {missing[0]}")


def _described(record: Record, scenes: Mapping[str, tuple[SceneObject, ...]]) -> Described:
    objects = scenes.get(Path(record.path).name)
    if objects is None:
        raise DataError(f"{record.path} is not among the scenes")
    if record.attention is None:
        return Described(record.words, objects, None, (0, 0))
    rows, columns = record.attention.rows, record.attention.columns
    alphas = np.array(record.attention.alphas).reshape(len(record.words), rows * columns)
    return Described(record.words, objects, alphas, (rows, columns))
