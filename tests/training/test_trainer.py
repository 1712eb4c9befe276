"""Whole training runs, small enough for a test."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from PIL import Image

from saccade.errors import CheckpointError, ConfigError, DivergenceError, OutputError
from saccade.preprocessing import PreprocessSpec
from saccade.progress import Reporter
from tests.bundles import patchworks
from tests.commands import call
from training.annotations import Annotations
from training.augmentation import AugmentationOptions
from training.checkpoint import load_checkpoint
from training.config import (
    ConceptOptions,
    TrainingConfig,
    ValidationOptions,
    VocabularyOptions,
    load_config,
)
from training.datasets import JsonlData, Photo, read_photos
from training.encoders import EncoderOptions
from training.hard_attention import HardOptions
from training.model import Captioner, Decoder, DecoderOptions
from training.optimisation import OptimisationOptions
from training.sampling import with_own_words
from training.scene_data import SceneData, SceneSeeds
from training.self_critical import SelfCriticalOptions
from training.trainer import Trainer

CONFIG = TrainingConfig(
    data=SceneData(
        kind="scenes",
        train=SceneSeeds(first_seed=0, count=24),
        validation=SceneSeeds(first_seed=100, count=4),
        test=SceneSeeds(first_seed=200, count=4),
        render_size=64,
    ),
    preprocessing=PreprocessSpec(size=32, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    vocabulary=VocabularyOptions(min_count=1),
    encoder=EncoderOptions(name="compact"),
    decoder=DecoderOptions(attention_width=8, embedding_width=8, hidden_width=8, dropout=0.2),
    concepts=ConceptOptions(epochs=1, least_share=0.0),
    optimisation=OptimisationOptions(epochs=2, batch_images=8, captions_per_image=2, warmup_steps=2),
    validation=ValidationOptions(beam=2, max_length=12),
)

REWARDS = SelfCriticalOptions(epochs=1, learning_rate=1e-3)


def train(folder: Path, config: TrainingConfig = CONFIG) -> dict[str, float]:
    return Trainer(config, folder, device=torch.device("cpu"), reporter=Reporter(quiet=True)).run()


def test_a_run_leaves_a_scored_checkpoint_and_its_history(tmp_path: Path) -> None:
    scores = train(tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run")
    assert {"test/CIDEr-D", "test/object_f1"} <= scores.keys() <= checkpoint.description.scores.keys()
    assert checkpoint.description.provenance["config"]["data"]["train"]["count"] == 24
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2]
    assert any((tmp_path / "run/tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "rewarded", "step"), [("soft", 0, 5), ("hard", 0, 5), ("soft", 2, 7), ("soft", 2, 11)]
)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: Literal["soft", "hard"], rewarded: int, step: int
) -> None:
    """Killed in the middle of an epoch, resumed after the one before: bit by bit the same.

    By likelihood or, when two epochs of three steps are over, by rewards.
    """
    rewards = SelfCriticalOptions(epochs=rewarded, learning_rate=1e-3, samples=2) if rewarded else None
    config = replace(
        CONFIG,
        self_critical=rewards,
        decoder=replace(CONFIG.decoder, attention=attention),
        concepts=ConceptOptions(epochs=1, weight=0.1, pairs_within=2, least_share=0.2),
        augmentation=AugmentationOptions(),
    )
    train(tmp_path / "whole", config)
    steps = 0
    original = Trainer.train_step

    def dies(self: Trainer, *arguments: object, **named: object) -> float:
        nonlocal steps
        steps += 1
        if steps == step:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", config)
    monkeypatch.undo()
    train(tmp_path / "killed", config)
    whole, killed = (load_checkpoint(tmp_path / name).captioner.state_dict() for name in ("whole", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    histories = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert histories[0] == histories[1]


def test_a_folder_of_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(tmp_path / "run", replace(CONFIG, optimisation=replace(CONFIG.optimisation, epochs=1)))
    with pytest.raises(ConfigError, match=re.escape("optimisation.epochs was 1, is 2")):
        train(tmp_path / "run")


def test_more_processes_than_images_in_a_batch_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.run_data.processes", lambda: 9)
    with pytest.raises(ConfigError, match="leave a last batch of 8, too few for 9 processes"):
        train(tmp_path / "run")


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(OutputError, match="is no training run"):
        train(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr("training.objectives.F.cross_entropy", lambda *_, **__: nan)
    with pytest.raises(DivergenceError, match="became nan at step 1"):
        train(tmp_path / "run")


def test_every_problem_of_a_configuration_is_reported_at_once(tmp_path: Path) -> None:
    text = Path("configs/scenes-soft.toml").read_text()
    text = text.replace("batch_images =", "batch_size =").replace('attention = "soft"', 'attention = "loud"')
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "batch_size" in str(caught.value)
    assert "loud" in str(caught.value)


def test_lines_of_toml_change_what_a_configuration_says() -> None:
    path = Path("configs/scenes-soft.toml")
    changed = load_config(path, ["optimisation.epochs = 1", "optimisation = { seed = 7 }", 'decoder.gate = "vector"'])
    expected = load_config(path)
    assert changed == replace(
        expected,
        optimisation=replace(expected.optimisation, epochs=1, seed=7),
        decoder=replace(expected.decoder, gate="vector"),
    )


@pytest.mark.parametrize(("change", "complaint"), [("epochs", "no line of TOML"), ("decoder.gates = 1", "gates")])
def test_a_change_that_makes_no_sense_is_refused(change: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(Path("configs/scenes-soft.toml"), [change])


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.toml")), ids=str)
def test_shipped_configurations_are_valid(path: Path) -> None:
    load_config(path)


def test_overlapping_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="train and test"):
        SceneData(
            kind="scenes",
            train=SceneSeeds(first_seed=0, count=10),
            validation=SceneSeeds(first_seed=50, count=10),
            test=SceneSeeds(first_seed=9, count=10),
        )


def test_damaged_checkpoints_are_refused_by_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_checkpoint, tmp_path / name))

    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "nothing")
    torn = copy("torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_checkpoint(tmp_path / "torn")
    weights = load_file(tiny_checkpoint / "model.safetensors")
    weights["decoder.output.bias"] = weights["decoder.output.bias"][:3].clone()
    del weights["decoder.output.weight"]
    save_file(weights, copy("changed") / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"output\.weight is missing; decoder\.output\.bias has shape \(3,\)"):
        load_checkpoint(tmp_path / "changed")
    version = copy("version") / "checkpoint.json"
    version.write_text(version.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(CheckpointError, match="checkpoint format 7"):
        load_checkpoint(tmp_path / "version")


def test_without_attention_there_is_one_place_to_look_at(tmp_path: Path) -> None:
    config = replace(CONFIG, decoder=replace(CONFIG.decoder, attention="none"), validation=ValidationOptions(beam=2))
    scores = train(tmp_path / "run", replace(config, optimisation=replace(CONFIG.optimisation, epochs=1)))
    assert load_checkpoint(tmp_path / "run").captioner.encoder.grid(32) == (1, 1)
    assert scores["test/alpha_variation"] == 0


@pytest.mark.parametrize(("variation", "code"), [(0.0099, 1), (0.0101, 0)])
def test_the_command_fails_after_its_scores_where_the_attention_does_not_move(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variation: float, code: int
) -> None:
    scores = {"test/CIDEr-D": 0.5, "test/alpha_variation": variation}
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: scores)
    outcome = call(capsys, "train", "configs/scenes-soft.toml", "--quiet")
    assert outcome.code == code
    assert outcome.out.startswith("test/CIDEr-D\t0.5000\n")
    assert ("the attention does not move" in outcome.err) == (code == 1)


def test_every_epoch_tells_of_an_attention_that_does_not_move(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one_epoch = replace(CONFIG, optimisation=replace(CONFIG.optimisation, epochs=1))
    with caplog.at_level("INFO", "training"):
        train(tmp_path / "soft", one_epoch)
        assert "epoch 1" in caplog.text
        assert "the attention hardly moves: alpha_variation 0.00" in caplog.text
        caplog.clear()
        train(tmp_path / "none", replace(one_epoch, decoder=replace(CONFIG.decoder, attention="none")))
        assert "epoch 1" in caplog.text
        assert "attention" not in caplog.text


def test_a_frozen_encoder_is_asked_once_per_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its annotations are kept: the second run does not ask it for the training images at all."""
    config = replace(
        CONFIG,
        encoder=EncoderOptions(name="compact", frozen=True),
        concepts=ConceptOptions(),
        cache=str(tmp_path / "cache"),
    )
    seen = 0
    original = Captioner.encode

    def counted(self: Captioner, pixels: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(pixels)
        return original(self, pixels)

    monkeypatch.setattr(Captioner, "encode", counted)
    train(tmp_path / "first", config)
    assert seen == 24 + 4 + 4  # train, validation, test
    train(tmp_path / "second", config)
    assert seen == 24 + 4 + 4 + 4  # the test split is captioned from its pixels


def test_the_decoder_is_fed_more_words_of_its_own_from_epoch_to_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []

    def recorded(*arguments: Any) -> torch.Tensor:
        shares.append(arguments[-1])
        return with_own_words(*arguments)

    monkeypatch.setattr("training.objectives.with_own_words", recorded)
    train(tmp_path / "run", replace(CONFIG, optimisation=replace(CONFIG.optimisation, scheduled_sampling=0.5)))
    assert shares == [0.25] * 3 + [0.5] * 3
    train(tmp_path / "without")
    assert len(shares) == 6


def test_a_run_goes_on_by_rewards_from_the_weights_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With almost no learning rate it ends where it began; when it is resumed, it needs the other run no more.

    There is no dropout, which annotations have before the words.
    """
    train(tmp_path / "first")
    monkeypatch.setattr(Decoder, "annotate", without_dropout)
    config = replace(
        CONFIG,
        concepts=ConceptOptions(),
        optimisation=replace(CONFIG.optimisation, epochs=0),
        self_critical=SelfCriticalOptions(start=str(tmp_path / "first"), epochs=1, learning_rate=1e-12, samples=2),
    )
    scores = train(tmp_path / "second", config)
    first, second = (load_checkpoint(tmp_path / name).captioner.decoder.state_dict() for name in ("first", "second"))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-9)
    shutil.rmtree(tmp_path / "first")
    assert train(tmp_path / "second", config) == scores


def test_rewards_follow_likelihood_from_its_best_epoch_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With almost no learning rate they end where it was best; the encoder stays altogether."""
    train(tmp_path / "first")
    rewards = SelfCriticalOptions(epochs=2, learning_rate=1e-12, samples=2, objects=1.0)
    train(tmp_path / "whole", replace(CONFIG, self_critical=rewards))
    first, whole = (load_checkpoint(tmp_path / name) for name in ("first", "whole"))
    for name, tensor in first.captioner.state_dict().items():
        atol = 0 if name.startswith("encoder.") else 1e-9
        torch.testing.assert_close(whole.captioner.state_dict()[name], tensor, rtol=0, atol=atol)
    assert not (tmp_path / "whole/annotations").exists()
    assert whole.description.provenance["rewarded"] == max(0, whole.description.provenance["epoch"] - 2)
    monkeypatch.setattr("training.run_data.cached_annotations", None)  # once is enough
    train(tmp_path / "whole", replace(CONFIG, self_critical=rewards))
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3, 4]


