"""`saccade export`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from export.bundle import ExportOptions, export_bundle
from export.verification import BEAMS, TOLERANCE
from saccade.glimpses import DecodeMode


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
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
def export(
    checkpoint: Path,
    out: Path,
    with_checkpoint: bool,
    images: tuple[Path, ...],
    tolerance: float,
    decode_mode: DecodeMode,
    overwrite: bool,
) -> None:
    """Turn CHECKPOINT into a bundle.

    CHECKPOINT is a checkpoint folder, or the folder of a training run, whose best epoch is then taken. Both ONNX graphs
    are compared with eager PyTorch before the bundle appears; the errors found go into its manifest.
    """
    options = ExportOptions(
        with_checkpoint=with_checkpoint,
        tolerance=tolerance,
        images=images,
        decode_mode=decode_mode,
        overwrite=overwrite,
    )
    manifest = export_bundle(checkpoint, out, options)
    for name, error in manifest.errors.items():
        click.echo(f"{name}\t{error:.2e}")
    total = sum(entry.bytes for entry in manifest.files.values())
    beams = ", ".join(str(beam) for beam in BEAMS)
    click.echo(f"{out}: {total / 1e6:.1f} MB, captions equal to PyTorch's at beams {beams}", err=True)
