"""Names and signatures of TensorRT: those that the code uses, and what the real bindings say of them.

`python -m tests.tensorrt_bindings STUB.c` downloads the bindings of both versions from the package index, puts
libraries without content beside them (TensorRT's own are not there) and writes `tests/tensorrt_names.json`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = Path(__file__).with_name("tensorrt_names.json")
VERSIONS = ("10.16.1.11", "11.4.0.106")
PACKAGES = ("saccade", "training", "export", "engine", "benchmarks")

Signatures = dict[str, list[str]]
"""Name to the signatures of its overloads; none for what is not called."""

_READ = """
import json, sys
import tensorrt_bindings as trt

def found(name):
    value = trt
    for part in name.split("."):
        value = getattr(value, part)
    if isinstance(value, type):
        value = value.__init__
    lines = (line.strip().partition(". ")[2] or line.strip() for line in (value.__doc__ or "").splitlines())
    called = value.__name__ if hasattr(value, "__name__") else None
    return sorted(line for line in lines if called and line.startswith(called + "(self"))

print(json.dumps({name: found(name) for name in json.load(sys.stdin)}))
"""


def recorded() -> dict[str, Signatures]:
    """What was found in the real bindings, by version."""
    found: dict[str, Signatures] = json.loads(NAMES.read_text(encoding="utf-8"))
    return found


def names_used() -> set[str]:
    """Names of TensorRT in the code: `trt.A.B`, members of what is annotated as `trt.A`, and what is overridden."""
    return {
        name for file in files_that_use_tensorrt() for name in _names_in(ast.parse(file.read_text(encoding="utf-8")))
    }


def files_that_use_tensorrt() -> list[Path]:
    """Those that import it, and those that are given the module."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return [file for file in files if "trt." in file.read_text(encoding="utf-8")]


def _names_in(tree: ast.Module) -> Iterator[str]:
    kinds: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if kind := _after_trt(base):
                    yield from (
                        f"{kind}.{one.name}"
                        for one in node.body
                        if isinstance(one, ast.FunctionDef) and one.name[0] != "_"
                    )
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation and (kind := _after_trt(node.annotation)):
            target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            assert kinds.setdefault(target, kind) == kind, f"{target} is of two kinds"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if name := _after_trt(node):
                yield name
            elif kind := kinds.get(ast.unparse(node.value)):
                yield f"{kind}.{node.attr}"


def _after_trt(node: ast.expr) -> str | None:
    """`A.B` of `trt.A.B`."""
    text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    return text.removeprefix("trt.") if text.startswith("trt.") and "(" not in text else None


def signatures_of(version: str, names: set[str], stub: Path, folder: Path) -> Signatures:
    """What the real bindings of a version say of names. Raises CalledProcessError where they cannot be had or imported.

    stub : C source of what the bindings look for in TensorRT's libraries
    """
    package = f"tensorrt_cu13_bindings=={version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob(f"*-{version}-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / version)
    beside = folder / version / "tensorrt_bindings"
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        out = beside / f"lib{library}.so.{version.partition('.')[0]}"
        subprocess.run(["cc", "-w", "-shared", "-fPIC", stub, "-o", out], check=True, capture_output=True, text=True)
    done = subprocess.run(
        [sys.executable, "-c", _READ],
        input=json.dumps(sorted(names - {"__version__"})),
        env=os.environ | {"LD_LIBRARY_PATH": str(beside), "PYTHONPATH": str(folder / version)},
        check=True,
        capture_output=True,
        text=True,
    )
    plain = done.stdout.replace("tensorrt_bindings.tensorrt.", "").replace("typing_extensions.", "")
    found: Signatures = json.loads(plain)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = {one: signatures_of(one, names_used(), Path(sys.argv[1]), Path(place)) for one in VERSIONS}
    NAMES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
