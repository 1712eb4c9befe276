"""Does a graph compute what the model computes? Measured on ONNX Runtime against eager PyTorch in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.graphs import example_step_inputs
from saccade.decoding import Arrays, HostDecoding
from saccade.errors import ExportError
from saccade.glimpses import DecodeMode
from saccade.hypotheses import Hypothesis
from saccade.search import SearchOptions, glimpses_of, search
from training.checkpoint import Checkpoint
from training.decoding import TorchDecoder
from training.graphs import ENCODER_OUTPUTS, STEP_OUTPUTS, StepGraph

TOLERANCE = 1e-4
"""Largest absolute difference of any float output that passes, in float32."""

BEAMS = (1, 3, 5)


class OnnxGraph:
    """A graph file on ONNX Runtime's CPU provider, NumPy in and out.

    exact : run it node by node as it is written; fused 8-bit integers saturate on processors without VNNI
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ExportError(
                "verifying an export needs ONNX Runtime: pip install 'saccade[cpu]' (or 'saccade[gpu]')"
            ) from error
        options = onnxruntime.SessionOptions()
        if exact:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs by name."""
        return dict(zip(self._names, self._session.run(None, dict(inputs)), strict=True))


def measure_errors(
    checkpoint: Checkpoint,
    encoder: Callable[[Arrays], Arrays],
    step: Callable[[Arrays], Arrays],
    images: NDArray[np.uint8],
) -> dict[str, float]:
    """Largest absolute difference of every output, over random and real inputs at several batch and beam sizes.

    images : uint8 (N, S, S, 3), real pictures; random ones are added
    The states behind `next_hidden` and `next_cell` are compared where both sides chose the same candidate; ties broken
    by rounding are left to `compare_captions`, which compares what was meant to be equal.
    """
    decoder = TorchDecoder(checkpoint.captioner, checkpoint.vocabulary)
    graph = StepGraph(checkpoint.captioner.decoder, end=checkpoint.vocabulary.end).eval()
    errors = dict.fromkeys((*ENCODER_OUTPUTS, "alphas", "next_scores", "next_hidden", "next_cell"), 0.0)
    noise = np.random.default_rng(0).integers(0, 256, (2, *images.shape[1:]), np.uint8)
    for pixels in (images, noise, images[:1]):
        expected = {name: tensor.numpy() for name, tensor in decoder.encode(pixels).items()}
        _update(errors, expected, encoder({"pixels": pixels}), ENCODER_OUTPUTS)
    torch.manual_seed(0)
    for beam in BEAMS:
        for inputs in _step_inputs(checkpoint, decoder, images, beam):
            with torch.inference_mode():
                expected = {n: t.numpy() for n, t in zip(STEP_OUTPUTS, graph(**inputs), strict=True)}
            found = step({name: tensor.numpy() for name, tensor in inputs.items()})
            _update(errors, expected, found, ("alphas", "next_scores"))
            same = (expected["next_tokens"] == found["next_tokens"]) & (expected["parents"] == found["parents"])
            _update(errors, expected, found, ("next_hidden", "next_cell"), where=same)
    return errors


def require_tolerance(errors: dict[str, float], tolerance: float) -> None:
    """Raise ExportError naming every output that is off by more than `tolerance`, or is NaN."""
    wrong = [f"{name} by {error:.2e}" for name, error in errors.items() if not error <= tolerance]
    if wrong:
        raise ExportError(
            f"the exported graphs differ from the model by more than {tolerance:g}: {', '.join(wrong)}; "
            "nothing was written (see --tolerance)"
        )


def compare_captions(
    checkpoint: Checkpoint, encoder: OnnxGraph, step: OnnxGraph, images: NDArray[np.uint8]
) -> dict[str, int]:
    """Number of images whose best caption differs from eager PyTorch's, in its tokens or in ending.

    Keys name the beam and, of hard attention, the decode mode.
    """
    decoder = TorchDecoder(checkpoint.captioner, checkpoint.vocabulary)
    attention = checkpoint.captioner.decoder.options.attention
    modes: tuple[DecodeMode, ...] = get_args(DecodeMode) if attention == "hard" else ("expected",)
    encoded = encoder({"pixels": images})
    different = {}
    for beam, mode in product(BEAMS, modes):
        options = SearchOptions(beam=beam, max_length=checkpoint.description.max_length, decode_mode=mode)
        found = search_graph(checkpoint, step, encoded, images, options)
        expected = decoder.search(images, options)
        different[f"beam {beam}" if len(modes) == 1 else f"beam {beam}, {mode}"] = count_different(found, expected)
    return different


def search_graph(
    checkpoint: Checkpoint, step: OnnxGraph, encoded: Arrays, images: NDArray[np.uint8], options: SearchOptions
) -> list[list[Hypothesis]]:
    """Hypotheses that a step graph finds from the outputs of an encoder graph for those images."""
    attention, vocabulary = checkpoint.captioner.decoder.options.attention, checkpoint.vocabulary
    glimpses = glimpses_of(images, options, attention, places=encoded["keys"].shape[1])
    decoding = HostDecoding(
        step, encoded, beam=options.beam, start=vocabulary.start, with_alphas=False, glimpses=glimpses
    )
    return search(decoding, vocabulary, options)


def count_different(found: Sequence[Sequence[Hypothesis]], expected: Sequence[Sequence[Hypothesis]]) -> int:
    """Number of images whose best captions differ, in their tokens or in ending."""
    return sum(
        (a[0].tokens, a[0].truncated) != (b[0].tokens, b[0].truncated) for a, b in zip(expected, found, strict=True)
    )


def require_same_captions(different: dict[str, int], images: int) -> None:
    """Raise ExportError if any caption differs."""
    if any(different.values()):
        counts = ", ".join(f"{count} of {images} at {what}" for what, count in different.items() if count)
        raise ExportError(f"captions of the exported graphs differ from the model's on {counts}; nothing was written")


def _step_inputs(
    checkpoint: Checkpoint, decoder: TorchDecoder, images: NDArray[np.uint8], beam: int
) -> Iterable[dict[str, Tensor]]:
    """Random states, and the first step on real images."""
    yield example_step_inputs(checkpoint, images=1, beam=beam)
    inputs = example_step_inputs(checkpoint, images=len(images), beam=beam)
    yield inputs
    encoded = decoder.encode(images)
    real = {name: encoded[name] for name in ("annotations", "keys")}
    states = {name: encoded[name][:, None].expand(-1, beam, -1).contiguous() for name in ("hidden", "cell")}
    yield inputs | real | states


def _update(
    errors: dict[str, float],
    expected: Arrays,
    found: Arrays,
    names: Sequence[str],
    where: NDArray[np.bool_] | None = None,
) -> None:
    for name in names:
        a, b = (
            np.asarray(side[name] if where is None else side[name][where], np.float64) for side in (expected, found)
        )
        infinite = np.isinf(a) & (a == b)
        difference = np.abs(np.where(infinite, 0, a) - np.where(infinite, 0, b))
        errors[name] = float(np.maximum(errors[name], difference.max(initial=0.0)))  # np.maximum keeps a NaN
