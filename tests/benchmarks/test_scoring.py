"""`saccade score`: what was written, against references found by file name or by id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scoring import ScoringOptions, metric_scores, score_results
from engine.records import Attention, Record
from engine.results import ResultsWriter
from saccade.errors import ConfigError, DataError
from tests.commands import call
from training.metrics import bleu
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


def write_coco(path: Path, captions: dict[int, str]) -> Path:
    path.write_text(json.dumps([{"image_id": image, "caption": caption} for image, caption in captions.items()]))
    return path


def by_id() -> dict[int, str]:
    return {seed: generate_scene(seed, size=32).captions[0].text for seed in SEEDS}


def test_a_coco_results_file_scores_as_the_folder_with_the_same_captions(scenes: Path, tmp_path: Path) -> None:
    wrong = {40: "a red ball", 41: "a <unk> ball"}
    names = {f"{seed:09d}.png": tuple(caption.split()) for seed, caption in (by_id() | wrong).items()}
    folder = score_results(write_results(tmp_path / "results", names), scenes / "captions.json")
    file = score_results(write_coco(tmp_path / "results.json", by_id() | wrong), scenes / "captions.json")
    assert file == {name: value for name, value in folder.items() if name != "truncated"}
    assert 0.2 < file["BLEU-4"] < 0.9


def test_the_unknown_word_of_a_written_caption_is_no_word_of_the_references(tmp_path: Path) -> None:
    references = tmp_path / "references.json"
    texts = ["an unk runs", "the <unk> runs"]
    images = [{"id": 7, "file_name": "7.jpg"}]
    annotations = [{"image_id": 7, "caption": text} for text in texts]
    references.write_text(json.dumps({"images": images, "annotations": annotations}))
    scores = score_results(write_coco(tmp_path / "results.json", {7: "an <unk>runs"}), references)
    assert scores["BLEU-1"] == pytest.approx(2 / 3)


def test_images_without_a_caption_are_left_out_only_when_told(scenes: Path, tmp_path: Path) -> None:
    results = write_coco(tmp_path / "results.json", {40: by_id()[40], 41: by_id()[41]})
    with pytest.raises(DataError, match="2 of 4 images with references have no caption: 42; with --subset"):
        score_results(results, scenes / "captions.json")
    scores = score_results(results, scenes / "captions.json", options=ScoringOptions(subset=True))
    assert scores["BLEU-4"] == pytest.approx(1.0)


def test_a_coco_results_file_has_one_caption_an_image_and_no_file_names(scenes: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps([{"image_id": 40, "caption": "a"}] * 2))
    with pytest.raises(DataError, match="2 captions for 1 images"):
        score_results(twice, scenes / "captions.json")
    for content in ({"image_id": 40}, [{"image_id": 40}], [{"image_id": 40, "caption": None}], ["a"]):
        (tmp_path / "wrong.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"wrong\.json: expected a COCO results file"):
            score_results(tmp_path / "wrong.json", scenes / "captions.json")
    with pytest.raises(ConfigError, match="give a results folder"):
        score_results(twice, scenes / "captions.json", scenes / "scenes.json")


def test_the_table_has_bleu_with_and_without_brevity_penalty_and_further_metrics_last() -> None:
    hypotheses, references = [["a", "dog"]], [[["a", "dog", "runs", "here"]]]
    scores = metric_scores(hypotheses, references, {"WORDS": lambda said, _: float(len(said[0]))})
    plain = bleu(hypotheses, references, brevity_penalty=False)
    assert [scores[f"BLEU-{n} (no BP)"] for n in (1, 2, 3, 4)] == list(plain)
    assert scores["BLEU-1"] < scores["BLEU-1 (no BP)"] == pytest.approx(1.0)
    assert list(scores.items())[-1] == ("WORDS", 2.0)


def test_the_ptb_tokenizer_cuts_both_sides(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This stand-in keeps the last word of a sentence, so that wrong captions that end well are right."""
    monkeypatch.setattr("benchmarks.scoring.ptb_tokenise", lambda texts: [(text.split()[-1],) for text in texts])
    results = write_coco(tmp_path / "results.json", {seed: f"wrong {text}" for seed, text in by_id().items()})
    scores = score_results(results, scenes / "captions.json", options=ScoringOptions(tokenizer="ptb"))
    assert scores["BLEU-1"] == pytest.approx(1.0)


def test_the_command_states_the_tokenizer_and_prints_aligned_columns(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (write_coco(tmp_path / "results.json", by_id()), "--references", scenes / "captions.json")
    table = call(capsys, "score", *arguments)
    assert (table.code, table.err) == (0, "tokenizer: saccade\n")
    assert len({len(line) for line in table.out.splitlines()}) == 1
    assert table.out.splitlines()[3].split() == ["BLEU-4", "1.0000"]
    outcome = call(capsys, "score", *arguments, "--json")
    assert json.loads(outcome.out)["tokenizer"] == "saccade"
    outcome = call(capsys, "score", *arguments, "--metrics", "meteor,rouge")
    assert (outcome.code, outcome.out) == (2, "")
    assert "'rouge' is not one of meteor, spice" in outcome.err
