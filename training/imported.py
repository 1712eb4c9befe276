"""What every import ends in: a checkpoint like any other, from weights that were checked before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from saccade.files import sha256
from saccade.preprocessing import PreprocessSpec
from saccade.vocabulary import Vocabulary
from training.checkpoint import FORMAT_VERSION, Description, save_checkpoint
from training.encoders import EncoderOptions
from training.model import DecoderOptions, build_captioner

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's encoders were trained with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A foreign model in our terms.

    weights : float32, every tensor of the captioner by its name in our state dict
    max_length : of the search of the program that it comes from
    provenance : what the file says of itself
    """

    encoder: EncoderOptions
    decoder: DecoderOptions
    preprocessing: PreprocessSpec
    vocabulary: Vocabulary
    weights: Mapping[str, Tensor]
    max_length: int
    provenance: Mapping[str, Any]


def tensor(array: ArrayLike) -> Tensor:
    """A copy in float32, as the model has it."""
    return torch.from_numpy(np.array(array, np.float32))


def write_checkpoint(imported: Imported, source: Path, destination: Path, *, overwrite: bool) -> Description:
    """Write a checkpoint folder that says which file it is from. Raises OutputError."""
    spec = imported.preprocessing
    with torch.device("meta"):  # only the names: the weights are here already
        captioner = build_captioner(
            imported.encoder, imported.decoder, words=len(imported.vocabulary), mean=spec.mean, std=spec.std
        )
    captioner.load_state_dict(dict(imported.weights), assign=True)
    description = Description(
        format_version=FORMAT_VERSION,
        encoder=imported.encoder,
        decoder=imported.decoder,
        preprocessing=spec,
        vocabulary=imported.vocabulary.as_json(),
        max_length=imported.max_length,
        provenance={**imported.provenance, "file": source.name, "sha256": sha256(source)},
    )
    save_checkpoint(destination, captioner, description, overwrite=overwrite)
    return description
