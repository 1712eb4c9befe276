"""`saccade export`: a checkpoint becomes a bundle, verified before it takes its name."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from export.graphs import OPSET, export_encoder, export_step
from export.quantisation import QuantisationOptions
from export.variants import Pictures, write_variant
from export.verification import (
    TOLERANCE,
    OnnxGraph,
    compare_captions,
    measure_errors,
    require_same_captions,
    require_tolerance,
)
from saccade.bundle import (
    CHECKPOINT,
    ENCODER,
    FORMAT_VERSION,
    MANIFEST,
    STEP,
    VOCABULARY,
    Dimensions,
    GraphSpec,
    Manifest,
    Precision,
    Variant,
    file_entries,
    manifest_as_json,
)
from saccade.errors import ConfigError, ExportError, OutputError
from saccade.files import staged_directory, write_json
from saccade.glimpses import DecodeMode
from saccade.preprocessing import PreprocessSpec, load_image
from saccade.structure import unstructure
from training.checkpoint import Checkpoint, load_checkpoint
from training.data import draw_pixels

VERIFICATION_SCENES = 32
MEASURED_IMAGES = 64
"""Images for calibration that are kept for measuring instead, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How a bundle is written.

    with_checkpoint : put the weights in as well, so that the PyTorch reference can run from the bundle
    decode_mode : of hard attention, the default of the search
    tolerance : largest absolute difference from eager PyTorch that passes
    images : real images to verify with, beside generated scenes
    precisions : of further graphs beside those in float32
    calibration : images like those that will be captioned: the ranges of 8-bit integers are found on seven eighths of
        them, and what a precision costs is measured on the rest
    quantisation : how those are found
    """

    with_checkpoint: bool = True
    decode_mode: DecodeMode = "expected"
    tolerance: float = TOLERANCE
    images: tuple[Path, ...] = ()
    precisions: tuple[Precision, ...] = ()
    calibration: tuple[Path, ...] = ()
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)
    overwrite: bool = False

    def __post_init__(self) -> None:
        if "int8" in self.precisions and not self.calibration:
            raise ConfigError("8-bit integers need images to find their ranges: give some hundred with --calibrate")


def export_bundle(source: Path, destination: Path, options: ExportOptions) -> Manifest:
    """Write the bundle of a checkpoint. Nothing appears at `destination` unless every check passes.

    Raises CheckpointError, ExportError, OutputError.
    """
    if destination.exists() and any(destination.iterdir()) and not (destination / MANIFEST).is_file():
        raise OutputError(f"{destination} is not empty and is no bundle: choose another --out")
    checkpoint = load_checkpoint(source)
    attention = checkpoint.captioner.decoder.options.attention
    if attention != "hard" and options.decode_mode != "expected":
        raise ExportError(f'decode mode "{options.decode_mode}" is for hard attention; {source} has "{attention}"')
    images = _verification_images(checkpoint.description.preprocessing, options.images)
    with staged_directory(destination, overwrite=options.overwrite) as folder:
        graphs = {
            "encoder": export_encoder(checkpoint, folder / ENCODER),
            "step": export_step(checkpoint, folder / STEP),
        }
        encoder, step = OnnxGraph(folder / ENCODER), OnnxGraph(folder / STEP)
        errors = measure_errors(checkpoint, encoder, step, images)
        require_tolerance(errors, options.tolerance)
        require_same_captions(compare_captions(checkpoint, encoder, step, images), len(images))
        variants = _variants(checkpoint, folder, images, options)
        write_json(folder / VOCABULARY, checkpoint.vocabulary.as_json())
        if options.with_checkpoint:
            save_file({n: t.contiguous() for n, t in checkpoint.captioner.state_dict().items()}, folder / CHECKPOINT)
        manifest = replace(_manifest(checkpoint, options.decode_mode, graphs, errors, folder), variants=variants)
        write_json(folder / MANIFEST, manifest_as_json(manifest))
    return manifest


def _variants(
    checkpoint: Checkpoint, folder: Path, images: NDArray[np.uint8], options: ExportOptions
) -> dict[Precision, Variant]:
    wanted = [precision for precision in options.precisions if precision != "fp32"]
    if not wanted:
        return {}
    pictures = _pictures(checkpoint.description.preprocessing, images, options)
    return {
        precision: write_variant(checkpoint, folder, precision, pictures, options.quantisation) for precision in wanted
    }


def _pictures(spec: PreprocessSpec, images: NDArray[np.uint8], options: ExportOptions) -> Pictures:
    """What is calibrated on, and what is measured on: images given for that, with every eighth for calibration.

    Generated scenes, which are unlike photographs, stand in where no image is given.
    """
    given = [load_image(file, spec) for file in options.calibration]
    held_out = given[::8][:MEASURED_IMAGES] if len(given) >= 8 else []
    measured = [*images[VERIFICATION_SCENES:], *held_out]
    return Pictures(
        verification=np.array(measured) if measured else images,
        calibration=np.array([image for place, image in enumerate(given) if place % 8 or not held_out]),
    )


def _manifest(
    checkpoint: Checkpoint,
    decode_mode: DecodeMode,
    graphs: dict[str, GraphSpec],
    errors: dict[str, float],
    folder: Path,
) -> Manifest:
    description, decoder = checkpoint.description, checkpoint.captioner.decoder.options
    rows, columns = checkpoint.captioner.encoder.grid(description.preprocessing.size)
    annotations = next(tensor.shape for tensor in graphs["encoder"].outputs if tensor.name == "annotations")
    vocabulary = checkpoint.vocabulary
    exporter = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    return Manifest(
        format_version=FORMAT_VERSION,
        encoder=description.encoder.name,
        attention=decoder.attention,
        decode_mode=decode_mode,
        dimensions=Dimensions(
            rows=rows,
            columns=columns,
            annotation_width=checkpoint.captioner.decoder.annotation_width,
            attention_width=decoder.attention_width,
            hidden_width=decoder.hidden_width,
            words=len(vocabulary),
            source_cells=0 if annotations[1] == rows * columns else int(annotations[1]),
        ),
        preprocessing=description.preprocessing,
        special={name: getattr(vocabulary, name) for name in ("pad", "start", "end", "unk")},
        max_length=description.max_length,
        opset=OPSET,
        graphs=graphs,
        files=file_entries(folder),
        errors=errors,
        model={"encoder": unstructure(description.encoder), "decoder": unstructure(description.decoder)},
        provenance=description.provenance | {"exporter": exporter},
        scores=description.scores,
    )


def _verification_images(spec: PreprocessSpec, files: tuple[Path, ...]) -> NDArray[np.uint8]:
    """Scenes never used for training by the shipped configurations, and the images given."""
    scenes = [draw_pixels(seed, spec, render_size=224) for seed in range(9_000_000, 9_000_000 + VERIFICATION_SCENES)]
    return np.stack([*scenes, *(load_image(file, spec) for file in files)])
