"""Where in the encoder the error of a candidate enters: its graph with every tensor inside as a further output.

Both sides run the same kind of graph, image by image: the reference's in ONNX Runtime in float32, the candidate's on
its own backend. Further outputs keep a runtime from fusing operators, so its errors can differ a little from those of
the graph as it is used. In an 8-bit graph, tensors are matched by their names in the float32 graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import ErrorSums
from benchmarks.comparison_results import LayerError, Layers
from engine.backends.base import Backend, open_backend
from saccade.bundle import Bundle, GraphSpec, Precision, TensorSpec
from saccade.decoding import Arrays
from saccade.errors import ConfigError

JUMP = 10.0
"""An error enters where it is so many times what comes into the operator."""
_ROUNDING = 1e-5
_NOTICED = 1e-4
_FLOATS = {1: "float32", 10: "float16"}
_BACKENDS = ("ort", "openvino", "ort-cuda")


def find_layers(
    reference: Bundle,
    candidate: Bundle,
    backend: str,
    precision: Precision,
    images: Sequence[NDArray[np.uint8]],
    *,
    threads: int = 0,
) -> Layers:
    """Errors of the tensors that both encoders have, in the order of computing.

    images : uint8 (S, S, 3)
    Raises ConfigError where onnx is missing.
    """
    if backend not in _BACKENDS:
        return Layers(enters=None, tensors=(), note=f"layers can be told of {', '.join(_BACKENDS)} only")
    with (
        _opened(reference, "ort", "fp32", threads) as expected,
        _opened(candidate, backend, precision, threads) as found,
    ):
        sums: dict[str, ErrorSums] = {}
        for pixels in images:
            values = [one.run("encoder", {"pixels": pixels[None]}) for one in (expected, found)]
            for name in values[0].keys() & values[1].keys():
                if values[0][name].shape == values[1][name].shape:
                    _add(sums.setdefault(name, ErrorSums()), values, name)
    errors = {name: one.errors().deviation for name, one in sums.items()}
    tensors = tuple(_along(_read(reference.path / reference.graph("encoder").file), errors))
    return Layers(enters=_entrance(tensors), tensors=tensors)


def _add(sums: ErrorSums, values: Sequence[Arrays], name: str) -> None:
    expected, found = (one[name].astype(np.float64) for one in values)
    sums.add(np.atleast_1d(expected), np.atleast_1d(found))


def _entrance(tensors: Sequence[LayerError]) -> LayerError | None:
    """The first tensor whose error is many times that of what its operator reads."""
    jumps = (one for one in tensors if one.deviation > max(JUMP * max(one.before, _ROUNDING), _NOTICED))
    return next(jumps, max(tensors, key=lambda one: one.deviation, default=None) if _is_wrong(tensors) else None)


def _is_wrong(tensors: Sequence[LayerError]) -> bool:
    return any(one.deviation > _NOTICED for one in tensors)


def _along(model: Any, errors: Mapping[str, float]) -> Iterator[LayerError]:
    """The tensors of a graph that are known on both sides; what is not known passes on what came into it."""
    known: dict[str, float] = {}
    for node in model.graph.node:
        before = max((known.get(name, 0.0) for name in node.input), default=0.0)
        for name in node.output:
            known[name] = errors.get(name, before)
            if name in errors:
                yield LayerError(tensor=name, operator=node.op_type, deviation=errors[name], before=before)


@contextmanager
def _opened(bundle: Bundle, backend: str, precision: Precision, threads: int) -> Iterator[Backend]:
    """The bundle on a backend, its encoder with every float tensor inside as a further output, for one image."""
    with tempfile.TemporaryDirectory() as folder:
        wide = _with_tensors(bundle, precision, Path(folder))
        with open_backend(backend, wide, threads=threads, precision=precision) as opened:
            yield opened


def _with_tensors(bundle: Bundle, precision: Precision, folder: Path) -> Bundle:
    """A bundle in `folder` whose encoder shows what is inside."""
    import onnx

    variant = bundle.manifest.variants.get(precision)
    spec = (bundle.manifest.graphs | (variant.graphs if variant else {}))["encoder"]
    for name in bundle.manifest.files:
        if name != spec.file:
            (folder / name).symlink_to((bundle.path / name).resolve())
    model = _read(bundle.path / spec.file)
    shown = list(_tensors_inside(model, spec))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tensor.name) for tensor in shown)
    onnx.save(model, folder / spec.file)
    wide = replace(spec, outputs=(*spec.outputs, *shown))
    if variant and "encoder" in variant.graphs:
        changed = replace(variant, graphs=variant.graphs | {"encoder": wide})
        manifest = replace(bundle.manifest, variants=bundle.manifest.variants | {precision: changed})
    else:
        manifest = replace(bundle.manifest, graphs=bundle.manifest.graphs | {"encoder": wide})
    return Bundle(folder, manifest, bundle.vocabulary)


def _tensors_inside(model: Any, spec: GraphSpec) -> Iterator[TensorSpec]:
    """Float tensors of operators whose shapes are known for one image, the graph's own outputs left out."""
    import onnx

    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del single.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True)
    made = {name for node in model.graph.node for name in node.output} - {tensor.name for tensor in spec.outputs}
    for value in inferred.graph.value_info:
        kind = value.type.tensor_type
        shape = tuple(dimension.dim_value for dimension in kind.shape.dim)
        if value.name in made and kind.elem_type in _FLOATS and kind.HasField("shape") and 0 not in shape:
            yield TensorSpec(name=value.name, dtype=_FLOATS[kind.elem_type], shape=shape)


def _read(path: Path) -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ConfigError("--layers needs onnx, which is not installed: pip install 'saccade[export]'") from error
    return onnx.load(path)
