"""Each command and each example of Python in the documents runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_reference import PAGE

DOCS = PAGE.parent
SHELL = [
    DOCS / name
    for name in (
        "benchmark.md",
        "bring-your-own.md",
        "cluster.md",
        "compare.md",
        "configuration.md",
        "formats.md",
        "inputs.md",
        "output.md",
        "tensorrt.md",
    )
]


def blocks(page: Path, language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no {language}"
    return "\n".join(found)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the examples, and this saccade and its Python on the path."""
    (tmp_path / "examples").symlink_to(DOCS.parent / "examples")
    (tmp_path / "bin").mkdir()
    for name, command in (("saccade", f"{sys.executable} -m saccade"), ("python", sys.executable)):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    return tmp_path


def run(command: list[str], place: Path) -> None:
    done = subprocess.run(
        command,
        cwd=place,
        env=os.environ | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(DOCS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", SHELL, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_one_after_the_other(page: Path, place: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", blocks(page, "sh")], place)


@pytest.mark.slow
def test_the_examples_of_python_run(place: Path) -> None:
    run([sys.executable, "-W", "error", "-c", blocks(DOCS / "python.md", "python")], place)
