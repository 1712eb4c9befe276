"""How fast training steps are, beside the common tutorial loop: `python -m benchmarks.training [CONFIG]`.

Measured: captions trained per second of wall time with a frozen encoder on a CPU, by three sides in one process:

tutorial : `benchmarks.tutorial_loop`, which encodes an image for every caption
pixels : our trainer's step on pixels; an image is encoded once for all its captions
cached : our trainer's step on annotations that were computed before, as `saccade train` does it

A step is everything from images and words in memory, or annotations on the disk, to moved weights: forming the batch,
encoding, loss, gradients, optimiser and, on our sides, the average of the weights. All sides have the encoder, the
sizes, the initial weights, the captions per step and the loss of the configuration; ours also have its precision, while
the tutorial's is float32. The decoder is of the paper's form whatever the configuration says, with its widths and
dropout, so that both sides can compute the same. Weights, pixels and words are random, as the time does not depend on
them; a caption has 8 to 20 words, 12 on average.

Each round trains one batch on every side, one side after the other, so that whatever else the machine does meets all
of them; after the warm-up, rates are medians over the rounds, with the lowest and the highest. Together the rounds are
an epoch: every side trains every caption once.

Left out: reading and decoding image files, which all sides do before; validation and checkpoints, which the tutorials
do in other ways; and the computation of the cached annotations, which happens once for all epochs and all runs. Its
seconds are reported beside.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from benchmarks.tutorial_loop import TutorialLoop, caption_batches
from saccade.errors import ConfigError
from saccade.progress import Reporter
from saccade.structure import unstructure
from saccade.vocabulary import END, PAD, START, UNK, Vocabulary
from training.config import TrainingConfig, load_config
from training.data import Split, batches
from training.environment import environment
from training.features import cached_annotations
from training.hard_attention import Baseline
from training.model import Captioner, DecoderOptions, build_captioner
from training.objectives import Likelihood
from training.optimisation import Optimisation
from training.trainer import Trainer

Rates = Mapping[str, Sequence[float]]
"""Captions per second of every round, by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedOptions:
    """words : of the vocabulary; rounds : batches that count; warm_up : batches before them that do not."""

    words: int = 3000
    rounds: int = 10
    warm_up: int = 2

    def __post_init__(self) -> None:
        least = {"words": 5, "rounds": 1, "warm_up": 0}
        problems = [
            f"{name} must be at least {value}, got {getattr(self, name)}"
            for name, value in least.items()
            if getattr(self, name) < value
        ]
        if problems:
            raise ConfigError("invalid benchmark: " + "; ".join(problems))


def measure(config: TrainingConfig, options: SpeedOptions) -> tuple[Rates, float]:
    """Rates of the three sides, and the seconds that computing the cached annotations took.

    config : one that is `comparable`
    """
    torch.manual_seed(config.optimisation.seed)
    vocabulary = Vocabulary((PAD, START, END, UNK, *(f"word{number}" for number in range(options.words - 4))))
    split = random_split(config, vocabulary, batch_count=options.warm_up + options.rounds)
    captioner = random_captioner(config, vocabulary, split)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        annotations = cached_annotations(
            captioner, split.images, split.identities, config.preprocessing, folder=Path(folder)
        )
        seconds = time.perf_counter() - began
        sides = {
            "tutorial": _tutorial(captioner, config, split, vocabulary),
            "pixels": _ours(captioner, config, split, vocabulary),
            "cached": _ours(captioner, config, replace(split, images=annotations), vocabulary),
        }
        return alternate(sides, options), seconds


def comparable(config: TrainingConfig) -> TrainingConfig:
    """The configuration with a frozen encoder of random weights, a decoder of the paper's form and a step a batch."""
    decoder = config.decoder
    return TrainingConfig(
        data=config.data,
        preprocessing=config.preprocessing,
        encoder=replace(config.encoder, weights="none", frozen=True),
        decoder=DecoderOptions(
            attention_width=decoder.attention_width,
            embedding_width=decoder.embedding_width,
            hidden_width=decoder.hidden_width,
            dropout=decoder.dropout,
        ),
        optimisation=replace(config.optimisation, encoder_learning_rate=None, accumulate=1),
    )


def random_split(config: TrainingConfig, vocabulary: Vocabulary, *, batch_count: int) -> Split:
    """Random pixels with captions of 8 to 20 random words, enough for so many batches."""
    rng = np.random.default_rng(config.optimisation.seed)
    size, images = config.preprocessing.size, batch_count * config.optimisation.batch_images
    words = np.array(vocabulary.words[4:])
    lengths = 8 + rng.poisson(4, (images, config.optimisation.captions_per_image)).clip(max=12)
    return Split(
        rng.integers(256, size=(images, size, size, 3), dtype=np.uint8),
        [tuple(tuple(rng.choice(words, length).tolist()) for length in references) for references in lengths],
        identities=[f"random image {number}" for number in range(images)],
    )


