"""The doctor says what is installed, what runs, what clashes and what to install, whatever state things are in."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import engine.doctor
from engine.backends.base import BACKENDS, BackendEntry
from engine.doctor import PACKAGES, clashes, diagnose
from saccade.bundle import Bundle
from tests.bundles import CPU_BACKENDS
from tests.commands import call


def rows(text: str, table: str = "backend") -> dict[str, str]:
    """First column to the rest of every row of a table, called by its first heading; a wrapped row counts as one."""
    found: dict[str, str] = {}
    name = heading = ""
    for line in text.splitlines():
        if line.startswith("┃"):
            heading = line.strip("┃ ").split()[0]
        if line.startswith("│") and heading == table:
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            name = cells[0] or name
            found[name] = " ".join(filter(None, (found.get(name), *cells[1:])))
    return found


def test_both_onnx_runtimes_clash() -> None:
    both: dict[str, str | None] = {"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}
    (advice,) = clashes(both)
    assert "pip uninstall onnxruntime onnxruntime-gpu" in advice
    for one in both:
        assert clashes(both | {one: None}) == []


def test_torch_needs_torchvision_beside_it() -> None:
    assert clashes({"torch": "2.15", "torchvision": "0.29"}) == []
    assert clashes({"torch": None, "torchvision": "0.29"}) == []
    (advice,) = clashes({"torch": "2.15", "torchvision": None})
    assert "pip install 'saccade[train]'" in advice


def test_nothing_installed_clashes_with_nothing() -> None:
    assert clashes({}) == clashes(dict.fromkeys(PACKAGES)) == []


def test_every_package_is_listed_with_its_version_and_extra() -> None:
    report = diagnose()
    listed = rows(report.text, "package")
    assert sys.executable in report.text.replace("\n", "")
    for name, extra in PACKAGES.items():
        assert listed[name].split()[1] == extra
    assert listed["numpy"].split()[0] == np.__version__


def test_without_a_bundle_a_backend_is_only_imported() -> None:
    report = diagnose()
    assert report.runs
    for name in CPU_BACKENDS:
        assert rows(report.text)[name] == "imports (give --bundle to see it run)"


@pytest.mark.parametrize("name", ["ort-tensorrt", "ort-cuda", "pytorch-cuda"])
def test_without_a_driver_nothing_is_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch takes seconds, and half a gigabyte, to say that it sees no GPU."""
    assert BACKENDS[name].driver == "libcuda.so.1"
    monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], module="engine.backends.absent", driver="libabsent.so"))
    assert "no NVIDIA driver that works (libabsent.so: " in rows(diagnose().text)[name]


def test_a_runtime_without_the_provider_of_a_backend_does_not_count_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "ort-cuda", replace(BACKENDS["ort-cuda"], driver=None))
    assert "has no CUDAExecutionProvider" in rows(diagnose().text)["ort-cuda"]


def test_with_a_bundle_every_backend_is_seen_to_run(tiny_bundle: Path) -> None:
    report = diagnose(Bundle.open(tiny_bundle))
    assert report.runs
    for name, begins in (("openvino", "OpenVINO "), ("ort", "ONNX Runtime "), ("pytorch", "PyTorch ")):
        assert rows(report.text)[name].startswith(f"runs: {begins}")


def test_the_command_prints_the_report(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "doctor", "--bundle", tiny_bundle)
    assert outcome.code == 0
    assert outcome.err == ""
    assert rows(outcome.out)["ort"].startswith("runs: ONNX Runtime ")


def test_missing_packages_and_what_brings_them_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Square brackets are text here: a terminal library may take them for markup and swallow them."""
    for name, entry in BACKENDS.items():
        monkeypatch.setitem(BACKENDS, name, BackendEntry("engine.backends.absent", entry.package, entry.extra))
    monkeypatch.setattr(engine.doctor, "_version", lambda name: None)
    outcome = call(capsys, "doctor")
    assert outcome.code == 1
    listed = rows(outcome.out)
    assert rows(outcome.out, "package")["onnxruntime"] == "- cpu"
    assert "pip install 'saccade[cpu]'" in listed["ort"]
    assert "pip install 'saccade[train]'" in listed["pytorch"]
    assert outcome.out.splitlines()[-1] == "! no backend runs: pip install 'saccade[cpu]'"


def test_a_backend_that_breaks_does_not_break_the_doctor(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sick_backend.py").write_text(
        "def open_backend(bundle, *, threads, precision): raise RuntimeError('[x] no memory')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "ort", BackendEntry("sick_backend", "onnxruntime", "cpu"))
    report = diagnose(Bundle.open(tiny_bundle))
    assert rows(report.text)["ort"] == "fails: [x] no memory"
    assert report.runs  # the other one does
