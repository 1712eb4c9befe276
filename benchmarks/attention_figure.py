"""A figure of captions and where their words looked, as in the paper: `python -m benchmarks.attention_figure`.

One row for each caption: the image, then a tile for every word, lighter the more the word looked at a place. The rows
of several models to one image stand below each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engine.records import Attention, Record
from engine.results import read_records
from saccade.errors import DataError
from saccade.pixels import load_rgb

_TILE, _TEXT, _GAP = 112, 18, 4
_DARKEST = 0.2
"""Of a place that is not looked at, how much of its brightness remains."""


def attention_figure(models: Sequence[Sequence[Record]], root: Path) -> Image.Image:
    """The figure of the records of every model, in the order of the first one's images.

    root : what relative paths of records are relative to
    Raises DataError where a model has no record of an image, or none of its attention.
    """
    by_path = [{record.path: record for record in records} for records in models]
    rows = [_row(records.get(first.path), first.path, root) for first in models[0] for records in by_path]
    figure = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        figure.paste(row, (0, top))
        top += row.height
    return figure


def highlighted(tile: Image.Image, attention: Attention, word: int) -> Image.Image:
    """The tile, darkened where the word did not look; the place it looked at most keeps its brightness."""
    alphas: NDArray[np.float64] = np.array(attention.alphas[word]).reshape(attention.rows, attention.columns)
    light = Image.fromarray((255 * alphas / max(float(alphas.max()), 1e-12)).astype(np.uint8))
    share = np.asarray(light.resize(tile.size, Image.Resampling.BICUBIC), np.float64)[..., None] / 255
    return Image.fromarray((np.asarray(tile) * (_DARKEST + (1 - _DARKEST) * share)).astype(np.uint8))


def _row(record: Record | None, path: str, root: Path) -> Image.Image:
    if record is None or record.attention is None:
        raise DataError(f"{path} has no attention in every folder: caption it with --attention")
    image = load_rgb(root / path).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
    tiles = [(image, "")]
    tiles += [(highlighted(image, record.attention, place), word) for place, word in enumerate(record.words)]
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
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path(), help="What relative paths of records start from."
)
def main(results: tuple[Path, ...], out: Path, limit: int, root: Path) -> None:
    """Show the captions of RESULTS, folders that `saccade caption --attention` wrote, one for each model."""
    models = [list(read_records(folder)) for folder in results]
    attention_figure([models[0][:limit], *models[1:]], root).save(out, optimize=True)


if __name__ == "__main__":
    main()
