"""Checkpoints of sgrvinod's captioning tutorial, `BEST_checkpoint_*.pth.tar`, or of programs with its two modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saccade.errors import CheckpointError, VocabularyError
from saccade.preprocessing import PreprocessSpec
from saccade.vocabulary import END, PAD, START, UNK, Vocabulary
from training.checkpoint import Shape, misfits
from training.encoders import Encoder, EncoderOptions
from training.foreign_pickle import Record
from training.foreign_torch import read_torch, state_of
from training.imported import IMAGENET_MEAN, IMAGENET_STD, Imported, tensor
from training.model import DecoderOptions

IMAGE_SIZE, GRID, MAX_GRID = 256, 14, 64
MAX_LENGTH = 51
"""Steps after which the tutorial's search gives up."""

_CLASSES = frozenset({"Encoder", "DecoderWithAttention", "Attention"})

_STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""What the children of torchvision's ResNet are called, by their places in the tutorial's `nn.Sequential`."""

_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""By whether blocks have a bottleneck, and how many of them each stage has."""

State = Mapping[str, NDArray[Any]]


def read_sgrvinod(path: Path, word_map: Path, *, image_size: int = IMAGE_SIZE, grid: int | None = None) -> Imported:
    """Read a checkpoint with its word map. Nothing in it is run.

    image_size : to whose square the images were squashed
    grid : side of the annotation grid; None takes what the encoder says of itself, or 14
    Raises CheckpointError naming what is missing, damaged or of another shape, and VocabularyError.
    """
    content = read_torch(path, classes=_CLASSES)
    if not isinstance(content, dict) or not {"encoder", "decoder"} <= content.keys():
        found = f"a {type(content).__name__}" if not isinstance(content, dict) else f"{len(content)} other things"
        raise CheckpointError(
            f'{path} holds {found}, expected a dictionary with "encoder" and "decoder": '
            "give a BEST_checkpoint_*.pth.tar of the tutorial's train.py"
        )
    encoder, decoder = (_state(path, content, part) for part in ("encoder", "decoder"))
    if sum(array.nbytes for state in (encoder, decoder) for array in state.values()) > path.stat().st_size:
        raise CheckpointError(f"{path}: its tensors take more bytes than the file has: it is damaged")
    options = EncoderOptions(name=_resnet(path, encoder), grid=grid or _grid(path, content["encoder"]))
    trunk, width = _trunk_weights(path, encoder, options)
    sizes = _decoder_sizes(path, decoder, width)
    vocabulary = read_word_map(word_map)
    if len(vocabulary) != sizes["words"]:
        raise CheckpointError(
            f"{word_map} has {len(vocabulary)} words, {path} was trained with {sizes['words']}: "
            "give the word map that it was trained with"
        )
    return Imported(
        encoder=options,
        decoder=DecoderOptions(
            nonlinearity="relu",
            initial_nonlinearity="none",
            gate="vector",
            output="linear",
            attention_width=sizes["attention"],
            embedding_width=sizes["embedding"],
            hidden_width=sizes["hidden"],
        ),
        preprocessing=PreprocessSpec(
            size=image_size, geometry="squash", mean=IMAGENET_MEAN, std=IMAGENET_STD, exif_transpose=False
        ),
        vocabulary=vocabulary,
        weights=trunk | _decoder_weights(decoder, sizes["embedding"]),
        max_length=MAX_LENGTH,
        provenance={"imported": "sgrvinod"} | _epoch(content),
    )


