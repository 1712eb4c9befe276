"""A pair of modules as sgrvinod's tutorial has them, with random weights that say something, and its search."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks import tutorial_search
from benchmarks.imported import add_clock
from benchmarks.tutorial_search import Attention, DecoderWithAttention, Encoder
from tests.bundles import patchworks

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


class Size(NamedTuple):
    """Widths, and how strongly words depend on the image, on the state, on the words before and on the clock."""

    architecture: str
    attention: int
    embedding: int
    hidden: int
    words: int
    grid: int
    image: float
    logits: float
    recurrent: float
    end: float


SIZES = {
    "small": Size("resnet18", 16, 12, 20, 40, 14, 8, 4, 3, 5),
    "medium": Size("resnet50", 32, 24, 40, 300, 4, 4, 4, 3, 6),
    "large": Size("resnet101", 512, 512, 512, 9490, 4, 2, 12, 2, 9),
}
SIDE = 64
"""Of the squashed images: a ResNet's smallest grid of more than one cell."""


class Tutorial(NamedTuple):
    encoder: Encoder
    decoder: DecoderWithAttention
    word_map: dict[str, int]


class Caption(NamedTuple):
    """words; score, sum of log-probs; margin : by how much each decision of the search was clear, at least"""

    words: tuple[int, ...]
    score: float
    is_truncated: bool
    margin: float


def pictures(count: int) -> list[bytes]:
    """Pictures that are no squares, as PNG files."""
    return [_png(Image.fromarray(each).resize((80, 56))) for each in patchworks(count, seed=0)]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def squashed(content: bytes, side: int) -> NDArray[np.uint8]:
    """What scipy's old `imresize` makes of a picture: the horizontal pass comes first."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    wide = picture.resize((side, picture.height), Image.Resampling.BILINEAR)
    return np.array(wide.resize((side, side), Image.Resampling.BILINEAR))


def normalised(content: bytes, side: int = SIDE) -> Tensor:
    pixels = torch.from_numpy(squashed(content, side)).double() / 255
    return ((pixels - MEAN) / STD).permute(2, 0, 1)


def make_tutorial(size: Size) -> Tutorial:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        encoder = Encoder(size.architecture, size.grid)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # take over the statistics of the next batch
            if isinstance(module, BasicBlock | Bottleneck):  # deep random networks amplify what rounding does
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.constant_(last.weight, 0.2)
        images = torch.stack([normalised(content) for content in pictures(32)]).float()
        encoder(torch.cat([images[:24], torch.randn_like(images[24:])]))  # export shows noise to it as well
        mean = encoder.eval()(images).mean((0, 1, 2))
        decoder = DecoderWithAttention(size.attention, size.embedding, size.hidden, size.words, len(mean)).eval()
        for layer in (decoder.init_h, decoder.init_c):
            layer.weight *= size.image
            layer.bias.copy_(-layer.weight @ mean)
        decoder.fc.weight *= size.logits
        decoder.decode_step.weight_hh *= size.recurrent
        decoder.decode_step.weight_ih[:, : size.embedding] *= size.recurrent
        add_clock(decoder, end=size.end)
    words = ["<pad>", *(f"word{number}" for number in range(1, size.words - 3)), "<unk>", "<start>", "<end>"]
    return Tutorial(encoder, decoder, {word: number for number, word in enumerate(words)})


@contextmanager
def tutorial_names() -> Iterator[None]:
    """The modules are `models.Encoder` and so on, as they are in the tutorial."""
    module = ModuleType("models")
    module.__file__ = tutorial_search.__file__  # old files hold the source
    classes: tuple[Any, ...] = (Encoder, Attention, DecoderWithAttention)
    names = [each.__module__ for each in classes]
    for each in classes:
        setattr(module, each.__name__, each)
        each.__module__ = "models"
    sys.modules["models"] = module
    try:
        yield
    finally:
        del sys.modules["models"]
        for each, name in zip(classes, names, strict=True):
            each.__module__ = name


def save(content: Any, path: Path, *, is_legacy: bool = False) -> Path:
    with tutorial_names():
        torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    return path


def save_tutorial(tutorial: Tutorial, folder: Path, *, is_legacy: bool = False) -> tuple[Path, Path]:
    """A checkpoint as the tutorial's `save_checkpoint` writes it, with an optimiser in use, and the word map."""
    optimiser = torch.optim.Adam(tutorial.decoder.parameters())
    optimiser.param_groups[0]["lr"] = 0.0
    for parameter in tutorial.decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad()
    content = {
        "epoch": 7,
        "epochs_since_improvement": 0,
        "bleu-4": 0.25,
        "encoder": tutorial.encoder,
        "decoder": tutorial.decoder,
        "encoder_optimizer": None,
        "decoder_optimizer": optimiser,
    }
    word_map = folder / "WORDMAP.json"
    word_map.write_text(json.dumps(tutorial.word_map))
    return save(content, folder / "BEST_checkpoint.pth.tar", is_legacy=is_legacy), word_map


class StraightforwardSearch:
    """The tutorial's search in float64, one image at a time: lists, and a beam that shrinks with what ends."""

    def __init__(self, tutorial: Tutorial) -> None:
        self.encoder, self.decoder = deepcopy(tutorial.encoder).double(), deepcopy(tutorial.decoder).double()
        self.start, self.end = tutorial.word_map["<start>"], tutorial.word_map["<end>"]

    @torch.inference_mode()
    def captions(self, image: Tensor, beams: tuple[int, ...]) -> list[Caption]:
        """Of a normalised image (3, S, S), for each beam."""
        annotations = self.encoder(image[None]).flatten(1, 2)
        return [self._search(annotations, beam) for beam in beams]

    def _search(self, annotations: Tensor, beam: int) -> Caption:
        mean = annotations.mean(1)
        live, hidden, cell = [(0.0, [self.start])], self.decoder.init_h(mean), self.decoder.init_c(mean)
        ended: list[tuple[float, list[int]]] = []
        margin = np.inf
        for _ in range(51):
            before = torch.tensor([words[-1] for _, words in live])
            log_probs, hidden, cell = self.decoder(before, hidden, cell, annotations.expand(len(live), -1, -1))
            slots = beam - len(ended)
            best, following = (part.tolist() for part in log_probs.topk(min(slots + 1, log_probs.shape[1])))
            candidates = [
                (score + one, row, [*words, word])
                for row, (score, words) in enumerate(live)
                for one, word in zip(best[row], following[row], strict=True)
            ]
            candidates.sort(key=lambda candidate: -candidate[0])
            margin = min(margin, candidates[slots - 1][0] - candidates[slots][0])
            ended += [(score, words) for score, _, words in candidates[:slots] if words[-1] == self.end]
            kept = [candidate for candidate in candidates[:slots] if candidate[2][-1] != self.end]
            if not kept:
                break
            live, rows = [(score, words) for score, _, words in kept], [row for _, row, _ in kept]
            hidden, cell = hidden[rows], cell[rows]
        final = sorted(ended or live, reverse=True)
        if len(final) > 1:
            margin = min(margin, final[0][0] - final[1][0])
        score, words = final[0]
        return Caption(tuple(words[1:-1] if ended else words[1:]), score, not ended, margin)
