"""The two graphs as ONNX files."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.uint8_inputs import cast_uint8_inputs
from saccade.bundle import GraphSpec, TensorSpec
from training.checkpoint import Checkpoint
from training.graphs import (
    ENCODER_INPUTS,
    ENCODER_OUTPUTS,
    STEP_OUTPUTS,
    EncoderGraph,
    StepGraph,
    step_inputs,
)

OPSET = 20
_OPSET_BF16 = 22
"""The first whose convolutions know bfloat16."""
IMAGES, BEAM = "images", "beam"


def export_encoder(checkpoint: Checkpoint, path: Path) -> GraphSpec:
    """Write encoder.onnx; the number of images varies."""
    size = checkpoint.description.preprocessing.size
    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    return _export(
        EncoderGraph(checkpoint.captioner).eval(),
        {"pixels": pixels},
        {"pixels": (IMAGES,)},
        (ENCODER_INPUTS, ENCODER_OUTPUTS),
        path,
    )


def export_step(checkpoint: Checkpoint, path: Path) -> GraphSpec:
    """Write step.onnx; the numbers of images and of rows per image vary."""
    decoder = checkpoint.captioner.decoder
    varying = {
        "annotations": (IMAGES,),
        "keys": (IMAGES,),
        "tokens": (IMAGES, BEAM),
        "hidden": (IMAGES, BEAM),
        "cell": (IMAGES, BEAM),
        "scores": (IMAGES, BEAM),
        "slots": (IMAGES,),
        "word_bias": (),
        "noise": (IMAGES, BEAM),
        "sampled": (IMAGES,),
    }
    names = step_inputs(decoder)
    return _export(
        StepGraph(decoder, end=checkpoint.vocabulary.end).eval(),
        example_step_inputs(checkpoint, images=2, beam=3),
        {name: varying[name] for name in names},
        (names, STEP_OUTPUTS),
        path,
    )


def example_step_inputs(checkpoint: Checkpoint, *, images: int, beam: int) -> dict[str, Tensor]:
    """Random inputs of the step graph, in the middle of a search: every row live."""
    encoder, decoder = checkpoint.captioner.encoder, checkpoint.captioner.decoder
    size = checkpoint.description.preprocessing.size
    rows, columns = encoder.grid(size)
    dtype = decoder.embedding.weight.dtype
    values = torch.rand(images, encoder.cells(size), encoder.width, dtype=dtype)
    hidden = decoder.options.hidden_width
    words = len(checkpoint.vocabulary)
    with torch.inference_mode():
        # Copies: without them, other graphs come out, which read the number of rows from another input.
        values, keys = (part.clone() for part in decoder.annotate(values, places=rows * columns))
    tokens = torch.randint(0, words, (images, beam))
    inputs = {
        "annotations": values,
        "keys": keys,
        "tokens": tokens.masked_fill(tokens == checkpoint.vocabulary.end, checkpoint.vocabulary.start),
        "hidden": (torch.rand(images, beam, hidden) * 2 - 1).to(dtype),
        "cell": torch.randn(images, beam, hidden).to(dtype),
        "scores": -torch.rand(images, beam) * 10,
        "slots": torch.full((images,), beam),
        "word_bias": torch.zeros(words),
        "noise": -torch.empty(images, beam, rows * columns).exponential_().log(),  # Gumbel
        "sampled": torch.rand(images) < 0.5,
    }
    return {name: inputs[name] for name in step_inputs(decoder)}


def _export(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    varying: dict[str, tuple[str, ...]],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    path: Path,
) -> GraphSpec:
    dims = {name: Dim(name) for axes in varying.values() for name in axes}
    shapes = {name: {axis: dims[dim] for axis, dim in enumerate(axes)} for name, axes in varying.items()}
    with _quiet_exporter():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=shapes,
            opset_version=_OPSET_BF16 if any(p.dtype == torch.bfloat16 for p in graph.parameters()) else OPSET,
            dynamo=True,
            external_data=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    program.save(str(path), external_data=False)
    model = cast_uint8_inputs(onnx.load(path))
    model.metadata_props.clear()
    for node in model.graph.node:  # source locations of the exporting machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return graph_spec(path)


def graph_spec(path: Path) -> GraphSpec:
    """What the inputs and outputs of a graph file are."""
    graph = onnx.load(path).graph
    return GraphSpec(
        file=path.name,
        inputs=tuple(_tensor_spec(value) for value in graph.input),
        outputs=tuple(_tensor_spec(value) for value in graph.output),
    )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter narrates to stdout and warns of packages we do not use."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim),
    )
