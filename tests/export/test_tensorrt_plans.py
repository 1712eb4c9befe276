"""Building plans of TensorRT, on a double of it: what is asked of TensorRT, what is written and what is said."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saccade.bundle import Bundle
from saccade.errors import BackendError, ConfigError
from saccade.files import sha256
from saccade.plans import PlanOptions, Target, beams_built
from tests.commands import call
from tests.cuda_double import Gpu
from tests.tensorrt_double import gpu

__all__ = ["gpu"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "bundle"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example bundle, without plans."""
    return shutil.copytree(EXAMPLE, tmp_path / "bundle")


def build(folder: Path, **options: Any) -> list[Path]:
    from export.tensorrt_plans import build_plans

    asked = PlanOptions(**({"batches": (1, 4), "precision": "fp32"} | options))
    return [path for path, _ in build_plans(Bundle.open(folder), asked)]


def header(plan: Path) -> dict[str, Any]:
    """What the double noted in the plan it made."""
    values: dict[str, Any] = json.loads(plan.read_bytes().split(b"\n")[1])
    return values


def test_there_is_a_plan_of_the_encoder_and_one_of_the_step_for_each_beam(folder: Path, gpu: Gpu) -> None:
    plans = build(folder, beams=(1, 3))
    names = ["encoder.fp32.plan", "step.fp32.beam1.plan", "step.fp32.beam3.plan"]
    assert plans == [folder / "plans" / name for name in names]
    assert beams_built(Bundle.open(folder), "fp32") == (1, 3)
    assert beams_built(Bundle.open(folder), "fp16") == ()
    left = {path.name for path in (folder / "plans").iterdir()}
    assert left == {*names, *(name.replace(".plan", ".json") for name in names), "timing.10.16.1.11.9.0.cache"}


def test_the_record_says_what_the_plan_is(folder: Path, gpu: Gpu) -> None:
    (_, plan) = build(folder)
    record = json.loads(plan.with_suffix(".json").read_text())
    assert record.pop("build_seconds") >= 0
    assert record["machine"].pop("system")
    assert record.pop("profiles")[0]["hidden"] == [[1, 3, 256]] * 3
    assert record == {
        "graph": "step",
        "beam": 3,
        "precision": "fp32",
        "machine": {
            "tensorrt": "10.16.1.11",
            "compute_capability": "9.0",
            "gpu": "NVIDIA Double",
            "driver": "CUDA 13.1",
        },
        "onnx_sha256": sha256(folder / "step.onnx"),
        "plan_sha256": sha256(plan),
        "flags": ["strongly typed", "no TF32"],
    }


def test_each_profile_begins_where_the_one_before_ends_and_is_tuned_for_its_largest_batch(
    folder: Path, gpu: Gpu
) -> None:
    encoder, step = build(folder, batches=(1, 4, 9), beams=(5,))
    assert [profile["pixels"] for profile in header(encoder)["profiles"]] == [
        [[1, 112, 112, 3]] * 3,
        [[2, 112, 112, 3], [4, 112, 112, 3], [4, 112, 112, 3]],
        [[5, 112, 112, 3], [9, 112, 112, 3], [9, 112, 112, 3]],
    ]
    last = header(step)["profiles"][2]
    assert last["scores"] == [[5, 5], [9, 5], [9, 5]]
    assert last["keys"] == [[5, 49, 128], [9, 49, 128], [9, 49, 128]]
    assert "word_bias" not in last  # its shape is fixed