def random_captioner(config: TrainingConfig, vocabulary: Vocabulary, split: Split) -> Captioner:
    """A captioner with random weights and, in its encoder, the batch statistics of some of the images.

    Without them random networks' annotations vanish with depth, and arithmetic with numbers near zero takes longer.
    """
    captioner = build_captioner(
        config.encoder,
        config.decoder,
        words=len(vocabulary),
        mean=config.preprocessing.mean,
        std=config.preprocessing.std,
    )
    trunk = captioner.encoder.trunk.train()
    for layer in trunk.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # keeps the mean of what it sees
    with torch.no_grad():
        captioner.encode(torch.from_numpy(split.images[:8]))
    return captioner.train()


def alternate(sides: Mapping[str, Iterator[int]], options: SpeedOptions) -> Rates:
    """Let every side train a batch in every round. `next` of a side trains one and tells its number of captions."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.warm_up + options.rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            captions = next(side)
            rates[name].append(captions / (time.perf_counter() - began))
    return {name: found[options.warm_up :] for name, found in rates.items()}


def ratios(rates: Rates) -> dict[str, float]:
    """How many times the tutorial's median rate our sides reach."""
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {name: medians[name] / medians["tutorial"] for name in ("pixels", "cached")}


def _tutorial(captioner: Captioner, config: TrainingConfig, split: Split, vocabulary: Vocabulary) -> Iterator[int]:
    options = config.optimisation
    loop = TutorialLoop(captioner, options)
    captions = options.batch_images * options.captions_per_image
    for batch in caption_batches(split, vocabulary, np.random.default_rng(options.seed), captions=captions):
        loop.step(batch)
        yield len(batch.captions)


def _ours(captioner: Captioner, config: TrainingConfig, split: Split, vocabulary: Vocabulary) -> Iterator[int]:
    options = config.optimisation
    captioner = deepcopy(captioner)
    captioner.encoder.to(memory_format=torch.channels_last)  # as the trainer does
    trainer = Trainer(config, Path(), device=torch.device("cpu"), reporter=Reporter(quiet=True))
    objective = Likelihood(config, baseline=Baseline())
    optimisation = Optimisation(captioner, options, batches=len(split) // options.batch_images)
    epoch = batches(
        split,
        vocabulary,
        np.random.default_rng(options.seed),
        images=options.batch_images,
        captions_per_image=options.captions_per_image,
    )
    for batch in epoch:
        trainer.train_step(captioner, optimisation, objective, batch)
        yield int(batch.mask.any(dim=2).sum())


def _table(rates: Rates) -> str:
    lines = ["captions/s    median    lowest   highest     ratio"]
    found = {"tutorial": 1.0} | ratios(rates)
    for name, ratio in found.items():
        figures = (statistics.median(rates[name]), min(rates[name]), max(rates[name]))
        lines.append(f"{name:<10}" + "".join(f"{figure:>10.1f}" for figure in figures) + f"{ratio:>10.2f}")
    return "\n".join(lines)


def _hardware() -> dict[str, Any]:
    """Cores, and what else keeps them busy."""
    return {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}


@click.command()
@click.argument(
    "config", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="configs/flickr8k-soft.toml"
)
@click.option("--words", type=click.IntRange(min=5), default=3000, show_default=True, help="Size of the vocabulary.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Batches of each side that count."
)
@click.option(
    "--warm-up", type=click.IntRange(min=0), default=2, show_default=True, help="Batches of each side before those."
)
def main(config: Path, words: int, rounds: int, warm_up: int) -> None:
    """Captions trained per second, beside the common tutorial loop, with the sizes of CONFIG; its data are not read.

    CONFIG is configs/flickr8k-soft.toml by default. The last line is JSON.
    """
    options = SpeedOptions(words=words, rounds=rounds, warm_up=warm_up)
    measured, hardware = comparable(load_config(config)), _hardware()
    rates, seconds = measure(measured, options)
    click.echo(_table(rates))
    click.echo(f"the cached annotations took {seconds:.1f} s to compute, once for all epochs")
    parts = ("preprocessing", "encoder", "decoder", "optimisation")
    record = {
        "benchmark": "training",
        "ratios": ratios(rates),
        "captions_per_s": rates,
        "annotating_s": seconds,
        **asdict(options),
        **{name: unstructure(getattr(measured, name)) for name in parts},
        "environment": environment(torch.device("cpu")) | hardware,
    }
    click.echo(json.dumps(record))


if __name__ == "__main__":
    main()
