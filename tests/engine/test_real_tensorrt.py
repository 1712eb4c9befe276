"""TensorRT itself: plans that are built here and caption like PyTorch. Needs its libraries and a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.backends.base import BACKENDS, open_backend
from export.build_cli import build
from saccade.bundle import Bundle
from saccade.errors import BackendError
from saccade.files import sha256
from saccade.search import SearchOptions, search
from tests.bundles import patchworks

pytestmark = pytest.mark.tensorrt


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with plans in float32."""
    for name in ("tensorrt", "pycuda.driver", "cuda.bindings.runtime"):
        pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
    try:
        BACKENDS["trt"].check()
    except BackendError as error:
        pytest.skip(str(error))
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("real") / "bundle")
    build.main([str(folder), "--batch", "1,8,16", "--beam", "1,3,5", "--precision", "fp32"], standalone_mode=False)
    return Bundle.open(folder)


@pytest.mark.parametrize("beam", [1, 3, 5])
@pytest.mark.parametrize("images", [1, 5, 8, 40])
def test_captions_equal_pytorchs(bundle: Bundle, beam: int, images: int) -> None:
    """Twice, so that the second batch runs as CUDA graphs on buffers that were used before."""
    with open_backend("trt", bundle) as trt, open_backend("pytorch", bundle) as pytorch:
        for seed in (1, 2):
            options = SearchOptions(beam=beam, max_length=bundle.manifest.max_length)
            pixels = patchworks(images, seed=seed)
            ours, theirs = (
                search(backend.begin(pixels, options, with_alphas=True), bundle.vocabulary, options)
                for backend in (trt, pytorch)
            )
            assert [one[0].tokens for one in ours] == [one[0].tokens for one in theirs]
            for mine, yours in zip(ours, theirs, strict=True):
                assert mine[0].log_prob == pytest.approx(yours[0].log_prob, abs=1e-3)
                assert mine[0].alphas is not None
                assert yours[0].alphas is not None
                assert np.abs(mine[0].alphas - yours[0].alphas).max() < 1e-3


def test_no_graph_was_refused(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    options = SearchOptions(beam=3, max_length=bundle.manifest.max_length)
    with open_backend("trt", bundle) as trt:
        search(trt.begin(patchworks(8, seed=3), options, with_alphas=False), bundle.vocabulary, options)
    assert caplog.messages == []


def test_a_plan_that_is_none_is_refused_by_tensorrt_with_its_reason(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    plan = folder / "plans" / "encoder.fp32.plan"
    plan.write_bytes(b"no plan")
    record = json.loads(plan.with_suffix(".json").read_text())
    plan.with_suffix(".json").write_text(json.dumps(record | {"plan_sha256": sha256(plan)}))
    with pytest.raises(BackendError, match=r"encoder.fp32.plan: TensorRT .* refuses it: (?!it gave no reason)"):
        open_backend("trt", Bundle.open(folder))