def read_word_map(path: Path) -> Vocabulary:
    """Read a WORDMAP_*.json, `{"word": id}`. Raises VocabularyError."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise VocabularyError(f"{path}: expected an object of words and their ids, as a WORDMAP_*.json is")
    if sorted(ids.values()) != list(range(len(ids))):
        raise VocabularyError(f"{path}: the ids of its {len(ids)} words are not 0 to {len(ids) - 1}, each of them once")
    if missing := [word for word in (PAD, START, END, UNK) if word not in ids]:
        raise VocabularyError(f"{path}: has no {', '.join(missing)}")
    try:
        return Vocabulary(tuple(sorted(ids, key=ids.__getitem__)), ids[PAD], ids[START], ids[END], ids[UNK])
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from None


def _state(path: Path, content: Mapping[Any, Any], part: str) -> State:
    state = state_of(content[part])
    if state is None:
        raise CheckpointError(
            f"{path}: its {part} is a {type(content[part]).__name__}, expected a module or its state dict"
        )
    return state


def _epoch(content: Mapping[Any, Any]) -> dict[str, int]:
    epoch = content.get("epoch")
    return {"epoch": epoch} if type(epoch) is int and 0 <= epoch < 2**31 else {}


def _grid(path: Path, encoder: object) -> int:
    state = encoder.state if isinstance(encoder, Record) else {}
    found = state.get("enc_image_size", GRID) if isinstance(state, dict) else GRID
    if type(found) is not int or not 1 <= found <= MAX_GRID:
        raise CheckpointError(f"{path}: the grid of its encoder is no number from 1 to {MAX_GRID}: give it as --grid")
    return found


def _resnet(path: Path, encoder: State) -> str:
    names = [name.split(".") for name in encoder]
    blocks = tuple(len({name[2] for name in names if name[:2] == ["resnet", stage]}) for stage in "4567")
    name = _RESNETS.get((any("conv3" in name for name in names), blocks))
    if name is None:
        raise CheckpointError(
            f"{path}: its encoder is no ResNet of 18, 34, 50, 101 or 152 layers under the names resnet.0 to resnet.7: "
            "other encoders cannot be imported"
        )
    return name


def _trunk_weights(path: Path, encoder: State, options: EncoderOptions) -> tuple[dict[str, Tensor], int]:
    """Weights of our encoder, and its width. Files of before torch 0.4.1 do not count batches, nor does what we do."""
    with torch.device("meta"):
        ours = Encoder(options)
    theirs = {_torchvision_name(name): array for name, array in encoder.items()}
    wanted = ours.trunk.state_dict()
    counts = {name: np.zeros((), np.int64) for name in wanted if name.endswith("num_batches_tracked")}
    found = counts | theirs
    _require(path, "encoder", found, {name: tuple(values.shape) for name, values in wanted.items()})
    weights = {f"encoder.trunk.{name}": tensor(array) for name, array in found.items() if name not in counts}
    return weights | {f"encoder.trunk.{name}": torch.tensor(int(found[name])) for name in counts}, ours.width


def _torchvision_name(name: str) -> str:
    resnet, _, rest = name.partition(".")
    stage, _, rest = rest.partition(".")
    return f"{_STAGES[stage]}.{rest}" if resnet == "resnet" and stage in _STAGES else name


def _decoder_sizes(path: Path, decoder: State, annotation_width: int) -> dict[str, int]:
    """Words and widths, read from the shapes of tensors, all of which then are of them."""
    _require(path, "decoder", dict.fromkeys(decoder, np.empty(())), dict.fromkeys(_decoder_shapes(), ()))

    def size(name: str, axis: int) -> int:
        shape = decoder[name].shape
        return shape[axis] if len(shape) == 2 else 0

    sizes = {
        "words": size("embedding.weight", 0),
        "embedding": size("embedding.weight", 1),
        "hidden": size("decode_step.weight_hh", 1),
        "attention": size("attention.encoder_att.weight", 0),
    }
    _require(path, "decoder", decoder, _decoder_shapes(annotation=annotation_width, **sizes))
    return sizes


def _decoder_shapes(
    *, words: int = 0, embedding: int = 0, hidden: int = 0, attention: int = 0, annotation: int = 0
) -> dict[str, Shape]:
    layers = {
        "attention.encoder_att": (attention, annotation),
        "attention.decoder_att": (attention, hidden),
        "attention.full_att": (1, attention),
        "init_h": (hidden, annotation),
        "init_c": (hidden, annotation),
        "f_beta": (annotation, hidden),
        "fc": (words, hidden),
    }
    lstm = {"ih": (4 * hidden, embedding + annotation), "hh": (4 * hidden, hidden)}
    return {
        "embedding.weight": (words, embedding),
        **{f"{name}.weight": shape for name, shape in layers.items()},
        **{f"{name}.bias": shape[:1] for name, shape in layers.items()},
        **{f"decode_step.weight_{name}": shape for name, shape in lstm.items()},
        **{f"decode_step.bias_{name}": shape[:1] for name, shape in lstm.items()},
    }


def _require(path: Path, part: str, found: State, wanted: Mapping[str, Shape]) -> None:
    if problems := misfits({name: array.shape for name, array in found.items()}, wanted):
        raise CheckpointError(f"{path}: its {part} is not the tutorial's: {problems}")


def _decoder_weights(theirs: State, embedding: int) -> dict[str, Tensor]:
    """Ours, of the tutorial's: gates are in the same order, and what reads the hidden state is one matrix."""

    def layers(*names: str) -> dict[str, Tensor]:
        return {kind: torch.cat([tensor(theirs[name.format(kind)]) for name in names]) for kind in ("weight", "bias")}

    parts = {
        "attention.keys": layers("attention.encoder_att.{}"),
        "initial_hidden": layers("init_h.{}"),
        "initial_cell": layers("init_c.{}"),
        "from_hidden": layers("decode_step.{}_hh", "attention.decoder_att.{}", "f_beta.{}"),
        "output": layers("fc.{}"),
    }
    from_input = tensor(theirs["decode_step.weight_ih"])
    return {f"decoder.{part}.{kind}": value for part, kinds in parts.items() for kind, value in kinds.items()} | {
        "decoder.attention.energy.weight": tensor(theirs["attention.full_att.weight"]),
        "decoder.embedding.weight": tensor(theirs["embedding.weight"]),
        "decoder.from_word.weight": from_input[:, :embedding].contiguous(),
        "decoder.from_word.bias": tensor(theirs["decode_step.bias_ih"]),
        "decoder.from_context.weight": from_input[:, embedding:].contiguous(),
    }
