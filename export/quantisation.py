"""8-bit encoders: explicit quantisation of the float32 graph by ONNX Runtime's quantiser.

Symmetric throughout, zero points 0, so that TensorRT takes the same file; weights by output channel; biases stay float.
The linear layers behind the trunk (keys, initial state) stay floats as well: they are a hundredth of the arithmetic.
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

from export.graphs import graph_spec
from saccade.bundle import GraphSpec
from saccade.errors import ConfigError, ExportError

RangeMethod = Literal["minmax", "entropy"]

_BATCH = 8
_QUANTISED = ("Conv", "Relu", "Clip", "MaxPool", "AveragePool")
"""What is fused with a convolution, or passes 8-bit integers on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationOptions:
    """How ranges of activations are found, and what stays float.

    method : "minmax" keeps the largest value seen, "entropy" clips where the distribution loses least
    keep_first, keep_last : so many convolutions at either end stay as they are
    """

    method: RangeMethod = "minmax"
    keep_first: int = 2
    keep_last: int = 0

    def __post_init__(self) -> None:
        if min(self.keep_first, self.keep_last) < 0:
            raise ConfigError("keep_first and keep_last must be 0 or more")


def quantise_encoder(
    source: Path, destination: Path, pixels: NDArray[np.uint8], options: QuantisationOptions
) -> GraphSpec:
    """Write the 8-bit form of encoder.onnx.

    pixels : uint8 (N, S, S, 3), images like those that will be captioned; their activations give the ranges
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(source)
    methods = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy}
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        inferred = Path(scratch) / source.name
        onnx.save(onnx.shape_inference.infer_shapes(model), inferred)
        quantize_static(
            inferred,
            destination,
            _Reader(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept(model, options),
            calibrate_method=methods[options.method],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    return graph_spec(destination)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser narrates to stdout and to the root logger."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _kept(model: onnx.ModelProto, options: QuantisationOptions) -> list[str]:
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    if options.keep_first + options.keep_last >= len(names):
        raise ExportError(f"nothing is left to quantise: the encoder has {len(names)} convolutions, keep fewer")
    return names[: options.keep_first] + names[len(names) - options.keep_last :]


class _Reader:
    """A `CalibrationDataReader` over images in memory, in batches of one size: histograms are added up."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        size = min(_BATCH, len(pixels))
        self._batches = (pixels[start : start + size] for start in range(0, len(pixels) - size + 1, size))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch as the graph's inputs."""
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}
