"""`saccade evaluate`: a model on a split, from TOML to scores and COCO results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.evaluation import caption_split, coco_results, open_model, split_scores
from benchmarks.scoring import score_results
from saccade.bundle import Precision
from saccade.errors import CheckpointError, ConfigError
from saccade.glimpses import DecodeMode
from saccade.preprocessing import PreprocessSpec
from tests.bundles import MAX_LENGTH, SPEC, make_checkpoint, patchworks
from tests.commands import call
from training.config import load_config
from training.data import Split, draw_pixels, load_split, open_data
from training.scenes import generate_scene, write_scenes

CONFIG = """
[data]
kind = "scenes"
train = { first_seed = 0, count = 4 }
validation = { first_seed = 100, count = 5 }
test = { first_seed = 200, count = 6 }
render_size = 64

[preprocessing]
size = 64
geometry = "squash"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[encoder]
name = "compact"

[decoder]

[optimisation]
epochs = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def photos() -> Split:
    """Patchworks, which get captions of their own, with references that some words of those match."""
    return Split(patchworks(7, seed=1), [(("a", "red", "dog"), ("two", "cat"))] * 7, ids=range(7))


def test_a_split_is_preprocessed_as_the_model_wants_it_and_named_by_its_seeds(config: Path) -> None:
    spec = PreprocessSpec(size=48, geometry="squash", mean=SPEC.mean, std=SPEC.std)
    images = load_split(open_data(load_config(config).data), "test", spec, limit=2)
    assert images is not None
    assert list(images.ids) == [200, 201]
    np.testing.assert_array_equal(images.images[:][1], draw_pixels(201, spec, render_size=64))
    assert images.captions[1] == tuple(caption.words for caption in generate_scene(201).captions)


def test_a_checkpoint_and_its_bundle_say_and_score_the_same(
    tiny_checkpoint: Path, tiny_bundle: Path, photos: Split
) -> None:
    for beam in (1, 4):
        outcomes = []
        for path in (tiny_checkpoint, tiny_bundle):
            precision: Precision | None = "fp32" if path == tiny_bundle else None
            with open_model(path, precision=precision) as model:
                assert (model.name, model.grid, model.search_options.max_length) == (str(path), (4, 4), MAX_LENGTH)
                found = caption_split(model, photos, beam)
                outcomes.append((found.captions, split_scores(model, photos, found, {})))
        assert outcomes[0] == outcomes[1]
        assert len(set(outcomes[0][0])) > 2


def test_beams_differ(tiny_checkpoint: Path, photos: Split) -> None:
    with open_model(tiny_checkpoint) as model:
        assert caption_split(model, photos, 1).captions != caption_split(model, photos, 5).captions


def test_further_metrics_get_words_and_references(tiny_checkpoint: Path, photos: Split) -> None:
    def count_references(hypotheses: Any, references: Any) -> float:
        assert all(isinstance(word, str) for caption in hypotheses for word in caption)
        return float(sum(map(len, references)))

    with open_model(tiny_checkpoint) as model:
        found = caption_split(model, photos, 1)
        assert split_scores(model, photos, found, {"REFERENCES": count_references})["REFERENCES"] == 14


def test_what_is_neither_bundle_nor_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"), open_model(tmp_path):
        pass


def test_several_checkpoints_are_searched_together(tiny_checkpoint: Path, tmp_path: Path, photos: Split) -> None:
    hard_one = make_checkpoint(tmp_path / "hard", "hard", first_seed=100)
    with open_model(tiny_checkpoint, hard_one) as model:
        assert model.name == f"{tiny_checkpoint} + {hard_one}"
        together = caption_split(model, photos, 3).captions
    for path in (tiny_checkpoint, hard_one):
        with open_model(path) as model:
            assert caption_split(model, photos, 3).captions != together


def changed(checkpoint: Path, folder: Path, before: str, after: str) -> Path:
    """A copy of a checkpoint with another description."""
    copy = Path(shutil.copytree(checkpoint, folder))
    text = (copy / "checkpoint.json").read_text()
    assert before in text
    (copy / "checkpoint.json").write_text(text.replace(before, after))
    return copy