def test_float32_is_built_without_tf32_and_others_are_built_with_it(folder: Path, gpu: Gpu) -> None:
    (plan, *_) = build(folder)
    assert header(plan)["tf32"] is False
    manifest = json.loads((folder / "manifest.json").read_text())
    for graph in ("encoder", "step"):
        shutil.copy(folder / f"{graph}.onnx", folder / f"{graph}.fp16.onnx")
        manifest["files"][f"{graph}.fp16.onnx"] = manifest["files"][f"{graph}.onnx"]
    graphs = {name: graph | {"file": f"{name}.fp16.onnx"} for name, graph in manifest["graphs"].items()}
    manifest["variants"] = {"fp16": {"graphs": graphs, "accuracy": {}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (plan, *_) = build(folder, precision="fp16")
    assert plan.name == "encoder.fp16.plan"
    assert header(plan)["tf32"] is True
    assert json.loads(plan.with_suffix(".json").read_text())["flags"] == ["strongly typed"]


def test_the_timing_cache_is_kept_from_plan_to_plan(folder: Path, gpu: Gpu) -> None:
    build(folder)
    assert (folder / "plans" / "timing.10.16.1.11.9.0.cache").read_bytes() == b"2 9.0"  # two plans were measured
    build(folder)
    assert (folder / "plans" / "timing.10.16.1.11.9.0.cache").read_bytes() == b"4 9.0"


def test_a_timing_cache_that_tensorrt_refuses_begins_anew(
    folder: Path, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "plans").mkdir()
    cache = folder / "plans" / "timing.10.16.1.11.9.0.cache"
    cache.write_bytes(b"7 8.9")
    build(folder)
    assert cache.read_bytes() == b"2 9.0"
    assert f"{cache} is of another machine: the timing begins anew" in caplog.messages


def test_all_errors_of_the_parser_are_told(folder: Path, gpu: Gpu) -> None:
    gpu.refused_operators = {"TopK", "Softmax"}
    with pytest.raises(BackendError) as caught:
        build(folder)
    message = str(caught.value)
    assert message.startswith(f"TensorRT 10.16.1.11 cannot read {folder}/step.onnx: ")
    softmax, top_k = message.partition("step.onnx: ")[2].split("; ")
    assert re.fullmatch(r"Softmax node_softmax \(node \d+\): no importer for Softmax", softmax)
    assert re.fullmatch(r"TopK node_topk\w* \(node \d+\): no importer for TopK", top_k)
    assert [path.name for path in (folder / "plans").glob("step*")] == []


def test_a_network_that_cannot_be_built_is_told_with_the_log(
    folder: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Target.profiles

    def wrong(target: Target, bundle: Bundle, batches: tuple[int, ...]) -> Any:
        profiles = whole(target, bundle, batches)
        return tuple(
            {name: tuple((*shape[:-1], 7) for shape in shapes) for name, shapes in one.items()} for one in profiles
        )

    monkeypatch.setattr(Target, "profiles", wrong)
    with pytest.raises(BackendError, match=r"built no plan of .*encoder.onnx: pixels of shape .* does not take"):
        build(folder)


def test_a_profile_that_tensorrt_does_not_take_is_told(folder: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "profiles", lambda *_: ({},))
    with pytest.raises(BackendError, match=r"TensorRT refuses the profile \{\} of"):
        build(folder)


def test_a_plan_appears_whole_or_not_at_all(folder: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(folder)[0].read_bytes()
    monkeypatch.setattr("saccade.files.os.fsync", _full_disk)
    with pytest.raises(OSError, match="No space left"):
        build(folder, batches=(2,))
    assert (folder / "plans" / "encoder.fp32.plan").read_bytes() == before
    assert not [path for path in (folder / "plans").iterdir() if path.name.endswith(".tmp")]


def _full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batches": (8, 1)}, "batches must be 1 or more and increase, got 8, 1"),
        ({"batches": ()}, "batches must be 1 or more and increase, got none"),
        ({"beams": (0, 3)}, "beams must be 1 or more and increase, got 0, 3"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PlanOptions(**options)
    assert problem in str(caught.value)


def test_the_command_builds_what_it_says(folder: Path, gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "build", folder, "--batch", "4,1", "--beam", "2", "--precision", "fp32")
    assert (outcome.code, outcome.out) == (0, "")
    encoder, step = outcome.err.splitlines()
    assert encoder.startswith(f"{folder}/plans/encoder.fp32.plan: 4.9 MB, 2 profiles, ")
    assert step.startswith(f"{folder}/plans/step.fp32.beam2.plan: 2.7 MB, 2 profiles, ")


def test_the_commands_of_trtexec_build_the_same_plans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "build", folder, "--batch", "1,4", "--beam", "3", "--precision", "fp32", "--show-trtexec")
    assert (outcome.code, outcome.err) == (0, "")
    encoder, step = map(shlex.split, outcome.out.splitlines())
    assert encoder == [
        "trtexec",
        f"--onnx={folder}/encoder.onnx",
        f"--saveEngine={folder}/plans/encoder.fp32.plan",
        "--stronglyTyped",
        "--noTF32",
        "--profile=0",
        "--minShapes=pixels:1x112x112x3",
        "--optShapes=pixels:1x112x112x3",
        "--maxShapes=pixels:1x112x112x3",
        "--profile=1",
        "--minShapes=pixels:2x112x112x3",
        "--optShapes=pixels:4x112x112x3",
        "--maxShapes=pixels:4x112x112x3",
        f"--timingCacheFile={folder}/plans/trtexec.cache",
        "--skipInference",
    ]
    assert (
        "--minShapes=annotations:2x49x160,keys:2x49x128,tokens:2x3,hidden:2x3x256,cell:2x3x256,scores:2x3,slots:2"
        in step
    )
    assert not (folder / "plans").exists()


def test_without_tensorrt_the_command_says_what_to_install(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = call(capsys, "build", folder, "--precision", "fp32").error
    assert error.startswith(
        "TensorRT cannot be imported here (No module named 'pycuda'): pip install 'saccade[tensorrt]'"
    )


def test_a_precision_that_the_bundle_lacks_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no fp16 graphs, it has fp32" in call(capsys, "build", folder).error


def test_numbers_that_are_none_are_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "build", folder, "--batch", "1,many")
    assert outcome.code == 2
    assert "'1,many' are no numbers with commas between them" in outcome.err


def test_a_graph_that_breaks_a_rule_is_not_built(
    folder: Path, capsys: pytest.CaptureFixture[str], rewrite: Callable[[Path], None]
) -> None:
    rewrite(folder)
    error = call(capsys, "build", folder, "--precision", "fp32", "--show-trtexec").error
    assert error.startswith(f"{folder}/step.onnx breaks the rules of TensorRT: ")


@pytest.fixture
def rewrite() -> Callable[[Path], None]:
    """Gives a step graph an opset that is too old."""

    def change(folder: Path) -> None:
        import onnx

        from saccade.bundle import MANIFEST

        model = onnx.load(folder / "step.onnx")
        model.opset_import[0].version = 8
        onnx.save(model, folder / "step.onnx")
        manifest = json.loads((folder / MANIFEST).read_text())
        size = (folder / "step.onnx").stat().st_size
        manifest["files"]["step.onnx"] = {"bytes": size, "sha256": sha256(folder / "step.onnx")}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return change
