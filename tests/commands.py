"""The `saccade` command as people meet it: exit code, stdout and stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from saccade.cli import main

COMMAND = (sys.executable, "-c", "from saccade.cli import main; main()")
"""What the installed script runs; it itself may not be on the path."""

Argument = str | bytes | Path


class Outcome(NamedTuple):
    """How a command ended."""

    code: int | str | None
    out: str
    err: str

    @property
    def error(self) -> str:
        """The only line on stderr, without its prefix; fails where there is more, or less, or another exit code."""
        (line,) = self.err.splitlines()
        assert self.code == 1
        assert line.startswith("saccade: error: ")
        return line.removeprefix("saccade: error: ")


def call(capsys: pytest.CaptureFixture[str], *arguments: Argument) -> Outcome:
    """Run the command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([os.fsdecode(argument) for argument in arguments])
    return Outcome(end.value.code or 0, *capsys.readouterr())


def spawn(*arguments: Argument, **variables: str) -> Outcome:
    """Run the command in a process of its own, with these environment variables beside the present ones."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**os.environ, **variables},
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
