"""Scores of written captions against references: the metrics that training reports and more, from what was written."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engine.records import Record
from engine.results import read_records
from saccade.errors import ConfigError, DataError
from saccade.vocabulary import UNK, tokenise
from training.java_metrics import Metric, open_metrics, ptb_tokenise
from training.metrics import Caption, bleu, caption_scores
from training.scene_objects import SceneObject
from training.scene_scores import Described, scene_scores
from training.scenes import read_scenes

Tokenizer = Literal["saccade", "ptb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOptions:
    """How captions are scored.

    tokenizer : of both sides; "saccade" is `saccade.vocabulary.tokenise`, "ptb" that of coco-caption, which needs Java
    metrics : of `training.java_metrics.METRICS`, beside those that need no Java
    subset : score the captioned images only; otherwise every image with references must have a caption
    """

    tokenizer: Tokenizer = "saccade"
    metrics: tuple[str, ...] = ()
    subset: bool = False


def score_results(
    results: Path, references: Path, scenes: Path | None = None, options: ScoringOptions | None = None
) -> dict[str, float]:
    """Metric name to value.

    results : folder that `saccade caption --out` wrote, or a COCO results file
    references : COCO captions file; images are matched by file name, those of a COCO results file by id
    scenes : scenes.json of `saccade scenes`, to score what the captions say and, with attention, where they look
    Raises DataError where a caption has no references, or an image with references has no caption.
    """
    options = options or ScoringOptions()
    if scenes and not results.is_dir():
        raise ConfigError(f"{results} holds no file names to look up in {scenes}: give a results folder instead")
    records = list(read_records(results)) if results.is_dir() else []
    captions = _by_name(records) if results.is_dir() else read_coco_results(results)
    known = read_references(references, key="file_name" if results.is_dir() else "id")
    _require_same_images(captions, known, subset=options.subset)
    with open_metrics(options.metrics) as metrics:
        hypotheses = tokenised(list(captions.values()), options.tokenizer)
        scores = metric_scores(hypotheses, _tokenised_references([known[name] for name in captions], options), metrics)
    if records:
        scores["truncated"] = sum(record.truncated for record in records) / len(records)
    if scenes:
        objects = read_scenes(scenes)
        scores |= scene_scores(_described(record, objects) for record in records)
    return scores


def metric_scores(
    hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]], metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """`caption_scores`, BLEU without brevity penalty as Xu et al. (2015) report it, and `metrics` by name."""
    scores = caption_scores(hypotheses, references)
    unpenalised = bleu(hypotheses, references, brevity_penalty=False)
    scores |= {f"BLEU-{n} (no BP)": value for n, value in enumerate(unpenalised, start=1)}
    return scores | {name: metric(hypotheses, references) for name, metric in metrics.items()}


def tokenised(captions: Sequence[str], tokenizer: Tokenizer = "saccade") -> Sequence[Caption]:
    """Words of captions; the unknown word stays one word."""
    return ptb_tokenise(captions) if tokenizer == "ptb" else [_words(caption) for caption in captions]


def read_references(path: Path, *, key: Literal["file_name", "id"]) -> dict[str | int, list[str]]:
    """Reference texts by file name or id of their image, from a COCO captions file."""
    captions: dict[str | int, list[str]] = defaultdict(list)

    def collect(content: Any) -> None:
        names = {image["id"]: image[key] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[names[annotation["image_id"]]].append(_text(annotation["caption"]))

    _read_coco(path, "a COCO captions file with images and annotations", collect)
    return dict(captions)


def read_coco_results(path: Path) -> dict[str | int, str]:
    """Captions by image id, from a COCO results file: a list of objects with image_id and caption."""
    found: list[tuple[str | int, str]] = []

    def collect(content: Any) -> None:
        found.extend((entry["image_id"], _text(entry["caption"])) for entry in content)

    _read_coco(path, "a COCO results file, a list of objects with image_id and caption", collect)
    captions = dict(found)
    if len(captions) < len(found):
        raise DataError(f"{path} has {len(found)} captions for {len(captions)} images: give each image one caption")
    return captions


def _read_coco(path: Path, expected: str, collect: Callable[[Any], None]) -> None:
    try:
        collect(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected {expected} ({error!r})") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"caption {value!r}")
    return value


def _by_name(records: Sequence[Record]) -> dict[str | int, str]:
    captions: dict[str | int, str] = {Path(record.path).name: record.caption for record in records}
    if len(captions) != len(records):
        raise DataError("several records have one file name, so references cannot be told apart: score them separately")
    return captions


def _require_same_images(captions: Mapping[str | int, Any], known: Mapping[str | int, Any], *, subset: bool) -> None:
    unknown = [name for name in captions if name not in known]
    missing = [name for name in known if name not in captions]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(captions)} captioned images have no references, the first is {unknown[0]}"
        )
    if missing and not subset:
        raise DataError(
            f"{len(missing)} of {len(known)} images with references have no caption: {missing[0]}; "
            "with --subset, the others are scored"
        )


def _tokenised_references(texts: Sequence[Sequence[str]], options: ScoringOptions) -> list[list[Caption]]:
    """All in one go, since a tokenizer may be slow to start."""
    words = iter(tokenised(list(chain.from_iterable(texts)), options.tokenizer))
    return [list(islice(words, len(of_one_image))) for of_one_image in texts]


def _words(caption: str) -> tuple[str, ...]:
    parts = re.split(f"({re.escape(UNK)})", caption)
    return tuple(word for part in parts for word in ((UNK,) if part == UNK else tokenise(part)))


def _described(record: Record, scenes: Mapping[str, tuple[SceneObject, ...]]) -> Described:
    objects = scenes.get(Path(record.path).name)
    if objects is None:
        raise DataError(f"{record.path} is not among the scenes")
    if record.attention is None:
        return Described(record.words, objects, None, (0, 0))
    rows, columns = record.attention.rows, record.attention.columns
    alphas = np.array(record.attention.alphas).reshape(len(record.words), rows * columns)
    return Described(record.words, objects, alphas, (rows, columns))
