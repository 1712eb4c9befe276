"""Whether a run lasts: `python -m benchmarks.endurance`.

Measured, each in a process of its own that is watched once a second:

captioning : `saccade caption` over very many small images (drawn scenes, each under many names by hard links, in
    folders of 1,000). Its resident memory after the first minute, the most that grew from there, its file descriptors
    and threads, what waited in its queues, and whether every image is in the results exactly once
scanning : how long very many names in one folder take until the first image is found, and until the last, with the
    memory of that process

Left out: quality, for which any caption will do (so beam 1 is the default), speed, and what memory does in the first
minute: libraries are loaded and buffers reach their size then.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from PIL import Image

from engine.results import done_names, read_run
from saccade.errors import OutputError
from saccade.progress import Reporter
from training.environment import environment
from training.scenes import generate_scene

_PER_FOLDER = 1000
_ORIGINALS = 200
_MINUTE_S = 60.0
_PAUSE_S = 1.0
_MOST_GROWTH = 0.05
_MIB = 1 << 20

_SCAN = """
import json, re, sys, time
from pathlib import Path
from engine.run import RunOptions, selected
began = time.perf_counter()
found = selected(sys.argv[1:], RunOptions())
next(found)
first = time.perf_counter() - began
count = 1 + sum(1 for _ in found)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"names": count, "first_s": first, "all_s": time.perf_counter() - began, "peak_mib": peak}))
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one moment of its life."""

    second: float
    resident_mib: float
    descriptors: int
    threads: int


def draw_images(folder: Path, count: int, *, size: int) -> None:
    """Write `count` JPEGs of scenes, size x size pixels, under names that differ; few of them differ in content."""
    originals = folder / "originals"
    originals.mkdir(parents=True)
    for seed in range(min(count, _ORIGINALS)):
        Image.fromarray(generate_scene(seed, size=size).pixels).save(originals / f"{seed}.jpg")
    for number in range(count):
        place = folder / "images" / f"{number // _PER_FOLDER:05d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07d}.jpg").hardlink_to(originals / f"{number % _ORIGINALS}.jpg")


def watch(command: Sequence[str], reporter: Reporter) -> list[Sample]:
    """Run a command and look at it once a second. Raises OutputError where it fails."""
    samples: list[Sample] = []
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - the command is ours
        command, stderr=subprocess.PIPE, text=True
    )
    watched = psutil.Process(process.pid)
    with reporter.task("captioning", None, unit="samples") as update, _ended(process):
        while process.poll() is None:
            try:
                sample = Sample(
                    time.monotonic() - began,
                    watched.memory_info().rss / _MIB,
                    watched.num_fds(),
                    watched.num_threads(),
                )
            except psutil.Error:  # it has just ended
                break
            samples.append(sample)
            update(len(samples), resident_mib=sample.resident_mib)
            time.sleep(_PAUSE_S)
    _, said = process.communicate()
    if process.returncode != 0:
        raise OutputError(f"{' '.join(command)} ended with {process.returncode}: {said.strip()}")
    return samples


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind where the block is left early."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def steadiness(samples: Sequence[Sample]) -> dict[str, Any]:
    """What grew after the first minute, from the median of the second to that of the last, and the most there was.

    Raises OutputError where a run was over before.
    """
    settled = [sample for sample in samples if sample.second >= _MINUTE_S]
    if not settled:
        raise OutputError(f"the run took less than {_MINUTE_S:.0f} s, which shows nothing: take more images")
    second = [sample.resident_mib for sample in settled if sample.second < 2 * _MINUTE_S]
    last = [sample.resident_mib for sample in settled if sample.second >= samples[-1].second - _MINUTE_S]
    return {
        "resident_mib_in_second_minute": round(statistics.median(second), 1),
        "resident_mib_in_last_minute": round(statistics.median(last), 1),
        "resident_mib_most": round(max(sample.resident_mib for sample in settled), 1),
        "growth": round(statistics.median(last) / statistics.median(second) - 1, 4),
        "descriptors": [min(one.descriptors for one in settled), max(one.descriptors for one in settled)],
        "threads": [min(one.threads for one in settled), max(one.threads for one in settled)],
        "seconds": round(samples[-1].second),
    }


def measure_captioning(bundle: Path, folder: Path, count: int, options: Sequence[str]) -> dict[str, Any]:
    """Caption `count` images below `folder` and tell how the process fared."""
    size = 112
    draw_images(folder, count, size=size)
    out = folder / "out"
    command = [sys.executable, "-m", "saccade", "caption", str(folder / "images"), "--bundle", str(bundle)]
    samples = watch([*command, "--out", str(out), *options, "--quiet"], Reporter())
    names = list(done_names(out))
    return steadiness(samples) | {
        "images": count,
        "size": size,
        "options": list(options),
        "each_exactly_once": len(names) == len(set(names)) == count,
        "most_waiting": read_run(out)["last_run"]["most_waiting"],
        "samples": len(samples),
    }


def measure_scanning(folder: Path, count: int) -> dict[str, Any]:
    """Scan a folder of `count` names."""
    folder.mkdir()
    for number in range(count):
        os.close(os.open(folder / f"{number:08d}.jpg", os.O_CREAT | os.O_WRONLY))
    done = subprocess.run(  # noqa: S603 - the command is ours
        [sys.executable, "-c", _SCAN, folder], capture_output=True, text=True, check=True
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return {name: round(value, 3) for name, value in measured.items()}


@contextmanager
def _workplace(parent: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="endurance-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@click.command()
@click.option("--bundle", default="examples/bundle", show_default=True, type=click.Path(path_type=Path))
@click.option("--images", default=200_000, show_default=True, type=click.IntRange(min=0), help="To caption.")
@click.option("--names", default=2_000_000, show_default=True, type=click.IntRange(min=0), help="To scan.")
@click.option("--option", "options", multiple=True, default=("--beam=1",), show_default=True, help="Of the run.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where temporary files may lie.")
def main(bundle: Path, images: int, names: int, options: tuple[str, ...], folder: Path | None) -> None:
    """Caption very many images and scan very many names, and watch memory, descriptors and queues.

    The last line is JSON. Exits with 1 where memory grew by 5 % or more, or an image is missing or there twice.
    """
    record: dict[str, Any] = {"benchmark": "endurance", "environment": environment(torch.device("cpu"))}
    with _workplace(folder) as work:
        if names:
            record["scanning"] = measure_scanning(work / "names", names)
            click.echo(
                "scanning: {names} names, first after {first_s} s, all after {all_s} s, {peak_mib} MiB".format(
                    **record["scanning"]
                )
            )
        if images:
            record["captioning"] = measure_captioning(bundle, work, images, options)
            click.echo(
                "captioning: {images} images, {resident_mib_in_second_minute} MiB in the second minute, "
                "{resident_mib_most} MiB at most".format(**record["captioning"])
            )
    click.echo(json.dumps(record))
    run = record.get("captioning")
    if run and (run["growth"] >= _MOST_GROWTH or not run["each_exactly_once"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