def test_models_of_other_words_or_pixels_are_no_ensemble(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    words = changed(tiny_checkpoint, tmp_path / "words", "sits", "stands")
    pixels = changed(tiny_checkpoint, tmp_path / "pixels", "squash", "crop")
    normal = changed(tiny_checkpoint, tmp_path / "normal", "0.25", "0.3")
    with pytest.raises(ConfigError, match=r"no ensemble.*vocabulary.words was"), open_model(tiny_checkpoint, words):
        pass
    with pytest.raises(ConfigError, match=r"preprocessing.geometry was squash, is crop"), open_model(normal, pixels):
        pass
    with pytest.raises(ConfigError, match="is a bundle; an ensemble takes"), open_model(tiny_checkpoint, tiny_bundle):
        pass
    with open_model(tiny_checkpoint, normal):  # each normalises as it was trained to
        pass


def test_coco_results_have_an_entry_an_image() -> None:
    assert coco_results(["a7", 8], ["a dog", "a cat"]) == [
        {"image_id": "a7", "caption": "a dog"},
        {"image_id": 8, "caption": "a cat"},
    ]


def test_the_command_writes_what_saccade_score_scores_the_same(
    tiny_checkpoint: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder/results.json"
    options = ("--split", "validation", "--beam", "1", "--beam", "2", "--limit", "3", "--out", out)
    outcome = call(capsys, "evaluate", tiny_checkpoint, "--data", config, *options)
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split() == ["beam", "1", "beam", "2"]
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "results.beam1.json",
        "results.beam2.json",
        "results.scores.json",
    ]
    report = json.loads(out.with_name("results.scores.json").read_text())
    assert (report["split"], report["images"], report["tokenizer"]) == ("validation", 3, "saccade")
    assert (report["model"], report["data"]) == (str(tiny_checkpoint), str(config))
    assert report["search"]["max_length"] == MAX_LENGTH
    assert report["trained"] == [{"weights": "random"}]
    assert {"saccade", "python", "torch"} <= report["versions"].keys()
    write_scenes(tmp_path / "scenes", first_seed=100, count=3, size=32)
    for beam in ("1", "2"):
        scores = report["beams"][beam]
        assert scores["seconds"] > 0
        again = score_results(out.with_name(f"results.beam{beam}.json"), tmp_path / "scenes/captions.json")
        assert again == {name: pytest.approx(scores[name]) for name in again}
        assert f"{scores['CIDEr-D']:.4f}" in next(line for line in outcome.out.splitlines() if "CIDEr-D" in line)


def test_the_command_tells_how_captions_differ_from_those_of_before(
    tiny_checkpoint: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(*options: Any) -> Any:
        out = tmp_path / "results.json"
        outcome = call(
            capsys, "evaluate", tiny_checkpoint, "--data", config, "--split", "test", "--quiet", "--out", out, *options
        )
        return outcome.error if outcome.code else json.loads((tmp_path / "results.scores.json").read_text())["beams"]

    assert "same_captions" not in evaluate("--beam", "1", "--beam", "3")["3"]
    before = tmp_path / "before.json"
    for beam, changed in (("1", 2), ("3", 0)):
        said = json.loads((tmp_path / f"results.beam{beam}.json").read_text())
        for one in said[:changed]:
            one["caption"] = "a red dog"
        before.with_name(f"before.beam{beam}.json").write_text(json.dumps(said))
    beams = evaluate("--beam", "1", "--beam", "3", "--against", before)
    assert beams["1"]["same_captions"] == pytest.approx(4 / 6)
    assert beams["1"]["CIDEr-D_change_low"] <= beams["1"]["CIDEr-D_change"] <= beams["1"]["CIDEr-D_change_high"]
    names = ("same_captions", "CIDEr-D_change", "CIDEr-D_change_low", "CIDEr-D_change_high")
    assert [beams["3"][name] for name in names] == [1, 0, 0, 0]
    assert "before.beam2.json: expected a COCO results file" in evaluate("--beam", "2", "--against", before)
    assert "before.json is of other images" in evaluate("--limit", "2", "--against", before)


def test_the_command_looks_where_it_is_told(
    hard_checkpoint: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the search itself does with that mode and seed."""
    images = load_split(open_data(load_config(config).data), "test", SPEC)
    assert images is not None
    said = {}
    ways: list[tuple[DecodeMode, int]] = [("expected", 0), ("argmax", 0), ("sample", 1), ("sample", 2)]
    for mode, seed in ways:
        out = tmp_path / "results.json"
        options = ("--split", "test", "--decode-mode", mode, "--seed", str(seed), "--out", out)
        assert call(capsys, "evaluate", hard_checkpoint, "--data", config, *options).code == 0
        with open_model(hard_checkpoint) as model:
            chosen = replace(model.search_options, decode_mode=mode, seed=seed)
            found = caption_split(replace(model, search_options=chosen), images, 3).captions
        written = json.loads(out.with_name("results.beam3.json").read_text())
        assert [one["caption"] for one in written] == list(found)
        search = json.loads(out.with_name("results.scores.json").read_text())["search"]
        assert (search["decode_mode"], search["seed"]) == (mode, seed)
        said[mode, seed] = tuple(found)
    assert len(set(said.values())) == 4


def test_the_command_looks_as_the_bundle_does_unless_it_is_told(
    hard_bundle: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    outcome = call(capsys, "evaluate", hard_bundle, "--data", config, "--split", "test", "--limit", "1", "--out", out)
    assert outcome.code == 0
    assert json.loads(out.with_name("results.scores.json").read_text())["search"]["decode_mode"] == "sample"


def test_soft_attention_knows_no_decode_mode(
    tiny_checkpoint: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data", config, "--split", "test", "--decode-mode", "argmax", "--quiet")
    outcome = call(capsys, "evaluate", tiny_checkpoint, *options)
    assert outcome.error.startswith('decode mode "argmax" is for hard attention; this model has "soft"')


def test_missing_metrics_are_told_before_the_model_is_opened(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    outcome = call(capsys, "evaluate", tmp_path, "--data", config, "--split", "test", "--metrics", "meteor")
    assert outcome.error.endswith("pip install 'saccade[metrics]'")


def test_captions_are_kept_when_a_metric_fails(
    tiny_checkpoint: Path, config: Path, photos: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def failing(_: object) -> Iterator[dict[str, Any]]:
        yield {"METEOR": lambda *_: 1 / 0}

    from benchmarks import evaluation_cli

    monkeypatch.setattr(evaluation_cli, "open_metrics", failing)
    monkeypatch.setattr(evaluation_cli, "load_split", lambda *_, **__: photos)
    callback = evaluation_cli.evaluate.callback
    assert callback
    out = tmp_path / "x.json"
    with pytest.raises(ZeroDivisionError):
        callback(
            models=(tiny_checkpoint,),
            data=config,
            split="test",
            beams=(1,),
            decode_mode=None,
            seed=0,
            backend="auto",
            precision=None,
            metrics=("meteor",),
            limit=None,
            out=out,
            against=None,
            quiet=True,
        )
    assert len(json.loads((tmp_path / "x.beam1.json").read_text())) == 7
