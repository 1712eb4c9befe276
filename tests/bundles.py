"""A tiny bundle of random weights: all that a real one has, made in seconds."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from export.bundle import ExportOptions, export_bundle
from saccade.preprocessing import PreprocessSpec
from saccade.search import SearchOptions
from saccade.vocabulary import END, PAD, START, UNK, Vocabulary
from training.checkpoint import FORMAT_VERSION, Description, save_checkpoint
from training.decoding import TorchDecoder
from training.encoders import EncoderOptions
from training.model import Captioner, DecoderOptions, build_captioner

SPEC = PreprocessSpec(size=64, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
_WORDS = "a red green blue dog's cat on the left of two ball sits कुत्ता dog 猫"
VOCABULARY = Vocabulary((PAD, START, END, UNK, *_WORDS.split()))
MAX_LENGTH = 12
CPU_BACKENDS = ("openvino", "ort", "pytorch")
"""Those that run wherever the tests run."""


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint. Shared by all tests: copy it to change it."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """The bundle of `tiny_checkpoint`, with its weights. Shared by all tests: copy it to change it."""
    folder = tiny_checkpoint.parent / "bundle"
    export_bundle(tiny_checkpoint, folder, ExportOptions())
    return folder


@pytest.fixture(scope="session")
def hard_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny_checkpoint`, with hard attention."""
    return make_checkpoint(tmp_path_factory.mktemp("hard") / "checkpoint", attention="hard")


@pytest.fixture(scope="session")
def hard_bundle(hard_checkpoint: Path) -> Path:
    """The bundle of `hard_checkpoint`, with its weights; where it looks is sampled unless it is told otherwise."""
    folder = hard_checkpoint.parent / "bundle"
    export_bundle(hard_checkpoint, folder, ExportOptions(decode_mode="sample"))
    return folder


@pytest.fixture(scope="session")
def pooled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hard attention to 36 places, which are pooled from 16 cells; expected annotations unless it is told otherwise."""
    folder = tmp_path_factory.mktemp("pooled")
    export_bundle(make_checkpoint(folder / "checkpoint", attention="hard", grid=6), folder / "bundle", ExportOptions())
    return folder / "bundle"


def make_checkpoint(
    folder: Path,
    attention: Literal["soft", "hard"] = "soft",
    *,
    annotation_width: int = 0,
    grid: int = 0,
    first_seed: int = 0,
) -> Path:
    """Write a checkpoint of random weights with which different pictures get different captions."""
    made = (_random_captioner(seed, attention, annotation_width, grid) for seed in count(first_seed))
    return save_captioner(folder, next(filter(_is_talkative, made)))


def save_captioner(folder: Path, captioner: Captioner) -> Path:
    """Write the checkpoint of a captioner of `VOCABULARY` and `SPEC`."""
    description = Description(
        format_version=FORMAT_VERSION,
        encoder=captioner.encoder.options,
        decoder=captioner.decoder.options,
        preprocessing=SPEC,
        vocabulary=VOCABULARY.as_json(),
        max_length=MAX_LENGTH,
        provenance={"weights": "random"},
        scores={"validation/CIDEr-D": 0.0},
    )
    save_checkpoint(folder, captioner, description)
    return folder


def _is_talkative(captioner: Captioner) -> bool:
    """Whether its captions of a dozen pictures differ, and some end, some do not, some hold `<unk>` and some do not."""
    decoder = TorchDecoder(captioner, VOCABULARY)
    best = [found[0] for found in decoder.search(patchworks(12, seed=1), SearchOptions(max_length=MAX_LENGTH))]
    return (
        len({one.tokens for one in best}) >= 6
        and len({one.truncated for one in best}) == 2
        and len({VOCABULARY.unk in one.tokens for one in best}) == 2
    )


def _random_captioner(seed: int, attention: Literal["soft", "hard"], annotation_width: int, grid: int) -> Captioner:
    """Build a captioner that sees differences.

    Fresh weights hardly do: the annotations vary little around their mean. So the mean is subtracted where states and
    gates are made from them, and what remains is amplified.
    """
    encoder = EncoderOptions(name="compact", grid=grid)
    options = DecoderOptions(
        attention=attention,
        annotation_width=annotation_width,
        attention_width=16,
        embedding_width=24,
        hidden_width=32,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        captioner = build_captioner(encoder, options, words=len(VOCABULARY), mean=SPEC.mean, std=SPEC.std)
        pictures = torch.from_numpy(patchworks(32, seed=0))
        for module in captioner.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # take over the statistics of the next batch
        captioner.annotate(pictures)
        mean = captioner.eval().annotate(pictures).values.mean(dim=(0, 1))
        decoder = captioner.decoder
        for initial in (decoder.initial_hidden, decoder.initial_cell):
            assert isinstance(initial, nn.Linear)
            initial.weight *= 8
            initial.bias.copy_(-initial.weight @ mean)
        decoder.from_context.weight *= 4
        decoder.from_word.bias.sub_(decoder.from_context.weight @ mean / 2)
        decoder.embedding.weight *= 10
        decoder.attention.energy.weight *= 10
        decoder.output.weight *= 8
        decoder.output.bias[[VOCABULARY.pad, VOCABULARY.start]] = -30  # as in training, which never asks for them
    return captioner


def patchworks(count: int, *, seed: int) -> NDArray[np.uint8]:
    """Pictures of 4 x 4 patches in random colours, uint8 (count, 64, 64, 3)."""
    patches = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return patches.repeat(16, axis=1).repeat(16, axis=2)


def save_patchworks(folder: Path, count: int, *, seed: int = 1) -> list[Path]:
    """Write patchworks as 00.png, 01.png, ...; the preprocessing of the tiny bundle leaves them as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:02d}.png" for index in range(count)]
    for path, picture in zip(paths, patchworks(count, seed=seed), strict=True):
        Image.fromarray(picture).save(path)
    return paths
