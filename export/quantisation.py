"""8-bit encoders: explicit quantisation of the float32 graph by ONNX Runtime's quantiser.

Symmetric throughout, zero points 0, so that TensorRT takes the same file; weights by output channel; biases stay float.
What a convolution reads is quantised, what it writes is not: activations and residual sums are then fused with it.
The linear layers behind the trunk (keys, initial state) stay floats as well: they are a hundredth of the arithmetic.
So do convolutions that read a concatenation: OpenVINO moves quantisation to before it, and gets a constant part wrong.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from export.centring import centre_clips
from export.graphs import graph_spec
from export.sensitivity import most_sensitive, with_floats
from saccade.bundle import GraphSpec
from saccade.errors import ConfigError

RangeMethod = Literal["percentile", "minmax", "entropy"]

_BATCH = 8
_SENSITIVITY_IMAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationOptions:
    """How ranges of activations are found, and what stays float.

    method : "percentile" leaves out the largest of 100,000 values, "minmax" keeps it, "entropy" clips where the
        distribution loses least
    float_share : convolutions that lose far more than others for what they compute stay float, up to this share of the
        multiply-adds; those that read a concatenation do so anyway
    """

    method: RangeMethod = "percentile"
    float_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.float_share < 1:
            raise ConfigError(f"float_share must be from 0 to below 1, not {self.float_share:g}")


def quantise_encoder(
    source: Path, destination: Path, pixels: NDArray[np.uint8], options: QuantisationOptions
) -> GraphSpec:
    """Write the 8-bit form of encoder.onnx.

    pixels : uint8 (N, S, S, 3), images like those that will be captioned; their activations give the ranges
    """
    model = onnx.shape_inference.infer_shapes(centre_clips(onnx.load(source)))
    quantised = _quantised(model, pixels, options.method)
    always = _behind_concatenations(model)
    few = pixels[:_SENSITIVITY_IMAGES]
    kept = most_sensitive(model, quantised, few, share=options.float_share, always=always)
    onnx.save(with_floats(quantised, model, kept), destination)
    return graph_spec(destination)


def _quantised(model: ModelProto, pixels: NDArray[np.uint8], method: RangeMethod) -> ModelProto:
    """The graph with all that its convolutions read in 8 bits."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "percentile": CalibrationMethod.Percentile,
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
    }
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        source, destination = (Path(scratch) / name for name in ("float.onnx", "int8.onnx"))
        onnx.save(model, source)
        quantize_static(
            source,
            destination,
            _Reader(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[method],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "CalibStridedMinMax": 1,  # of every method: one batch's activations in memory, not those of all
            },
        )
        return onnx.load(destination)


def _behind_concatenations(model: ModelProto) -> set[str]:
    """Names of the convolutions that read one."""
    joined = {node.output[0] for node in model.graph.node if node.op_type == "Concat"}
    return {node.name for node in model.graph.node if node.op_type == "Conv" and node.input[0] in joined}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser narrates to stdout and to the root logger."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


class _Reader:
    """A `CalibrationDataReader` over images in memory, in batches of one size: histograms are added up."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        size = min(_BATCH, len(pixels))
        self._batches = [pixels[start : start + size] for start in range(0, len(pixels) - size + 1, size)]
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Which batches come next."""
        self._next = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch as the graph's inputs."""
        batch = next(self._next, None)
        return None if batch is None else {"pixels": batch}
