"""`saccade import`."""

from __future__ import annotations

from pathlib import Path

import click

from training.import_arctic import read_arctic
from training.import_sgrvinod import GRID, IMAGE_SIZE, MAX_GRID, read_sgrvinod
from training.imported import Imported, write_checkpoint

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_out = click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the checkpoint."
)
_overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")


@click.group("import")
def group() -> None:
    """Turn a model of other programs into a checkpoint.

    Nothing in its files is run: they are read as data, and what is neither numbers nor a known class is refused.
    """


@group.command()
@click.argument("checkpoint", type=_file)
@click.option("--word-map", required=True, type=_file, help="The WORDMAP_*.json of its training.")
@_out
@click.option(
    "--image-size",
    default=IMAGE_SIZE,
    show_default=True,
    type=click.IntRange(32, 1024),
    help="Side of the square that images were squashed to.",
)
@click.option(
    "--grid",
    type=click.IntRange(1, MAX_GRID),
    help=f"Side of the annotation grid.  [default: what the file says, else {GRID}]",
)
@_overwrite
def sgrvinod(checkpoint: Path, word_map: Path, out: Path, image_size: int, grid: int | None, overwrite: bool) -> None:
    """Import CHECKPOINT, a BEST_checkpoint_*.pth.tar of sgrvinod's tutorial.

    It holds the tutorial's modules `encoder` (a ResNet) and `decoder`, or their state dicts, of any widths and of any
    version of torch. Captions, scores and pixels are those of the tutorial's own search.
    """
    _write(read_sgrvinod(checkpoint, word_map, image_size=image_size, grid=grid), checkpoint, out, overwrite)


@group.command()
@click.argument("model", type=_file)
@click.option("--options", required=True, type=_file, help="Its MODEL.npz.pkl.")
@click.option("--dictionary", required=True, type=_file, help="The dictionary.pkl of its training.")
@click.option(
    "--encoder-weights",
    default="none",
    metavar="WEIGHTS",
    help="Of VGG-19, which MODEL does not hold: a safetensors file with torchvision's names, or default for those that "
    "torchvision downloads.  [default: random]",
)
@_out
@_overwrite
def arctic(model: Path, options: Path, dictionary: Path, encoder_weights: str, out: Path, overwrite: bool) -> None:
    """Import MODEL, an .npz of the original release, kelvinxu/arctic-captions."""
    _write(read_arctic(model, options, dictionary, encoder_weights=encoder_weights), model, out, overwrite)
    if encoder_weights == "none":
        click.echo(f"{model} holds no encoder: {out} has a random one; see --encoder-weights", err=True)


def _write(imported: Imported, source: Path, out: Path, overwrite: bool) -> None:
    write_checkpoint(imported, source, out, overwrite=overwrite)
    click.echo(
        f"{out}: {imported.encoder.name}, {len(imported.vocabulary)} words; next: saccade export {out}", err=True
    )
