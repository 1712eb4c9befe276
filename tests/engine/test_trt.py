"""The TensorRT backend on a double of TensorRT and CUDA: same captions as ONNX Runtime, and nothing left on the GPU."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.backends.base import BACKENDS, Backend, open_backend
from engine.captioner import Captioner, CaptionOptions
from saccade.bundle import Bundle
from saccade.decoding import SharedDecoding
from saccade.errors import BackendError
from saccade.hypotheses import Hypothesis
from saccade.plans import PlanOptions
from saccade.search import ContinuousSearch, SearchOptions, search
from tests.cuda_double import Gpu
from tests.tensorrt_double import gpu

__all__ = ["gpu"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "bundle"
TRT = BACKENDS["trt"]
BATCHES = (1, 3, 4)


@pytest.fixture(scope="module")
def pictures() -> NDArray[np.uint8]:
    """Scenes as the example bundle takes them, uint8 (9, 112, 112, 3)."""
    from saccade.preprocessing import load_image

    spec = Bundle.open(EXAMPLE).manifest.preprocessing
    files = sorted((EXAMPLE.parent / "scenes" / "images").iterdir())[:9]
    return np.stack([load_image(file, spec) for file in files])


@pytest.fixture
def bundle(tmp_path: Path, gpu: Gpu) -> Bundle:
    """The example bundle, with plans for beam 3."""
    shutil.copytree(EXAMPLE, tmp_path / "bundle")
    return built(tmp_path / "bundle")


def built(folder: Path, *, batches: tuple[int, ...] = BATCHES, beams: tuple[int, ...] = (3,)) -> Bundle:
    from export.tensorrt_plans import build_plans

    bundle = Bundle.open(folder)
    list(build_plans(bundle, PlanOptions(batches=batches, beams=beams, precision="fp32")))
    return bundle


def captions(backend: Backend, bundle: Bundle, pixels: NDArray[np.uint8], **options: Any) -> list[list[Hypothesis]]:
    asked = SearchOptions(**options)
    return search(backend.begin(pixels, asked, with_alphas=True), bundle.vocabulary, asked)


def same(ours: list[list[Hypothesis]], theirs: list[list[Hypothesis]]) -> bool:
    return all(
        (a.tokens, a.score, a.truncated) == (b.tokens, b.score, b.truncated) and np.array_equal(a.alphas, b.alphas)
        for mine, yours in zip(ours, theirs, strict=True)
        for a, b in zip(mine, yours, strict=True)
        if a.alphas is not None and b.alphas is not None
    )


@pytest.mark.parametrize("beam", [1, 3, 5])
@pytest.mark.parametrize("images", [1, 2, 3, 4, 9])
def test_captions_scores_and_alphas_are_those_of_onnx_runtime(
    tmp_path: Path, gpu: Gpu, pictures: NDArray[np.uint8], beam: int, images: int
) -> None:
    """Batches in a bucket, between two and above the largest, which runs in parts."""
    bundle = built(shutil.copytree(EXAMPLE, tmp_path / "bundle"), beams=(beam,))
    pixels = pictures[:images]
    with TRT.open(bundle, threads=0) as trt, open_backend("ort", bundle, threads=1) as ort:
        for part in (pixels, pixels[::-1]):  # the second time as CUDA graphs, on buffers that were used before
            parts = [part[first : first + 4] for first in range(0, len(part), 4)]
            expected = [one for piece in parts for one in captions(ort, bundle, piece, beam=beam, n_best=beam)]
            assert same(captions(trt, bundle, part, beam=beam, n_best=beam), expected)


def test_a_batch_runs_in_the_narrowest_profile_that_holds_it(
    bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu
) -> None:
    with TRT.open(bundle, threads=0) as trt:
        for images, profile in ((1, 0), (2, 1), (3, 1), (4, 2)):
            gpu.runs.clear()
            captions(trt, bundle, pictures[:images])
            assert {index for _, _, index in gpu.runs} == {profile}


def test_encoder_and_step_run_on_streams_of_their_own(bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu) -> None:
    with TRT.open(bundle, threads=0) as trt:
        captions(trt, bundle, pictures[:2])
    streams = {graph: {stream for name, stream, _ in gpu.runs if name == graph} for graph in ("encoder", "step")}
    assert [len(streams[graph]) for graph in streams] == [1, 1]
    assert not streams["encoder"] & streams["step"]


def test_a_batch_is_encoded_while_another_is_searched(bundle: Bundle, pictures: NDArray[np.uint8]) -> None:
    """The pipeline of a run: two threads, several batches under way, and captions that belong to their images."""
    options = CaptionOptions(batch=2, backend="ort", threads=1, loaders=1, search=SearchOptions(beam=3))
    with Captioner.open(bundle, options) as reference:
        expected = list(reference.caption(list(pictures)))
    with Captioner(bundle, TRT.open(bundle, threads=0), options) as captioner:
        assert list(captioner.caption(list(pictures))) == expected


def test_images_take_the_places_of_others_on_the_gpu(bundle: Bundle, pictures: NDArray[np.uint8]) -> None:
    options, expected = SearchOptions(beam=3), []
    with TRT.open(bundle, threads=0) as trt:
        expected = [
            search(trt.begin(pictures[i : i + 2], options, with_alphas=False), bundle.vocabulary, options)
            for i in (0, 2, 4)
        ]
        searching, found = ContinuousSearch(bundle.vocabulary, options), []
        decodings = [trt.begin(pictures[i : i + 2], options, with_alphas=False) for i in (0, 2, 4)]
        assert all(isinstance(one, SharedDecoding) for one in decodings)
        for one in decodings:
            searching.add(one)
        while searching.is_busy:
            found += searching.run()
    assert found == expected


def test_two_searches_may_take_turns(bundle: Bundle, pictures: NDArray[np.uint8]) -> None:
    options = SearchOptions(beam=3)
    with TRT.open(bundle, threads=0) as trt, open_backend("ort", bundle, threads=1) as ort:
        bias = np.zeros(len(bundle.vocabulary), np.float32)
        both = [[b.begin(pictures[i : i + 2], options, with_alphas=False) for i in (0, 2)] for b in (trt, ort)]
        for _ in range(4):
            for ours, theirs in zip(*both, strict=True):
                assert np.array_equal(ours.advance(bias).tokens, theirs.advance(bias).tokens)


def test_addresses_are_set_once_and_memory_is_allocated_once(
    bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu
) -> None:
    with TRT.open(bundle, threads=0) as trt:
        captions(trt, bundle, pictures[:3])
        before = gpu.addresses_set, gpu.live["memory"], gpu.live["execution context"]
        captions(trt, bundle, pictures[3:6])
        assert (gpu.addresses_set, gpu.live["memory"], gpu.live["execution context"]) == before
        assert before[2] == 3  # the encoder, and the step to and fro


def test_each_direction_of_the_step_is_captured_once_and_replayed(
    bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu
) -> None:
    with TRT.open(bundle, threads=0) as trt:
        for _ in range(3):
            captions(trt, bundle, pictures[:3])
        assert gpu.live["executable graph"] == 3
        plain = 3  # each of them once
        assert gpu.launches == len(gpu.runs) - plain


def test_a_refused_capture_changes_nothing_but_the_speed(
    bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.refuses_capture = True
    with TRT.open(bundle, threads=0) as trt, open_backend("ort", bundle, threads=1) as ort:
        for pixels in (pictures[:2], pictures[2:4], pictures[4:6]):
            assert same(captions(trt, bundle, pixels), captions(ort, bundle, pixels))
    assert (gpu.launches, gpu.last_error.value) == (0, 0)
    refusals = [record.message for record in caplog.records if "runs without a CUDA graph" in record.message]
    assert len(refusals) == 3
    assert "CUDA says cudaErrorStreamCaptureInvalidated" in refusals[0]


def test_a_search_stops_as_soon_as_no_caption_can_change(bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu) -> None:
    with TRT.open(bundle, threads=0) as trt:
        found = captions(trt, bundle, pictures[:1], max_length=40)
        words = len(found[0][0].tokens)
        assert sum(name == "step" for name, _, _ in gpu.runs) == words + 1 < 40


def test_graphs_run_once_give_what_onnx_runtime_gives(bundle: Bundle, pictures: NDArray[np.uint8]) -> None:
    with TRT.open(bundle, threads=0) as trt, open_backend("ort", bundle, threads=1) as ort:
        ours, theirs = (backend.run("encoder", {"pixels": pictures[:2]}) for backend in (trt, ort))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_hard_attention_gets_its_noise(hard_bundle: Path, tmp_path: Path, gpu: Gpu) -> None:
    from tests.bundles import patchworks

    shutil.copytree(hard_bundle, tmp_path / "hard")
    bundle, pixels = built(tmp_path / "hard", beams=(2,)), patchworks(3, seed=4)
    with TRT.open(bundle, threads=0) as trt, open_backend("ort", bundle, threads=1) as ort:
        for seed in (1, 2):
            asked: dict[str, Any] = {"beam": 2, "decode_mode": "sample", "seed": seed, "max_length": 8}
            assert same(captions(trt, bundle, pixels, **asked), captions(ort, bundle, pixels, **asked))


def test_the_description_says_what_runs(bundle: Bundle) -> None:
    with TRT.open(bundle, threads=0) as trt:
        assert (trt.description, trt.precision) == ("TensorRT 10.16.1.11, NVIDIA Double, fp32", "fp32")


def refusal(bundle: Bundle) -> str:
    with pytest.raises(BackendError) as caught:
        TRT.open(bundle, threads=0)
    return str(caught.value)


REBUILD = 'run "saccade build {} --batch 1,3,4 --beam 3 --precision fp32"'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda gpu: setattr(gpu, "compute_capability", (8, 9)),
            "was built by TensorRT 10.16.1.11 on NVIDIA Double (compute capability 9.0), {system}; this is "
            "TensorRT 10.16.1.11 on NVIDIA Double (compute capability 8.9), {system}",
        ),
        (lambda gpu: setattr(gpu, "name", "NVIDIA Triple"), "this is TensorRT 10.16.1.11 on NVIDIA Triple"),
    ],
)
def test_a_plan_of_another_machine_is_refused_with_the_command_that_rebuilds_it(
    bundle: Bundle, gpu: Gpu, change: Callable[[Gpu], None], reason: str
) -> None:
    from saccade.plans import machine_of
    from tests.cuda_double import DRIVER

    system = machine_of(
        type("driver", (), {name: staticmethod(v) if callable(v) else v for name, v in DRIVER.items()}), tensorrt="1"
    ).system
    change(gpu)
    message = refusal(bundle)
    assert message.startswith(f"{bundle.path}/plans/encoder.fp32.plan was built by")
    assert reason.format(system=system) in message
    assert message.endswith(REBUILD.format(bundle.path))


def test_another_driver_is_no_reason_to_refuse(bundle: Bundle, gpu: Gpu) -> None:
    gpu.driver_version = 14000
    TRT.open(bundle, threads=0).__exit__()


def test_a_plan_of_another_version_of_tensorrt_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt, "__version__", "11.4.0.106")
    message = refusal(bundle)
    assert "was built by TensorRT 10.16.1.11 on" in message
    assert "this is TensorRT 11.4.0.106 on" in message


def test_a_plan_of_another_graph_is_refused(bundle: Bundle) -> None:
    record = bundle.path / "plans" / "step.fp32.beam3.json"
    values = json.loads(record.read_text())
    assert values["onnx_sha256"] == bundle.manifest.files["step.onnx"].sha256
    record.write_text(json.dumps(values | {"onnx_sha256": "0" * 64}))
    message = refusal(bundle)
    assert message == f"{record.with_suffix('.plan')} was built from another step.onnx: {REBUILD.format(bundle.path)}"


def test_a_damaged_plan_is_refused(bundle: Bundle) -> None:
    plan = bundle.path / "plans" / "step.fp32.beam3.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert f"{plan} is damaged, or its record belongs to another plan: run" in refusal(bundle)


def test_a_plan_without_its_record_is_refused(bundle: Bundle) -> None:
    (bundle.path / "plans" / "encoder.fp32.json").unlink()
    assert "encoder.fp32.plan is missing or incomplete: run" in refusal(bundle)


def test_a_record_that_is_no_record_is_refused(bundle: Bundle) -> None:
    (bundle.path / "plans" / "encoder.fp32.json").write_text("{}")
    assert "encoder.fp32.plan cannot be used (" in refusal(bundle)


def test_a_record_that_lies_is_found_out_by_tensorrt(bundle: Bundle, gpu: Gpu) -> None:
    """What TensorRT wrote to its log comes with the refusal, and what was loaded before is freed."""
    gpu.tensorrt = "10.17"  # of the library, which the version of the bindings does not tell
    assert "TensorRT 10.16.1.11 refuses it: the version tag ('10.16.1.11', (9, 0)) does not match" in refusal(bundle)


def test_a_bundle_without_plans_says_how_to_build_them(tmp_path: Path, gpu: Gpu) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "bundle")
    assert refusal(Bundle.open(tmp_path / "bundle")).endswith(
        f'run "saccade build {tmp_path}/bundle --batch 1,8,32,128 --beam 3 --precision fp16"'
    )


def test_a_beam_without_a_plan_says_how_to_build_it(bundle: Bundle, pictures: NDArray[np.uint8]) -> None:
    with TRT.open(bundle, threads=0) as trt, pytest.raises(BackendError) as caught:
        captions(trt, bundle, pictures[:1], beam=2)
    assert "has plans for beam 3, not for 2: run" in str(caught.value)
    assert "--beam 2,3" in str(caught.value)


def test_no_gpu_is_said_in_one_line(bundle: Bundle, gpu: Gpu) -> None:
    gpu.name = ""
    assert refusal(bundle).startswith("no NVIDIA GPU can be used (cuInit failed: no CUDA-capable device is detected)")


def test_too_little_memory_is_said_and_leaves_nothing_behind(
    bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu
) -> None:
    with TRT.open(bundle, threads=0) as trt:
        gpu.memory_left = 200_000
        with pytest.raises(BackendError, match="the GPU has no 0 MB left"):
            captions(trt, bundle, pictures[:4])


def test_an_opening_that_fails_half_way_frees_what_it_took(bundle: Bundle, gpu: Gpu) -> None:
    gpu.memory_left = 4096  # the scratch memory of one plan
    assert "MB left" in refusal(bundle)
    assert gpu.live["memory"] == 0


def test_a_search_that_outlives_its_backend_is_told_so(bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu) -> None:
    bias = np.zeros(len(bundle.vocabulary), np.float32)
    with TRT.open(bundle, threads=0) as trt:
        decoding = trt.begin(pictures[:2], SearchOptions(beam=3), with_alphas=False)
        decoding.advance(bias)
    assert {kind: count for kind, count in gpu.live.items() if count and kind != "event"} == {}
    with pytest.raises(BackendError, match="this backend is closed"):
        decoding.advance(bias)


def test_memory_of_a_single_run_is_freed_with_it(bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu) -> None:
    with TRT.open(bundle, threads=0) as trt:
        before = gpu.live["memory"], gpu.live["pinned"], gpu.live["execution context"]
        trt.run("encoder", {"pixels": pictures[:2]})
        gc.collect()
        assert (gpu.live["memory"], gpu.live["pinned"], gpu.live["execution context"]) == before


def test_the_context_is_current_only_while_it_is_used(bundle: Bundle, pictures: NDArray[np.uint8], gpu: Gpu) -> None:
    depths = []
    with TRT.open(bundle, threads=0) as trt:
        thread = threading.Thread(
            target=lambda: depths.append((captions(trt, bundle, pictures[:1]), gpu.current())[1]), name="saccade-test"
        )
        thread.start()
        thread.join()
        assert [*depths, gpu.current()] == [0, 0]


def test_auto_takes_tensorrt_where_it_works(bundle: Bundle) -> None:
    assert next(iter(BACKENDS)) == "trt"
    with open_backend("auto", bundle) as backend:
        assert backend.description.startswith("TensorRT")
