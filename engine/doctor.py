"""`saccade doctor`: what is installed, which backends truly run here, what clashes and what to install."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.backends.base import BACKENDS
from saccade.bundle import Bundle
from saccade.errors import BackendError, SaccadeError
from saccade.search import SearchOptions, search

PACKAGES = {
    "numpy": "core",
    "pillow": "core",
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "onnxruntime-gpu": "gpu",
    "tensorrt": "tensorrt",
    "pycuda": "tensorrt",
    "torch": "train",
    "torchvision": "train",
    "onnx": "export",
    "onnxscript": "export",
}
"""Distribution to the extra that brings it."""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings as text, and whether any backend runs here."""

    text: str
    runs: bool


def diagnose(bundle: Bundle | None = None) -> Report:
    """Look at the installation; with a bundle, caption an image with it on every backend.

    Without one, a backend counts as running if its package imports: only a bundle shows that it computes.
    """
    installed = {name: _version(name) for name in PACKAGES}
    states = {name: _try_backend(name, bundle) for name in BACKENDS}
    console = Console(width=110, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(
            f"Python {platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}, "
            f"{os.cpu_count()} cores"
        )
        packages = Table("package", "version", "extra")
        for name, version in installed.items():
            packages.add_row(name, version or "-", PACKAGES[name])
        console.print(packages)
        backends = Table("backend", "state")
        for name, state in states.items():
            backends.add_row(name, state.text)
        console.print(backends)
        for line in _advice(installed, any(state.runs for state in states.values())):
            console.print(f"! {line}")
    return Report(capture.get().rstrip(), any(state.runs for state in states.values()))


def clashes(installed: dict[str, str | None]) -> list[str]:
    """What must not be installed together, for versions by distribution name (None: absent)."""
    found = []
    if installed.get("onnxruntime") and installed.get("onnxruntime-gpu"):
        found.append(
            "onnxruntime and onnxruntime-gpu overwrite each other's files: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of the extras cpu and gpu"
        )
    if installed.get("torch") and not installed.get("torchvision"):
        found.append("torch is installed without torchvision: pip install 'saccade[train]'")
    return found


@dataclass(frozen=True, slots=True)
class _State:
    runs: bool
    text: str


def _try_backend(name: str, bundle: Bundle | None) -> _State:
    entry = BACKENDS[name]
    if bundle is None:
        try:
            entry.check()
        except BackendError as error:
            return _State(False, str(error))
        return _State(True, "imports (give --bundle to see it run)")
    size = bundle.manifest.preprocessing.size
    try:
        with entry.open(bundle, threads=0) as backend:
            options = SearchOptions(beam=1, max_length=2)
            decoding = backend.begin(np.zeros((1, size, size, 3), np.uint8), options, with_alphas=False)
            search(decoding, bundle.vocabulary, options)
            return _State(True, f"runs: {backend.description}")
    except SaccadeError as error:
        return _State(False, str(error))
    except Exception as error:  # noqa: BLE001 - a broken runtime raises whatever it likes, and is to be told of
        return _State(False, f"fails: {error}")


def _advice(installed: dict[str, str | None], runs: bool) -> list[str]:
    lines = clashes(installed)
    if not runs:
        lines.append("no backend runs: pip install 'saccade[cpu]'")
    return lines


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
