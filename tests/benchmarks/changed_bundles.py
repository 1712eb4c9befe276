"""Bundles with one thing wrong, made of a good one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from saccade.bundle import MANIFEST, file_entries
from saccade.structure import unstructure

Weights = dict[str, NDArray[Any]]
Change = Callable[[Weights], None]


def changed(bundle: Path, destination: Path, **changes: Change) -> Path:
    """A copy without the checkpoint whose graphs, by their name, have other weights; its manifest fits."""
    shutil.copytree(bundle, destination, ignore=shutil.ignore_patterns("*.safetensors"))
    for graph, change in changes.items():
        path = destination / f"{graph}.onnx"
        model = onnx.load(path)
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
        change(weights)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
        onnx.save(model, path)
    return sealed(destination)


def sealed(bundle: Path) -> Path:
    """The bundle again, with a manifest that lists the files that are there."""
    path = bundle / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"] = unstructure(file_entries(bundle))
    path.write_text(json.dumps(manifest))
    return bundle


def in_half_precision(weights: Weights) -> None:
    """Every float as float16 has it."""
    for name, values in weights.items():
        if values.dtype == np.float32:
            weights[name] = values.astype(np.float16).astype(np.float32)
