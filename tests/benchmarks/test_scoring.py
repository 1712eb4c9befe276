"""`saccade score`: what was written, against references found by file name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scoring import score_results
from engine.records import Attention, Record
from engine.results import ResultsWriter
from saccade.errors import DataError
from training.scenes import generate_scene, write_scenes

SEEDS = range(40, 44)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", first_seed=SEEDS.start, count=len(SEEDS), size=32, format="png")
    return tmp_path / "scenes"


def write_results(folder: Path, captions: dict[str, tuple[str, ...]], attention: Attention | None = None) -> Path:
    writer = ResultsWriter(folder, {}, {})
    writer.commit(
        [
            Record(
                path=f"/elsewhere/{name}",
                caption=" ".join(words),
                score=0.0,
                tokens=(4,) * len(words),
                words=words,
                truncated=False,
                attention=attention and Attention(rows=1, columns=2, alphas=attention.alphas * len(words)),
            )
            for name, words in captions.items()
        ]
    )
    return folder


def perfect() -> dict[str, tuple[str, ...]]:
    return {f"{seed:09d}.png": generate_scene(seed, size=32).captions[0].words for seed in SEEDS}


def test_captions_that_are_references_score_perfectly(scenes: Path, tmp_path: Path) -> None:
    look = Attention(rows=1, columns=2, alphas=((0.9, 0.1),))
    results = write_results(tmp_path / "results", perfect(), look)
    scores = score_results(results, scenes / "captions.json", scenes / "scenes.json")
    assert scores["BLEU-4"] == pytest.approx(1.0)
    assert scores["object_f1"] == scores["relation_accuracy"] == 1.0
    assert 0 < scores["pointing_nouns"] < 1  # everything looks left, not everything stands there


def test_images_must_match_the_references(scenes: Path, tmp_path: Path) -> None:
    fewer = dict(list(perfect().items())[:-1])
    with pytest.raises(DataError, match=r"1 of 4 images with references have no caption: 000000043\.png"):
        score_results(write_results(tmp_path / "fewer", fewer), scenes / "captions.json")
    more = perfect() | {"stranger.png": ("a",)}
    with pytest.raises(DataError, match=r"the first is stranger\.png"):
        score_results(write_results(tmp_path / "more", more), scenes / "captions.json")


def test_a_file_that_holds_no_references_is_named(scenes: Path, tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", perfect())
    (tmp_path / "wrong.json").write_text(json.dumps({"captions": []}))
    with pytest.raises(DataError, match=r"wrong\.json: expected a COCO captions file"):
        score_results(results, tmp_path / "wrong.json")
    with pytest.raises(DataError, match=r"captions\.json: expected the scenes\.json"):
        score_results(results, scenes / "captions.json", scenes / "captions.json")
