"""The benchmark of imported models: both sides caption the same images, and say the same of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.imported import ModelSizes, import_and_export, measure, random_model, random_pixels, record
from engine.captioner import CaptionOptions


def test_both_sides_say_the_same_and_are_timed(tmp_path: Path) -> None:
    sizes = ModelSizes(architecture="resnet18", words=60, width=24, image_size=64)
    pixels = random_pixels(12, 64)
    model = random_model(sizes, pixels[:8])
    bundle = import_and_export(*model, tmp_path, image_size=64)
    options = CaptionOptions(batch=5, backend="ort")
    found, description = measure(model, bundle, pixels, options, beams=(1, 3), rounds=2)
    assert found.keys() == {1, 3}
    for each in found.values():
        assert each.same == 1
        assert 2 < each.words < 20
        assert (len(each.loop), len(each.engine)) == (2, 2)
    said = record(found, description, sizes, images=12, batch=5, load=0.0)
    assert said["beams"]["3"]["ratio"] == pytest.approx(found[3].ratio)
    assert said["backend"].startswith("ONNX Runtime")
