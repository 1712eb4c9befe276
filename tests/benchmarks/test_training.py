"""The benchmark of training: both sides compute the same, and the figures are what the clock says."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import training as benchmark
from benchmarks.training import SpeedOptions, alternate, comparable, random_captioner, random_split, ratios
from benchmarks.tutorial_loop import TutorialLoop, caption_batches, tutorial_weights
from saccade.errors import ConfigError
from saccade.progress import Reporter
from saccade.vocabulary import Vocabulary
from tests.toys import toy_vocabulary
from training.config import TrainingConfig, load_config
from training.data import Split, batches
from training.encoders import EncoderOptions
from training.hard_attention import Baseline
from training.model import Captioner
from training.objectives import Likelihood
from training.optimisation import Optimisation
from training.trainer import Trainer

CONFIG = """
[data]
kind = "scenes"
train = { first_seed = 0, count = 1 }
validation = { first_seed = 1, count = 1 }
test = { first_seed = 2, count = 1 }

[preprocessing]
size = 64
geometry = "squash"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[encoder]
name = "compact"

[decoder]
attention = "hard"
query = "hidden+word"
gate = "vector"
output = "linear"
attention_width = 7
embedding_width = 6
hidden_width = 5
dropout = 0.0

[optimisation]
epochs = 1
batch_images = 4
captions_per_image = 3
accumulate = 2
encoder_learning_rate = 1e-4
gradient_clip = 1e9
"""
"""Much of it is what `comparable` has to change."""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def config(config_file: Path) -> TrainingConfig:
    return comparable(load_config(config_file))


def captioner_for(config: TrainingConfig, vocabulary: Vocabulary, split: Split) -> Captioner:
    torch.manual_seed(0)
    captioner = random_captioner(config, vocabulary, split)
    for weight in captioner.decoder.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # biases too, which begin as zeros
    return captioner


@pytest.mark.parametrize(("smoothing", "penalty"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1.0)])
def test_the_tutorial_loop_has_our_trainers_loss_and_gradients(
    config: TrainingConfig, smoothing: float, penalty: float
) -> None:
    """A batch is all there is, so that both train the same captions, each side in its own order."""
    options = replace(config.optimisation, label_smoothing=smoothing, doubly_stochastic=penalty)
    config, vocabulary = replace(config, optimisation=options), toy_vocabulary(20)
    split = random_split(config, vocabulary, batch_count=1)
    ours = captioner_for(config, vocabulary, split)
    tutorial = TutorialLoop(ours, options)
    (batch,) = batches(split, vocabulary, np.random.default_rng(0), images=4, captions_per_image=3)
    trainer = Trainer(config, Path(), device=torch.device("cpu"), reporter=Reporter(quiet=True))
    objective = Likelihood(config, baseline=Baseline())
    likelihood = trainer.train_step(ours, Optimisation(ours, options, batches=1), objective, batch)
    (captions,) = caption_batches(split, vocabulary, np.random.default_rng(1), captions=12)
    loss = tutorial.step(captions)
    if not (smoothing or penalty):
        assert loss == pytest.approx(likelihood, rel=1e-6)
    gradients = tutorial_weights(
        {name: weight.grad for name, weight in ours.decoder.named_parameters() if weight.grad is not None},
        hidden_width=5,
        attention_width=7,
    )
    found = {name: weight.grad for name, weight in tutorial.decoder.named_parameters()}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
        assert gradient.abs().max() > 1e-4, name  # zeros would agree whatever the loss were


def test_the_tutorial_loop_leaves_our_weights_alone(config: TrainingConfig) -> None:
    vocabulary = toy_vocabulary(20)
    split = random_split(config, vocabulary, batch_count=2)
    captioner = captioner_for(config, vocabulary, split)
    before = deepcopy(captioner.state_dict())
    tutorial = TutorialLoop(captioner, config.optimisation)
    first, second = (
        tutorial.step(batch) for batch in caption_batches(split, vocabulary, np.random.default_rng(0), captions=12)
    )
    assert first != second
    assert all(torch.equal(tensor, before[name]) for name, tensor in captioner.state_dict().items())
    assert not torch.equal(tutorial.decoder.output.weight, captioner.decoder.output.weight)


def test_every_caption_is_trained_once_beside_its_image(config: TrainingConfig) -> None:
    vocabulary = toy_vocabulary(20)
    split = random_split(config, vocabulary, batch_count=3)
    expected = sorted(
        (image.tobytes(), vocabulary.encode(words))
        for image, references in zip(split.images[:], split.captions, strict=True)
        for words in references
    )
    found = []
    for batch in caption_batches(split, vocabulary, np.random.default_rng(0), captions=12):
        assert len(batch.images) == 12
        for image, tokens, length in zip(*batch, strict=True):
            assert (tokens[0], tokens[length]) == (vocabulary.start, vocabulary.end)
            assert (tokens[length + 1 :] == vocabulary.pad).all()
            found.append((image.permute(1, 2, 0).numpy().tobytes(), tokens[1:length].tolist()))
    assert sorted(found) == expected


def test_random_captions_have_the_lengths_that_are_told(config: TrainingConfig) -> None:
    split = random_split(config, toy_vocabulary(20), batch_count=100)
    lengths = [len(words) for references in split.captions for words in references]
    assert min(lengths) == 8
    assert 16 < max(lengths) <= 20
    assert statistics.mean(lengths) == pytest.approx(12, abs=0.3)


def test_random_annotations_are_as_large_as_trained_ones(config: TrainingConfig) -> None:
    """Those of a fresh mobilenet_v2 are about 1e-9, which float16 rounds to zero."""
    config = replace(config, encoder=EncoderOptions(name="mobilenet_v2", frozen=True))
    vocabulary = toy_vocabulary(20)
    split = random_split(config, vocabulary, batch_count=2)
    captioner = random_captioner(config, vocabulary, split)
    with torch.no_grad():
        values = captioner.encode(torch.from_numpy(split.images[:]))
    assert 0.05 < values.mean() < 1


def test_what_a_tutorial_cannot_do_is_taken_out_of_the_configuration(config_file: Path) -> None:
    loaded = load_config(config_file)
    config = comparable(loaded)
    assert (config.encoder.name, config.encoder.frozen, config.encoder.weights) == ("compact", True, "none")
    assert (config.decoder.attention, config.decoder.gate, config.decoder.hidden_width) == ("soft", "scalar", 5)
    assert config.optimisation == replace(loaded.optimisation, accumulate=1, encoder_learning_rate=None)


def test_rates_are_captions_by_the_seconds_of_their_side_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    order = []

    def side(name: str, *seconds: float) -> Iterator[int]:
        nonlocal clock
        for each in seconds:
            order.append(name)
            clock += each
            yield 12

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    sides = {
        "tutorial": side("tutorial", 100, 4, 6, 12),
        "pixels": side("pixels", 50, 2, 3, 1),
        "cached": side("cached", 9, 1, 1, 0.5),
    }
    rates = alternate(sides, SpeedOptions(rounds=3, warm_up=1))
    assert rates == {"tutorial": [3, 2, 1], "pixels": [6, 4, 12], "cached": [12, 12, 24]}
    assert order == ["tutorial", "pixels", "cached"] * 4
    assert ratios(rates) == {"pixels": 3, "cached": 6}


def test_impossible_options_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"words must be at least 5, got 4; rounds must be at least 1, got 0$"):
        SpeedOptions(words=4, rounds=0)


def test_the_last_line_is_json_that_tells_what_the_table_shows(config_file: Path) -> None:
    outcome = CliRunner().invoke(
        benchmark.main, [str(config_file), "--words", "30", "--rounds", "3", "--warm-up", "1"], catch_exceptions=False
    )
    assert outcome.exit_code == 0
    *_, last = outcome.stdout.splitlines()
    record: dict[str, Any] = json.loads(last)
    medians = {name: statistics.median(rates) for name, rates in record["captions_per_s"].items()}
    assert list(medians) == ["tutorial", "pixels", "cached"]
    assert all(len(rates) == 3 for rates in record["captions_per_s"].values())
    for name, ratio in record["ratios"].items():
        assert ratio == pytest.approx(medians[name] / medians["tutorial"])
        row = next(line.split() for line in outcome.stdout.splitlines() if line.startswith(name))
        assert (float(row[1]), float(row[-1])) == (round(medians[name], 1), round(ratio, 2))
    assert (record["words"], record["encoder"]["name"], record["optimisation"]["accumulate"]) == (30, "compact", 1)
    assert {"saccade", "torch", "commit", "threads", "device", "cores"} <= record["environment"].keys()


def test_the_default_configuration_is_there() -> None:
    (argument,) = (parameter for parameter in benchmark.main.params if parameter.name == "config")
    load_config(Path(__file__).parent.parent.parent / str(argument.default))
