"""Several processes train as one does; here two, over gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn import functional as F

from tests.bundles import save_patchworks
from tests.toys import toy_vocabulary
from tests.training.test_trainer import CONFIG, train
from training.augmentation import AugmentationOptions
from training.checkpoint import load_checkpoint, load_trainer
from training.concepts import Concepts
from training.config import ConceptOptions, load_config
from training.data import Split
from training.datasets import JsonlData
from training.distribution import is_main, joined, share, total_gradients
from training.hard_attention import Baseline, HardOptions, variational_loss
from training.losses import doubly_stochastic_penalty, per_word
from training.model import Choice, Decoder, DecoderOptions
from training.trainer import Trainer

CPU = torch.device("cpu")

TOML = """
cache = "{folder}/cache"
data = {{ kind = "jsonl", train = "{folder}/train.jsonl", validation = "{folder}/validation.jsonl" }}
preprocessing = {{ size = 32, geometry = "squash", mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }}
vocabulary = {{ min_count = 1 }}
encoder = {{ name = "compact", frozen = true }}
decoder = {{ attention_width = 8, embedding_width = 8, hidden_width = 8, dropout = 0.0 }}
validation = {{ beam = 2, max_length = 12 }}
[optimisation]
epochs = 3
batch_images = 3
captions_per_image = 2
accumulate = 2
learning_rate = 0.01
label_smoothing = 0.1
average_decay = 0.5
warmup_steps = 2
"""
"""Batches of 3 images, so 2 for one process and 1 for the other; the last batch has 2."""


def write_photographs(folder: Path) -> None:
    """41 images to train on and 3 to validate on, with captions of 2 to 9 words."""
    words = ["a", "red", "dog", "on", "the", "left", "of", "two", "cats"]
    for split, images in (("train", 41), ("validation", 3)):
        pictures = save_patchworks(folder / split, images)
        captions = [
            [" ".join(words[place % 7 :][: 2 + (place * row) % 8]) for row in (1, 3, 5)] for place in range(images)
        ]
        lines = [
            json.dumps({"image": str(path), "captions": said}) for path, said in zip(pictures, captions, strict=True)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


def launch(work: Callable[..., Any], *arguments: Any) -> dict[int, Any]:
    """What two processes return, by their number; torchrun is a command around this."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    answers: dict[int, Any] = elastic_launch(config, work)(*arguments)
    return answers


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    """Weights, losses and scores of a run, though neither images nor words are shared out evenly."""
    write_photographs(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(TOML.format(folder=tmp_path))
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(alone, load_config(path))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [*torchrun, "-m", "training", path, "--out", together, "--device", "cpu", "--quiet"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    # Two epochs of nothing much teach no attention: the one error there may be, after everything is written.
    assert done.returncode == 0 or "the attention does not move" in done.stderr, done.stderr
    assert done.stdout.count("validation/CIDEr-D") == 1  # one process speaks for both
    weights, shared = (load_checkpoint(folder).captioner.state_dict() for folder in (alone, together))
    # Adam divides by the root of tiny second moments, and so magnifies what sums of another order round otherwise.
    torch.testing.assert_close(shared, weights, rtol=1e-4, atol=1e-4)
    histories = [history(folder) for folder in (alone, together)]
    assert [line.keys() for line in histories[0]] == [line.keys() for line in histories[1]]
    assert sum("train/loss" in line for line in histories[0]) == 2
    for line, other in zip(*histories, strict=True):
        assert other == pytest.approx(line, rel=1e-5, abs=1e-5)


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """Bit by bit, with noise of their own, a trained encoder, and a batch that waited for the next epoch's first."""
    write_photographs(tmp_path)
    launch(interrupt_and_resume, tmp_path)
    assert load_trainer(tmp_path / "interrupted")[1]["optimisation"]["pending"] == 1
    whole, resumed = (tmp_path / name / "checkpoints/epoch-0002" for name in ("whole", "resumed"))
    for file in ("model.safetensors", "trainer.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file
    assert history(tmp_path / "whole") == history(tmp_path / "resumed")


def interrupt_and_resume(folder: Path) -> None:
    config = replace(
        CONFIG,
        data=JsonlData(kind="jsonl", train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl")),
        concepts=ConceptOptions(epochs=1, weight=0.1, least_share=0.2),
        augmentation=AugmentationOptions(),
        optimisation=replace(CONFIG.optimisation, batch_images=9, accumulate=2, optimiser="muon"),
    )
    with joined(CPU):
        train(folder / "whole", config)
        with patch.object(Trainer, "train_step", dying(Trainer.train_step, at=8)), suppress(KeyboardInterrupt):
            train(folder / "resumed", config)
        if is_main():
            shutil.copytree(folder / "resumed/checkpoints/epoch-0001", folder / "interrupted")
        train(folder / "resumed", config)


def dying(step: Callable[..., float], *, at: int) -> Callable[..., float]:
    """Training steps, of which one is interrupted."""
    calls = count(1)

    def until_then(*arguments: object, **named: object) -> float:
        if next(calls) == at:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    return until_then


@pytest.mark.slow
def test_the_shares_of_every_loss_add_up_to_that_of_the_whole_batch() -> None:
    """The gradients of each term, and the baseline of hard attention: of five images, three and two."""
    whole = gradients(slice(None))
    assert all(gradient.abs().max() > 1e-3 for gradient in whole.values())
    for summed in launch(gradients_of_a_share).values():
        found = {name: torch.tensor(gradient, dtype=torch.float64) for name, gradient in summed.items()}
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-7)  # the concepts' loss is float32


def gradients_of_a_share() -> dict[str, list[float]]:
    with joined(CPU):
        return {name: gradient.tolist() for name, gradient in gradients(share()).items()}


def gradients(images: slice) -> dict[str, Tensor]:
    """Of every loss of some of five images, summed over the processes, flat; and hard attention's baseline."""
    torch.manual_seed(0)
    captions = [tuple(words) for words in ("a", "abcde", "b", "ca", "dbcab")]
    mask = (torch.arange(6) <= torch.tensor([[len(words)] for words in captions]))[:, None][images]
    tokens, following = torch.randint(9, (2, 5, 1, 6))[:, images]
    options = DecoderOptions(attention="hard", attention_width=4, embedding_width=3, hidden_width=4, dropout=0.0)
    decoder = Decoder(3, 9, options).double()
    values = 3 * torch.randn(5, 4, 3, dtype=torch.float64)
    split = Split(values.numpy(), [(words,) for words in captions])
    concepts = Concepts(3, split, toy_vocabulary(9), ConceptOptions(weight=1, least_share=0)).double()
    sampled = torch.tensor([True, True, False, True, False])[images]
    choices = [Choice(noise, sampled) for noise in torch.randn(6, 5, 1, 4, dtype=torch.float64)[:, images]]

    targets, annotations = following[mask], decoder.annotate(values[images])
    soft = decoder.teacher_forced(tokens, mask, annotations)
    hard = decoder.teacher_forced(tokens, mask, annotations, choices)
    baseline = Baseline(value=-1.0, updates=1)
    losses = {
        "words": per_word(F.cross_entropy(soft.logits, targets, reduction="sum"), mask),
        "penalty": doubly_stochastic_penalty(soft.alphas, mask),
        "bound": variational_loss(hard, targets, mask, choices, baseline, HardOptions())[1],
        "concepts": concepts.loss(values[images], torch.arange(5)[images]),
    }
    parameters = [*decoder.parameters(), *concepts.parameters()]
    found = {"baseline": torch.tensor([baseline.value], dtype=torch.float64)}
    for name, loss in losses.items():
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward(loss, retain_graph=True)
        total_gradients(parameters)
        found[name] = torch.cat([part.grad.flatten() for part in parameters if part.grad is not None])
    return found
