"""A thousand hostile files in one run: a caption or a named failure for each, in bounded memory and time."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from engine.results import read_failures, read_records
from tests.commands import COMMAND

PEAK = "import atexit, sys; atexit.register(lambda: sys.stderr.write(open('/proc/self/status').read()))"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_every_hostile_file_has_a_caption_or_a_named_failure(shared: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shared / "data/nasty_images"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    paths = [str(folder / file["file"]) for file in manifest]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    out, began = tmp_path / "out", time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-c", f"{PEAK}; {COMMAND[-1]}", "caption", f"@{tmp_path / 'list.txt'}"),
            *("--bundle", tiny_bundle, "--out", out, "--loaders", "4", "--quiet"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert time.monotonic() - began < 300
    said, peak = done.stderr.split("VmHWM:")
    assert said.startswith("Name:")  # nothing before the process's own report
    assert int(peak.split()[0]) * 1024 < 1_500_000_000
    captioned, failures = [one.path for one in read_records(out)], list(read_failures(out))
    assert Counter([*captioned, *(one.path for one in failures)]) == Counter(paths)
    assert len(captioned) == 440  # docs/pixels.md explains the difference from Pillow's 486, file by file
    assert "too_slow" not in {one.kind for one in failures}
