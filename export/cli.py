"""`saccade export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from export.bundle import ExportOptions, export_bundle
from export.quantisation import QuantisationOptions, RangeMethod
from export.verification import BEAMS, TOLERANCE
from saccade.glimpses import DecodeMode

_CALIBRATION_IMAGES = 512


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the bundle.")
@click.option(
    "--with-checkpoint/--without-checkpoint",
    default=True,
    show_default=True,
    help="Put the weights in as well, for the PyTorch reference; without them the bundle is half the size.",
)
@click.option(
    "--verify",
    "images",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An image to verify with, beside generated scenes. May be given several times.",
)
@click.option(
    "--tolerance", default=TOLERANCE, show_default=True, help="Largest absolute difference from PyTorch that passes."
)
@click.option(
    "--decode-mode",
    default="expected",
    show_default=True,
    type=click.Choice(get_args(DecodeMode)),
    help="Where hard attention looks unless `saccade caption` is told otherwise.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp16", "bf16", "int8"]),
    help="Further graphs beside those in float32: of 16 bits for GPUs, or with an encoder of 8-bit integers. May be "
    "given several times.",
)
@click.option(
    "--calibrate",
    "calibration",
    type=click.Path(exists=True, path_type=Path),
    help="For int8: an image, or a folder of some hundred like those you will caption; 512 at most are read. What a "
    "precision costs is measured on every eighth.",
)
@click.option(
    "--ranges",
    "method",
    default="percentile",
    show_default=True,
    type=click.Choice(get_args(RangeMethod)),
    help="For int8: leave out the largest of 100,000 values, keep it, or clip where the distribution loses least.",
)
@click.option(
    "--float-share",
    default=0.1,
    show_default=True,
    help="For int8: convolutions that lose far more than others for what they compute stay float, up to this share of "
    "the multiply-adds.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
def export(checkpoint: Path, out: Path, **given: Any) -> None:
    """Turn CHECKPOINT into a bundle.

    CHECKPOINT is a checkpoint folder, or the folder of a training run, whose best epoch is then taken. Both ONNX graphs
    are compared with eager PyTorch before the bundle appears; the errors found go into its manifest, and what each
    further precision costs.
    """
    quantisation = QuantisationOptions(**{name: given.pop(name) for name in ("method", "float_share")})
    calibration = _images(given.pop("calibration"))
    options = ExportOptions(quantisation=quantisation, calibration=calibration, **given)
    manifest = export_bundle(checkpoint, out, options)
    for name, error in manifest.errors.items():
        click.echo(f"{name}\t{error:.2e}")
    for precision, variant in manifest.variants.items():
        accuracy = variant.accuracy
        click.echo(
            f"{precision}\t{accuracy['same_captions']:.1%} of {accuracy['images']:.0f} captions equal, "
            f"annotations off by {accuracy['annotations_relative_error']:.1%}"
        )
    total = sum(entry.bytes for entry in manifest.files.values())
    beams = ", ".join(str(beam) for beam in BEAMS)
    click.echo(f"{out}: {total / 1e6:.1f} MB, captions equal to PyTorch's at beams {beams}", err=True)


def _images(path: Path | None) -> tuple[Path, ...]:
    """The file, or files of the folder and of those in it, evenly spread over their names."""
    if path is None or path.is_file():
        return () if path is None else (path,)
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return tuple(files[:: -(-len(files) // _CALIBRATION_IMAGES) or 1])