def test_rewards_begin_where_patience_with_likelihood_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And progress tells of them instead of the loss."""
    config = replace(
        CONFIG,
        optimisation=replace(CONFIG.optimisation, epochs=9, learning_rate=1e-12),
        validation=replace(CONFIG.validation, patience=1),
        self_critical=SelfCriticalOptions(epochs=3, learning_rate=1e-12, samples=2),
    )
    Trainer(config, tmp_path / "run", device=torch.device("cpu"), reporter=Reporter(plain=True)).run()
    state = json.loads((tmp_path / "run/checkpoints/epoch-0003/trainer.json").read_text())["trainer"]
    assert (state["epoch"], state["rewarded"], state["best_epoch"]) == (3, 1, 1)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    last = [line for line in told if line.startswith("epoch 3: ")][-1]
    assert "reward " in last
    assert "loss" not in last
    assert all("loss " in line for line in told if line.startswith("epoch 2: "))


def test_an_epoch_that_states_no_relation_scores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.scene_scores", lambda _: {"object_f1": 0.5})
    relations = ValidationOptions(beam=2, max_length=12, metric="relation_accuracy")
    train(tmp_path / "run", replace(CONFIG, validation=relations))
    best = json.loads((tmp_path / "run/best.json").read_text())
    assert best == {"checkpoint": "epoch-0001", "score": 0.0}


def without_dropout(
    decoder: Decoder, values: torch.Tensor, *, annotate: Any = Decoder.annotate, **given: Any
) -> Annotations:
    assert not decoder.training
    return cast("Annotations", annotate(decoder, values, **given))


def test_hard_attention_goes_on_from_the_weights_of_soft_attention(tmp_path: Path) -> None:
    train(tmp_path / "soft")
    config = replace(
        CONFIG,
        concepts=ConceptOptions(),
        decoder=replace(CONFIG.decoder, attention="hard"),
        hard=HardOptions(start=str(tmp_path / "soft")),
        optimisation=replace(CONFIG.optimisation, epochs=1, learning_rate=1e-12, doubly_stochastic=0.0),
    )
    train(tmp_path / "hard", config)
    soft, hard = (load_checkpoint(tmp_path / name).captioner.decoder for name in ("soft", "hard"))
    assert hard.options.attention == "hard"
    torch.testing.assert_close(soft.state_dict(), hard.state_dict(), rtol=0, atol=1e-9)


def test_rewards_do_not_begin_with_the_weights_of_another_model(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = replace(
        CONFIG,
        concepts=ConceptOptions(),
        optimisation=replace(CONFIG.optimisation, epochs=0),
        self_critical=SelfCriticalOptions(start=str(tiny_checkpoint), epochs=1, learning_rate=1e-3),
    )
    with pytest.raises(ConfigError, match=r"is another model \(decoder.attention_width was 16, is 8.*words was"):
        train(tmp_path / "run", config)


def test_photographs_without_a_test_split_are_scored_on_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = ["a red dog", "a dog on the left", "two dogs"]
    for split, count in (("train", 8), ("validation", 3)):
        names = [f"{split}{number}.png" for number in range(count)]
        for name, picture in zip(names, patchworks(count, seed=len(split)), strict=True):
            Image.fromarray(picture).save(tmp_path / name)
        lines = [json.dumps({"image": name, "captions": captions}) for name in names]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = JsonlData(kind="jsonl", train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl"))
    listed = 0

    def counted(options: JsonlData) -> dict[str, tuple[Photo, ...]]:
        nonlocal listed
        listed += 1
        return read_photos(options)

    monkeypatch.setattr("training.data.read_photos", counted)
    scores = train(tmp_path / "run", replace(CONFIG, data=data))
    assert listed == 1  # for all splits
    assert "validation/CIDEr-D" in scores
    assert not any(name.startswith("test/") for name in scores)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"hard": HardOptions(samples=2)}, r'\[hard\] is for attention = "hard", not "soft"'),
        ({"validation": ValidationOptions(decode_mode="argmax")}, 'decode_mode = "argmax" is for attention = "hard"'),
        ({"encoder": EncoderOptions(name="compact", frozen=True)}, "a frozen encoder learns no concepts"),
        ({"decoder": DecoderOptions(annotation_width=8)}, "set annotation_width to 0"),
        (
            {"decoder": DecoderOptions(attention="hard"), "hard": HardOptions(start="run")},
            "hard.start has learned the concepts already",
        ),
        (
            {
                "data": JsonlData(kind="jsonl", train="train.jsonl", validation="validation.jsonl"),
                "validation": ValidationOptions(metric="relation_accuracy"),
            },
            "photographs have no relation_accuracy",
        ),
        (
            {"self_critical": REWARDS, "decoder": DecoderOptions(attention="hard")},
            r"\[self_critical\] knows soft attention and none",
        ),
        ({"self_critical": replace(REWARDS, start="run")}, "set optimisation.epochs to 0"),
        (
            {"self_critical": replace(REWARDS, start="run"), "optimisation": OptimisationOptions(epochs=0)},
            "self_critical.start has learned the concepts already",
        ),
        (
            {
                "self_critical": replace(REWARDS, start="run"),
                "concepts": ConceptOptions(),
                "optimisation": OptimisationOptions(epochs=0, label_smoothing=0.1),
            },
            "rewards know no",
        ),
        ({"optimisation": OptimisationOptions(epochs=0)}, "optimisation.epochs must be at least 1"),
        (
            {
                "data": JsonlData(kind="jsonl", train="train.jsonl", validation="validation.jsonl"),
                "self_critical": replace(REWARDS, relations=1.0),
            },
            "of photographs it is not known what is true",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        replace(CONFIG, **changed)
