"""A figure of captions and where their words looked, as in the paper: `python -m benchmarks.attention_figure`.

One row for each caption: the image, then a tile for every word, lighter the more the word looked at a place. The rows
of several models to one image stand below each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from engine.gallery import levels_from_alphas
from engine.records import Attention, Record
from engine.results import read_records, read_run
from saccade.errors import DataError
from saccade.pixels import load_rgb

_TILE, _TEXT, _GAP = 112, 18, 4
_DARKEST = 0.2
"""Of a place that is not looked at, how much of its brightness remains."""


def attention_figure(models: Sequence[Sequence[Record]], root: Path, *, crop: bool = False) -> Image.Image:
    """The figure of the records of every model, in the order of the first one's images.

    root : what relative paths of records are relative to
    crop : the attention grid covers the central square of the image; otherwise the whole image
    Raises DataError where there is no record, or a model has none of an image or none of its attention.
    """
    by_path = [{record.path: record for record in records} for records in models]
    rows = [_row(records.get(first.path), first.path, root, crop) for first in models[0] for records in by_path]
    if not rows:
        raise DataError("there is no caption to show: caption some images with --attention first")
    figure = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        figure.paste(row, (0, top))
        top += row.height
    return figure


def highlighted(tile: Image.Image, attention: Attention) -> list[Image.Image]:
    """Of every word the tile, darkened where it did not look; the place it looked at most keeps its brightness."""
    levels, _ = levels_from_alphas(attention)
    pixels = np.asarray(tile)
    tiles = []
    for level in levels.reshape(-1, attention.rows, attention.columns):
        light = Image.fromarray(level).resize(tile.size, Image.Resampling.BICUBIC)
        share = _DARKEST + (1 - _DARKEST) * np.asarray(light)[..., None] / 255
        tiles.append(Image.fromarray((pixels * share).astype(np.uint8)))
    return tiles


def _row(record: Record | None, path: str, root: Path, crop: bool) -> Image.Image:
    if record is None or record.attention is None:
        raise DataError(f"{path} has no attention in every folder: caption it with --attention")
    whole, size = load_rgb(root / path), (_TILE, _TILE)
    image = ImageOps.fit(whole, size) if crop else whole.resize(size, Image.Resampling.LANCZOS)
    tiles = [(image, ""), *zip(highlighted(image, record.attention), record.words, strict=True)]
    row = Image.new("RGB", (len(tiles) * (_TILE + _GAP), _TILE + _TEXT + _GAP), "white")
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(size=_TEXT - 4)
    for place, (tile, word) in enumerate(tiles):
        left = place * (_TILE + _GAP)
        row.paste(tile, (left, _TEXT))
        draw.text((left + 2, 0), word, fill="black", font=font)
    return row


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Picture to write, PNG or JPEG."
)
@click.option("--limit", type=click.IntRange(min=1), default=4, show_default=True, help="Images shown.")
def main(results: tuple[Path, ...], out: Path, limit: int) -> None:
    """Show the captions of RESULTS, folders that `saccade caption --attention` wrote, one for each model."""
    run = read_run(results[0])
    models = [list(read_records(folder)) for folder in results]
    shown = [models[0][:limit], *models[1:]]
    figure = attention_figure(shown, Path(run["working_directory"]), crop=run["geometry"] == "crop")
    figure.save(out, optimize=True)


if __name__ == "__main__":
    main()
