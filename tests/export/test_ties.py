"""Equal scores go to the lower row, then to the lower word, in eager PyTorch and in the exported graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from training.graphs import survivors

pytestmark = pytest.mark.filterwarnings("ignore:# The axis name")  # two inputs share each of them

END = 2
Run = Callable[[dict[str, NDArray[np.generic]]], list[NDArray[np.generic]]]


class Survivors(nn.Module):
    def forward(self, scores: Tensor, log_probs: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        return survivors(scores, log_probs, slots, end=END)


def graph(words: int, path: Path) -> Path:
    inputs = {"scores": torch.zeros(2, 3), "log_probs": torch.zeros(2, 3, words), "slots": torch.full((2,), 3)}
    images, beam = Dim("images"), Dim("beam")
    shapes = {"scores": {0: images, 1: beam}, "log_probs": {0: images, 1: beam}, "slots": {0: images}}
    program = torch.onnx.export(Survivors().eval(), kwargs=inputs, dynamic_shapes=shapes, dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path))
    return path


def by_eager_pytorch(_: Path) -> Run:
    return lambda inputs: [output.numpy() for output in Survivors()(*map(torch.from_numpy, inputs.values()))]


def by_onnx_runtime(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path)
    return lambda inputs: session.run(None, inputs)


def by_openvino(path: Path) -> Run:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from engine.backends.ovino_graphs import read_graph

    core = openvino.Core()
    model = core.compile_model(read_graph(core, path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: [np.array(value) for value in model(inputs).values()]


def by_sorting(inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """All candidates in a stable order."""
    scores, log_probs, slots = inputs.values()
    rows, words = log_probs.shape[1:]
    candidates = (scores[:, :, None] + log_probs).reshape(len(scores), -1)
    places = np.argsort(-candidates, axis=1, kind="stable")[:, :rows]
    best = np.take_along_axis(candidates, places, axis=1)
    exists = (np.arange(rows) < slots[:, None]) & (best != -np.inf)
    tokens = np.where(exists, places % words, END)
    ended = (exists & (tokens == END)).sum(axis=1)
    return [tokens, places // words, np.where(exists, best, -np.inf), slots - ended]


@pytest.fixture(scope="module", params=[40, 700], ids=["at once", "by chunks"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(request.param, tmp_path_factory.mktemp("ties") / "survivors.onnx")


@pytest.mark.parametrize("compiled", [by_eager_pytorch, by_onnx_runtime, by_openvino])
@pytest.mark.parametrize("beam", [1, 3, 5])
def test_equal_scores_go_to_the_lower_row_then_to_the_lower_word(
    path: Path, compiled: Callable[[Path], Run], beam: int
) -> None:
    """Log-probs of few different values, so that nearly every choice is one among equals."""
    run = compiled(path)
    words = onnxruntime.InferenceSession(path).get_inputs()[1].shape[-1]
    generator = np.random.default_rng(beam)
    for _ in range(20):
        log_probs = -generator.integers(1, 4, (4, beam, words)).astype(np.float32)
        log_probs[:, :, END] -= generator.integers(0, 2)
        scores = -generator.integers(0, 3, (4, beam)).astype(np.float32)
        scores[0, 1:] = -np.inf  # the first step: one row
        inputs = {"scores": scores, "log_probs": log_probs, "slots": np.array([beam, beam, 1, 0])}
        for found, expected in zip(run(inputs), by_sorting(inputs), strict=True):
            np.testing.assert_array_equal(found, expected)
