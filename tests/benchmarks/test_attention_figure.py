from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.attention_figure import attention_figure, highlighted
from engine.records import Attention, Record
from saccade.errors import DataError

LEFT_THEN_RIGHT = Attention(rows=1, columns=2, alphas=((0.9, 0.1), (0.2, 0.8)))
RECORD = Record(
    path="a.png",
    caption="a b",
    score=-1.0,
    tokens=(4, 5),
    words=("a", "b"),
    truncated=False,
    attention=LEFT_THEN_RIGHT,
)


def test_a_tile_is_bright_where_its_word_looked() -> None:
    white = Image.new("RGB", (64, 64), "white")
    left, right = slice(0, 16), slice(48, 64)
    sides = [(left, right), (right, left)]
    for tile, (brighter, darker) in zip(highlighted(white, LEFT_THEN_RIGHT), sides, strict=True):
        pixels = np.asarray(tile).astype(float)
        assert pixels[:, brighter].mean() > 200
        assert pixels[:, darker].mean() < 120


def test_the_rows_of_the_models_stand_below_each_other(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    longer = replace(RECORD, words=("a", "b", "c"), attention=Attention(rows=1, columns=1, alphas=((1.0,),) * 3))
    one = attention_figure([[RECORD]], tmp_path)
    both = attention_figure([[RECORD], [longer]], tmp_path)
    assert both.size == (one.width // 3 * 4, 2 * one.height)
    assert both.getpixel((10, one.height - 20)) == (255, 0, 0)  # the image itself comes first


def test_where_the_grid_covers_the_central_square_that_is_what_is_shown(tmp_path: Path) -> None:
    picture = Image.new("RGB", (90, 30), "red")
    picture.paste("blue", (30, 0, 60, 30))
    picture.save(tmp_path / "a.png")
    squashed, cut = (attention_figure([[RECORD]], tmp_path, crop=crop) for crop in (False, True))
    assert (squashed.getpixel((10, 60)), cut.getpixel((10, 60))) == ((255, 0, 0), (0, 0, 255))


def test_captions_without_attention_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png has no attention"):
        attention_figure([[replace(RECORD, attention=None)]], tmp_path)
    with pytest.raises(DataError, match="no caption to show"):
        attention_figure([[]], tmp_path)
