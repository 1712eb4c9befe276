"""Runs that are killed, stopped or out of disk, at random: in the end the same bytes as of one that was left alone."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import engine.run
from engine.results import FAILURES, committed_parts, done_names
from engine.run import run
from saccade.errors import OutputError
from saccade.progress import Reporter
from tests.bundles import save_patchworks
from tests.commands import COMMAND

SMALL_PARTS = "import engine.run; engine.run.PART_SIZE = 16"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 images, 60 different ones under many names, and among them some that cannot be read."""
    folder = tmp_path_factory.mktemp("many")
    originals = save_patchworks(folder / "originals", 60)
    originals[7].write_bytes(originals[7].read_bytes()[:100])
    originals[31].write_bytes(b"")
    images = folder / "images"
    for number in range(2000):
        place = images / f"{number % 7}" / f"{number:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(originals[number % 60])
    return images


def start(images: Path, bundle: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *(sys.executable, "-c", f"{SMALL_PARTS}; {COMMAND[-1]}"),
            *("caption", images, "--bundle", bundle, "--out", out, "--max-failures", "-1", "--quiet"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(images: Path, bundle: Path, out: Path) -> None:
    process = start(images, bundle, out)
    output = process.communicate()
    assert (process.returncode, output) == (0, (b"", b""))


def contents(out: Path) -> tuple[bytes, bytes]:
    """Records and failures, byte for byte, part boundaries aside."""
    parts = sorted(out.glob("part-*.jsonl"))
    return b"".join(part.read_bytes() for part in parts), (out / FAILURES).read_bytes()


def parts_of(out: Path) -> int:
    """How many are complete."""
    return len(committed_parts(out)) if out.exists() else 0


def names(out: Path) -> list[str]:
    return sorted(done_names(out))


@pytest.mark.slow
def test_thirty_times_killed_at_random_a_run_ends_with_the_bytes_of_one_that_was_left_alone(
    tiny_bundle: Path, many: Path, tmp_path: Path
) -> None:
    """Another run takes the rest of the kills where one is nearly done: a busy machine does more before it kills."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    killed, outs = 0, [tmp_path / "killed"]
    while killed < 30:
        if parts_of(outs[-1]) >= 90:
            outs.append(tmp_path / f"killed-{killed}")
        process = start(many, tiny_bundle, out := outs[-1])
        goal = parts_of(out) + chance.randrange(4)
        while process.poll() is None and not (out / f"part-{goal:05d}.stats.json").exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"seed {seed}: it ended by itself"
        killed += 1
    assert parts_of(outs[0]) > 0, f"seed {seed}"
    finish(many, tiny_bundle, tmp_path / "alone")
    for out in outs:
        assert parts_of(out) < 2000 // 16, f"seed {seed}"
        finish(many, tiny_bundle, out)
        assert names(out) == sorted(str(path) for path in many.rglob("*.png")), f"seed {seed}"
        assert contents(out) == contents(tmp_path / "alone"), f"seed {seed}"


def test_a_first_signal_finishes_the_part_and_a_second_does_not_wait(
    tiny_bundle: Path, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", f"{SLOW}; {COMMAND[-1]}"]
    process = subprocess.Popen(
        [*command, "caption", many, "--bundle", tiny_bundle, "--out", out, "--batch", "1", "--quiet"],
        stderr=subprocess.PIPE,
    )
    while not (out / "part-00000.stats.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert time.monotonic() - began < 5  # what was begun would have taken longer
    before = len(committed_parts(out))
    finish(many, tiny_bundle, out)
    assert len(committed_parts(out)) > before
    assert names(out) == sorted(str(path) for path in many.rglob("*.png"))


SLOW = (
    "import signal, time, engine.run, saccade.search; engine.run.PART_SIZE = 1; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); searching = saccade.search.ContinuousSearch; "
    "run = searching.run; searching.run = lambda self: (time.sleep(1), run(self))[1]"
)
"""A search that takes a second."""


# Full disks


def full_at(instant: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """From the given write on, counted over syncs, renames and flushes, there is no space left."""
    calls = count()

    def limited(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= instant:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (Path, "replace")):
        monkeypatch.setattr(owner, name, limited(getattr(owner, name)))
    return calls


def test_a_disk_that_is_full_at_any_write_loses_nothing_committed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.captioner import Captioner, CaptionOptions

    monkeypatch.setattr(engine.run, "PART_SIZE", 3)
    photos = save_patchworks(tmp_path / "photos", 12)
    photos[2].write_bytes(b"")
    photos[7].write_bytes(b"no image")
    quiet = Reporter(quiet=True)
    with Captioner.open(tiny_bundle, CaptionOptions(batch=4)) as captioner:
        run(captioner, [str(photos[0].parent)], tmp_path / "alone", reporter=quiet)
        for instant in count():
            out = tmp_path / f"full-{instant}"
            with monkeypatch.context() as patch:
                full_at(instant, patch)
                try:
                    run(captioner, [str(photos[0].parent)], out, reporter=quiet)
                    break
                except OutputError as error:
                    assert "No space left on device): free some space" in str(error)  # noqa: PT017
            kept = contents_committed(out)
            run(captioner, [str(photos[0].parent)], out, reporter=quiet)
            assert contents(out) == contents(tmp_path / "alone")
            assert contents(out)[0].startswith(kept)
    assert instant > 15


def contents_committed(out: Path) -> bytes:
    if not (out / "run.json").exists():
        return b""
    return b"".join((out / f"part-{number:05d}.jsonl").read_bytes() for number in range(len(committed_parts(out))))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
def test_a_truly_full_disk_is_one_clear_line_and_a_larger_one_continues(
    tiny_bundle: Path, many: Path, small_disk: Path, tmp_path: Path
) -> None:
    process = start(many, tiny_bundle, small_disk / "out")
    out, err = process.communicate()
    assert (process.returncode, out) == (1, b"")
    (line,) = err.decode().splitlines()
    assert line.startswith("saccade: error: ")
    assert line.endswith("free some space or choose another --out, then run the same command again")
    kept = contents_committed(small_disk / "out")
    assert len(kept) > 10_000
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    finish(many, tiny_bundle, small_disk / "out")
    finish(many, tiny_bundle, tmp_path / "alone")
    assert contents(small_disk / "out") == contents(tmp_path / "alone")
    assert contents(small_disk / "out")[0].startswith(kept)
