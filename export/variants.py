"""The graphs of a bundle in other precisions, and what each costs in accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.graphs import export_encoder, export_step
from export.quantisation import QuantisationOptions, quantise_encoder
from export.verification import OnnxGraph, count_different, search_graph
from saccade.bundle import ENCODER, STEP, Precision, Variant
from saccade.hypotheses import Hypothesis
from saccade.search import SearchOptions
from training.checkpoint import Checkpoint
from training.decoding import TorchDecoder
from training.lowering import lowered

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Preprocessed images, uint8 (N, S, S, 3) each.

    verification : what the accuracy is measured on
    calibration : what the ranges of 8-bit integers are measured on
    """

    verification: NDArray[np.uint8]
    calibration: NDArray[np.uint8]


def write_variant(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    pictures: Pictures,
    quantisation: QuantisationOptions,
) -> Variant:
    """Write the graphs of one precision beside those in float32, and measure them against eager PyTorch in float32."""
    if precision == "int8":
        return _write_int8(checkpoint, folder, pictures, quantisation)
    return _write_half(checkpoint, folder, precision, pictures)


def _write_int8(checkpoint: Checkpoint, folder: Path, pictures: Pictures, options: QuantisationOptions) -> Variant:
    path = folder / _file(ENCODER, "int8")
    spec = quantise_encoder(folder / ENCODER, path, pictures.calibration, options)
    found = _Found.by_graphs(checkpoint, OnnxGraph(path, exact=True), OnnxGraph(folder / STEP), pictures)
    return Variant(graphs={"encoder": spec}, accuracy=_accuracy(checkpoint, found, pictures))


def _write_half(checkpoint: Checkpoint, folder: Path, precision: Precision, pictures: Pictures) -> Variant:
    """Weights, annotations and states in 16 bits; softmax and scores stay float32."""
    size = checkpoint.description.preprocessing.size
    half = replace(checkpoint, captioner=lowered(checkpoint.captioner, _DTYPES[precision], size=size))
    encoder, step = (folder / _file(name, precision) for name in (ENCODER, STEP))
    graphs = {"encoder": export_encoder(half, encoder), "step": export_step(half, step)}
    # ONNX Runtime's CPU provider has no bfloat16 kernels: the eager model in that precision stands in for the graphs.
    found = (
        _Found.by_model(half, pictures)
        if precision == "bf16"
        else _Found.by_graphs(half, OnnxGraph(encoder), OnnxGraph(step), pictures)
    )
    return Variant(graphs=graphs, accuracy=_accuracy(checkpoint, found, pictures))


def _file(name: str, precision: Precision) -> str:
    return Path(name).with_suffix(f".{precision}.onnx").name


@dataclass(frozen=True, slots=True)
class _Found:
    """What a precision makes of the verification images: annotations and captions."""

    annotations: NDArray[np.float32]
    hypotheses: list[list[Hypothesis]]

    @classmethod
    def by_graphs(cls, checkpoint: Checkpoint, encoder: OnnxGraph, step: OnnxGraph, pictures: Pictures) -> _Found:
        encoded = encoder({"pixels": pictures.verification})
        hypotheses = search_graph(checkpoint, step, encoded, pictures.verification, _options(checkpoint))
        return cls(encoded["annotations"].astype(np.float32), hypotheses)

    @classmethod
    def by_model(cls, checkpoint: Checkpoint, pictures: Pictures) -> _Found:
        decoder = TorchDecoder(checkpoint.captioner, checkpoint.vocabulary)
        annotations = decoder.encode(pictures.verification)["annotations"].float().numpy()
        return cls(annotations, decoder.search(pictures.verification, _options(checkpoint)))


def _accuracy(checkpoint: Checkpoint, found: _Found, pictures: Pictures) -> dict[str, float]:
    expected = _Found.by_model(checkpoint, pictures)
    error = np.linalg.norm(found.annotations - expected.annotations) / np.linalg.norm(expected.annotations)
    images = len(pictures.verification)
    return {
        "images": images,
        "annotations_relative_error": float(error),
        "same_captions": 1 - count_different(found.hypotheses, expected.hypotheses) / images,
    }


def _options(checkpoint: Checkpoint) -> SearchOptions:
    return SearchOptions(max_length=checkpoint.description.max_length)
