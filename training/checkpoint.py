"""Checkpoints: a folder with weights (safetensors) and everything needed to use them (JSON). Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saccade.errors import CheckpointError, ConfigError
from saccade.files import differences, staged_directory, write_json
from saccade.preprocessing import PreprocessSpec
from saccade.structure import structure, unstructure
from saccade.vocabulary import Vocabulary
from training.encoders import EncoderOptions
from training.model import Captioner, DecoderOptions, build_captioner

FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "checkpoint.json"
TRAINER_TENSORS, TRAINER_STATE = "trainer.safetensors", "trainer.json"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """checkpoint.json.

    provenance : how the weights came about (configuration, versions, epoch), for people
    scores : metric to value, as measured by training on the split named in the key
    max_length : longest caption the model was validated with, the default of the search
    """

    format_version: int
    encoder: EncoderOptions
    decoder: DecoderOptions
    preprocessing: PreprocessSpec
    vocabulary: dict[str, Any]
    max_length: int
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A captioner in evaluation mode, on the CPU, and what describes it."""

    captioner: Captioner
    vocabulary: Vocabulary
    description: Description


def save_checkpoint(
    destination: Path,
    captioner: Captioner,
    description: Description,
    *,
    trainer_tensors: dict[str, Tensor] | None = None,
    trainer_state: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a checkpoint folder, whole or not at all; with trainer state, one that training can resume from."""
    with staged_directory(destination, overwrite=overwrite) as folder:
        save_file({name: tensor.contiguous() for name, tensor in captioner.state_dict().items()}, folder / WEIGHTS)
        write_json(folder / DESCRIPTION, unstructure(description))
        if trainer_tensors is not None and trainer_state is not None:
            save_file(trainer_tensors, folder / TRAINER_TENSORS)
            write_json(folder / TRAINER_STATE, trainer_state)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder, or the best checkpoint of a run folder.

    Raises CheckpointError naming what is missing, damaged or of another format.
    """
    folder = resolve_checkpoint(path)
    description = read_description(folder)
    vocabulary = Vocabulary.from_json(description.vocabulary, source=str(folder / DESCRIPTION))
    captioner = build_captioner(
        description.encoder,
        description.decoder,
        words=len(vocabulary),
        mean=description.preprocessing.mean,
        std=description.preprocessing.std,
    )
    load_weights(captioner, folder)
    return Checkpoint(captioner.eval(), vocabulary, description)


def read_description(folder: Path) -> Description:
    """checkpoint.json of a checkpoint folder."""
    value = read_json(folder / DESCRIPTION)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: checkpoint format {version!r}, this version of saccade reads {FORMAT_VERSION}: "
            "use the version that wrote it"
        )
    return structure(value, Description, source=str(folder / DESCRIPTION), error=CheckpointError)


def load_weights(captioner: Captioner, folder: Path) -> None:
    """Load model.safetensors into a captioner built from the same description."""
    tensors = _read_tensors(folder / WEIGHTS)
    found, wanted = (
        {name: tuple(tensor.shape) for name, tensor in side.items()} for side in (tensors, captioner.state_dict())
    )
    if problems := misfits(found, wanted):
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {problems}")
    captioner.load_state_dict(tensors)


def misfits(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    """What is wrong with shapes by name, in words, the first three things of it; empty where nothing is."""
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is unknown" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {found[name]}, expected {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def start_from(captioner: Captioner, path: Path, description: Description, *, option: str) -> None:
    """Load the weights of an earlier run or checkpoint.

    option : what names it in the configuration
    Raises ConfigError where its model is not what the description says; soft and hard attention are the same model.
    """
    folder = resolve_checkpoint(path)
    earlier, ours = map(_model, (read_description(folder), description))
    if changed := differences(earlier, ours):
        raise ConfigError(
            f"{option}: {path} is another model ({', '.join(changed)}): train that one on, with its own configuration"
        )
    load_weights(captioner, folder)


def _model(description: Description) -> dict[str, Any]:
    model = {name: unstructure(getattr(description, name)) for name in ("encoder", "decoder", "preprocessing")}
    del model["encoder"]["frozen"]  # the one phase may train the encoder, and the other not
    if model["decoder"]["attention"] == "hard":
        model["decoder"]["attention"] = "soft"  # the same weights look at one place or at all
    return model | {"vocabulary": description.vocabulary}


def load_trainer(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` was given to resume from."""
    return _read_tensors(folder / TRAINER_TENSORS), read_json(folder / TRAINER_STATE)


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint folder meant by a path: itself, or the best one of a run folder."""
    if (path / DESCRIPTION).is_file():
        return path
    if (path / "best.json").is_file():
        return path / "checkpoints" / str(read_json(path / "best.json")["checkpoint"])
    raise CheckpointError(
        f"{path} is no checkpoint: expected a folder with {DESCRIPTION}, or a run of `saccade train` with best.json"
    )


def read_json(path: Path) -> Any:
    """A JSON file of a run. Raises CheckpointError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
