"""The throughput benchmark: equal work on both sides, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.imported import ModelSizes, import_and_export, random_model, random_pixels
from benchmarks.throughput import LOOP, Measured, Side, alternate, engine_side, loop_side, table, write_photographs
from benchmarks.tutorial_search import MAX_STEPS
from engine.captioner import Captioner, CaptionOptions
from saccade.bundle import Bundle
from saccade.search import SearchOptions

SIZES = ModelSizes(architecture="resnet18", words=40, width=24, image_size=64)


def test_the_files_are_as_large_as_photographs(tmp_path: Path) -> None:
    for path in write_photographs(tmp_path / "photographs", 3):
        assert 130_000 < path.stat().st_size < 180_000
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (640, 480))


def test_sides_take_turns_and_a_warm_up_does_not_count() -> None:
    calls = []

    def side(name: str) -> Side:
        def run(paths: Sequence[Path], measured: Measured) -> None:
            calls.append((name, len(paths)))
            measured.captions = {str(path): (1,) for path in paths}

        return run

    paths = [Path(f"{number}.jpg") for number in range(6)]
    found = alternate({LOOP: side(LOOP), "ort": side("ort")}, paths, rounds=2, warm_up=4)
    assert calls == [(LOOP, 2), ("ort", 4), (LOOP, 6), ("ort", 6), (LOOP, 6), ("ort", 6)]
    assert [len(measured.rates) for measured in found.values()] == [2, 2]


def test_the_table_says_how_many_times_the_loop() -> None:
    loop = Measured(rates=[2.0, 4.0, 3.0], captions={"a": (1,), "b": (2,)})
    engine = Measured(rates=[30.0, 20.0, 25.0], captions={"a": (1,), "b": (3,)}, shares={"scan": 0.1, "encode": 0.75})
    line = table({LOOP: loop, "ort": engine}).splitlines()[2]
    assert line.split() == ["ort", "25.00", "8.33", "50.0%", "encode", "75%"]


@pytest.mark.slow
def test_both_sides_caption_the_same_files_alike(tmp_path: Path) -> None:
    model = random_model(SIZES, random_pixels(8, SIZES.image_size))
    bundle = Bundle.open(import_and_export(*model, tmp_path, image_size=SIZES.image_size))
    paths = write_photographs(tmp_path / "photographs", 6)
    options = CaptionOptions(search=SearchOptions(max_length=MAX_STEPS), batch=4, backend="ort")
    with Captioner.open(bundle, options) as captioner:
        sides = {LOOP: loop_side(*model, bundle, 3), "ort": engine_side(captioner)}
        found = alternate(sides, paths, rounds=1, warm_up=4)
    assert found["ort"].captions == found[LOOP].captions
    assert len(set(found[LOOP].captions.values())) > 1
    assert {"read", "decode", "encode", "search"} <= found["ort"].shares.keys()
