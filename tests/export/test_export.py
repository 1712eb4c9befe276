"""Bundles: verified before they appear, refused when the graphs do not compute what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle import ExportOptions, export_bundle
from export.verification import OnnxGraph, compare_captions, measure_errors, require_same_captions, require_tolerance
from saccade.bundle import Bundle
from saccade.errors import ExportError, OutputError
from tests.bundles import make_checkpoint, patchworks
from training.checkpoint import load_checkpoint


def test_the_bundle_says_what_was_measured(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert set(manifest.errors) == {
        *("annotations", "keys", "hidden", "cell"),
        *("alphas", "next_scores", "next_hidden", "next_cell"),
    }
    assert all(0 <= error <= 1e-4 for error in manifest.errors.values())


def test_images_and_beam_are_named_axes_of_the_graphs(tiny_bundle: Path) -> None:
    graphs = Bundle.open(tiny_bundle).manifest.graphs
    (pixels,) = graphs["encoder"].inputs
    assert (pixels.name, pixels.dtype, pixels.shape) == ("pixels", "uint8", ("images", 64, 64, 3))
    shapes = {tensor.name: tensor.shape for tensor in (*graphs["step"].inputs, *graphs["step"].outputs)}
    assert shapes["hidden"] == shapes["next_cell"] == ("images", "beam", 32)
    assert shapes["alphas"] == ("images", "beam", 16)


def test_nothing_of_the_exporting_machine_is_in_the_graphs(tiny_bundle: Path) -> None:
    for name in ("encoder.onnx", "step.onnx"):
        content = (tiny_bundle / name).read_bytes()
        assert str(Path.home()).encode() not in content
        assert b"site-packages" not in content


@pytest.mark.parametrize(
    ("graph", "initialiser", "output"),
    [("encoder", "decoder.initial_hidden", "hidden"), ("step", "decoder.output.bias", "next_scores")],
)
def test_one_changed_weight_is_found_and_named(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, graph: str, initialiser: str, output: str
) -> None:
    """A single number, off by 0.01, fails the tolerance in the output it reaches."""
    model = onnx.load(tiny_bundle / f"{graph}.onnx")
    (weight,) = [tensor for tensor in model.graph.initializer if initialiser in tensor.name and "bias" in tensor.name]
    values = numpy_helper.to_array(weight).copy()
    values[5] += 0.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    graphs = {name: OnnxGraph(tiny_bundle / f"{name}.onnx") for name in ("encoder", "step")}
    graphs[graph] = OnnxGraph(tmp_path / "changed.onnx")
    errors = measure_errors(load_checkpoint(tiny_checkpoint), graphs["encoder"], graphs["step"], patchworks(4, seed=3))
    assert errors[output] > 1e-4
    with pytest.raises(ExportError, match=f"{output} by"):
        require_tolerance(errors, 1e-4)


def test_nan_never_passes() -> None:
    with pytest.raises(ExportError, match="keys by nan"):
        require_tolerance({"annotations": 0.0, "keys": float("nan")}, 1e-4)


def test_annotations_of_the_decoders_width_are_what_the_step_graph_takes(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", annotation_width=24)
    export_bundle(checkpoint, tmp_path / "bundle", ExportOptions())  # verified: the same captions, or an error
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.dimensions.annotation_width == 24
    (annotations, *_) = manifest.graphs["step"].inputs
    assert annotations.shape == ("images", 16, 24)


@pytest.mark.slow
def test_captions_of_the_graphs_equal_eager_pytorchs(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """On a thousand images at every verified beam."""
    checkpoint, images = load_checkpoint(tiny_checkpoint), patchworks(1000, seed=5)
    graphs = (OnnxGraph(tiny_bundle / "encoder.onnx"), OnnxGraph(tiny_bundle / "step.onnx"))
    assert compare_captions(checkpoint, *graphs, images) == {"beam 1": 0, "beam 3": 0, "beam 5": 0}
    with pytest.raises(ExportError, match="2 of 1000 at beam 3"):
        require_same_captions({"beam 1": 0, "beam 3": 2, "beam 5": 0}, len(images))


@pytest.mark.slow
def test_captions_of_hard_attention_equal_eager_pytorchs(hard_bundle: Path, hard_checkpoint: Path) -> None:
    """In every decode mode, at every verified beam."""
    checkpoint, images = load_checkpoint(hard_checkpoint), patchworks(1000, seed=5)
    graphs = (OnnxGraph(hard_bundle / "encoder.onnx"), OnnxGraph(hard_bundle / "step.onnx"))
    different = compare_captions(checkpoint, *graphs, images)
    assert len(different) == 9
    assert not any(count for what, count in different.items() if what.endswith("expected"))
    # Two places may be equally good up to rounding, and then a caption goes another way.
    assert sum(different.values()) <= 3


def test_a_decode_mode_of_hard_attention_is_refused_for_soft(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match='decode mode "argmax" is for hard attention'):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(decode_mode="argmax"))
    assert not (tmp_path / "bundle").exists()


def test_a_failed_export_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing was written"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(tolerance=0.0))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_not_overwritten_unasked(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    before = (tiny_bundle / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        export_bundle(tiny_checkpoint, tiny_bundle, ExportOptions())
    assert (tiny_bundle / "manifest.json").read_bytes() == before


def test_the_graphs_take_one_image_and_one_row(tiny_bundle: Path) -> None:
    """Sizes of one are not baked in by the exporter, nor refused."""
    encoded = OnnxGraph(tiny_bundle / "encoder.onnx")({"pixels": np.zeros((1, 64, 64, 3), np.uint8)})
    outputs = OnnxGraph(tiny_bundle / "step.onnx")(
        {
            "annotations": encoded["annotations"],
            "keys": encoded["keys"],
            "tokens": np.array([[1]]),
            "hidden": encoded["hidden"][:, None],
            "cell": encoded["cell"][:, None],
            "scores": np.zeros((1, 1), np.float32),
            "slots": np.array([1]),
            "word_bias": np.zeros(len(Bundle.open(tiny_bundle).vocabulary), np.float32),
        }
    )
    assert outputs["alphas"].sum() == pytest.approx(1.0, abs=1e-5)
    assert outputs["next_scores"].shape == (1, 1)
