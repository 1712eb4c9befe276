"""Every name of TensorRT and CUDA that the code uses is there, with the signature it is called with."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_double import DRIVER, RUNTIME
from tests.tensorrt_bindings import ROOT, VERSIONS, files_that_use_tensorrt, names_used, recorded, signatures_of
from tests.tensorrt_double import OFFERED, ILogger

NOT_RECORDED = {"__version__"}  # of the package, not of the bindings


def own(kind: type) -> set[str]:
    """Public members that a class of a double offers."""
    return {name for name in vars(kind) if not name.startswith("_") and not name.endswith("_")}


def offered() -> set[str]:
    """What the double of TensorRT offers, with members of members."""
    names = set(OFFERED) | {f"{name}.{member}" for name, kind in OFFERED.items() for member in own(kind)}
    return names | {f"ILogger.Severity.{one.name}" for one in ILogger.Severity}


def parameters(signature: str) -> list[str]:
    """Names of the parameters of a signature, as pybind11 writes it."""
    return re.findall(r"(?:\(|, )(\w+): ", signature)


def test_the_list_of_names_is_complete() -> None:
    for version in VERSIONS:
        assert set(recorded()[version]) == names_used() - NOT_RECORDED, "run `python -m tests.tensorrt_bindings STUB.c`"


def test_only_these_modules_use_tensorrt() -> None:
    assert {str(file.relative_to(ROOT)) for file in files_that_use_tensorrt()} == {
        "engine/backends/trt.py",
        "export/tensorrt_plans.py",
        "saccade/plans.py",
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_each_name_stands_in_the_api_of_both_versions(version: str, shared: Path) -> None:
    api = json.loads((shared / "tensorrt" / f"api-{version}.json").read_text())
    for name in names_used() - NOT_RECORDED:
        first, *members = name.split(".")
        assert first in api
        assert set(members) - {"__init__"} <= set(api[first])


def test_what_tensorrt_11_removed_is_not_used() -> None:
    assert not {name for name in names_used() if re.search(r"BuilderFlag\.(FP|BF|INT)|Calibrat|EXPLICIT_BATCH", name)}


def test_the_double_offers_what_is_used_and_no_more() -> None:
    used = {name for name in names_used() - NOT_RECORDED if not name.endswith("__init__")}
    assert {name for name in offered() if not _is_warning(name)} == used


def _is_warning(name: str) -> bool:
    return name == "ILogger.Severity.WARNING"  # a severity that is not kept


@pytest.mark.parametrize("version", VERSIONS)
def test_the_double_takes_the_arguments_that_the_bindings_take(version: str) -> None:
    for name, kind in OFFERED.items():
        calls = {f"{name}.{member}": vars(kind)[member] for member in own(kind)} | {name: kind.__init__}
        for called, function in calls.items():
            overloads = [parameters(signature) for signature in recorded()[version].get(called, [])]
            if overloads and inspect.isfunction(function) and not issubclass(kind, Enum):
                assert list(inspect.signature(function).parameters) in overloads, called


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_names_and_signatures_are_those_of_the_real_bindings(version: str, shared: Path, tmp_path: Path) -> None:
    """The bindings import over libraries without content; only TensorRT's libraries know more."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to make the libraries of")
    names = names_used() - NOT_RECORDED
    try:
        found = signatures_of(version, names, shared / "tensorrt" / "stub.c", tmp_path)
    except subprocess.CalledProcessError as error:
        if "pip" not in str(error.cmd):
            raise
        pytest.skip(f"the bindings of TensorRT {version} cannot be had: {error.stderr.splitlines()[-1]}")
    assert found == recorded()[version]


@pytest.mark.parametrize("name", RUNTIME)
def test_names_of_the_cuda_runtime_are_those_of_its_bindings(name: str) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings comes with PyTorch for CUDA alone")
    ours, theirs = RUNTIME[name], getattr(runtime, name)
    if isinstance(ours, type):
        assert own(ours) <= set(dir(theirs))
    else:
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(("module", "names"), [("driver", DRIVER), ("runtime", RUNTIME)], ids=["driver", "runtime"])
def test_the_double_of_cuda_offers_what_is_used_and_no_more(module: str, names: dict[str, Any]) -> None:
    files = [ROOT / name for name in ("engine/backends/cuda.py", "saccade/plans.py")]
    used = {
        node.attr
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == module
    }
    assert used == set(names)


def test_names_of_pycuda_stand_in_its_wheel(shared: Path) -> None:
    (wheel,) = (shared / "gpu" / "wheels").glob("pycuda-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        parts = [name for name in archive.namelist() if re.fullmatch(r"pycuda/_?driver\..*", name)]
        content = b"\0".join(archive.read(name) for name in parts)
    members = {member for kind in DRIVER.values() if isinstance(kind, type) for member in own(kind)}
    for name in {*DRIVER, *members, "free"}:
        # No boundary before it: a linker keeps one string for "x" and "y_x".
        assert re.search(name.encode() + rb"\b", content), name
