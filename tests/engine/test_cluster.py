"""A run on a Ray cluster of this machine: complete, each image once, whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from engine.captioner import CaptionOptions
from engine.cluster import ClusterOptions, _gpus, run_on_cluster
from engine.names import Selection
from engine.results import LOCK, done_names, read_records, read_run, results_folders
from engine.run import RunOptions
from saccade.errors import ConfigError
from saccade.progress import Reporter
from tests.commands import COMMAND, call

IMAGES = 500


@pytest.fixture
def images(tmp_path: Path) -> Path:
    originals = sorted(Path("examples/scenes/images").resolve().glob("*.png"))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number:03d}.png").symlink_to(originals[number % len(originals)])
    (folder / "no-image.png").write_bytes(b"")
    return folder


def start(images: Path, out: Path) -> subprocess.Popen[str]:
    command = ("caption", images, "--bundle", "examples/bundle", "--out", out, "--actors", "2", "--num-shards", "12")
    options = ("--max-failures", "1", "--threads", "1", "--json")
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND[-1], *command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_work(out: Path) -> set[int]:
    """Processes that hold the folder of a shard which is not complete."""
    folders = [folder for folder in out.glob("shard-*") if (folder / "run.json").exists()]
    return {
        int(text)
        for folder in folders
        if "last_run" not in read_run(folder) and (text := (folder / LOCK).read_text()).isdigit()
    }


@pytest.mark.slow
def test_an_actor_is_killed_and_the_run_is_complete_and_each_image_in_it_once(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(images, out)
    while not any("last_run" in read_run(folder) for folder in out.glob("shard-*") if (folder / "run.json").exists()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    while not (actors := at_work(out)):
        assert process.poll() is None, process.communicate()
    victim = actors.pop()
    os.kill(victim, signal.SIGKILL)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert (summary["captioned"], summary["failed"]) == (IMAGES, 1)
    assert "died" in stderr
    folders = results_folders(out)
    assert len(folders) == 12
    names = Counter(name for folder in folders for name in done_names(folder))
    assert names == Counter(map(str, images.iterdir()))
    workers = {int((folder / LOCK).read_text()) for folder in folders}
    assert len(workers - {victim}) >= 2
    captions = {record.path: record.caption for folder in folders for record in read_records(folder)}
    assert len(captions) == IMAGES
    assert captions[str(images / "000.png")] == captions[str(images / "024.png")]


def test_what_cannot_be_spread_is_refused() -> None:
    def refuse(inputs: list[str], options: RunOptions) -> str:
        with pytest.raises(ConfigError) as caught:
            run_on_cluster(
                Path("examples/bundle"),
                inputs,
                Path("out"),
                options,
                CaptionOptions(),
                ClusterOptions(actors=1),
                reporter=Reporter(quiet=True),
            )
        return str(caught.value)

    assert "standard input reaches no actor" in refuse(["-"], RunOptions())
    assert "use --sample" in refuse(["photos"], RunOptions(selection=Selection(limit=3)))


@pytest.mark.parametrize(
    ("actors", "gpus", "problem"),
    [(3, None, "3 actors need 3 CPUs, the cluster has 2"), (2, 0.5, "2 actors need 1 GPUs, the cluster has 0")],
)
def test_a_cluster_that_has_too_little_is_told_before_it_waits(actors: int, gpus: float | None, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        _gpus(ClusterOptions(actors=actors, gpus=gpus), {"CPU": 2.0})


@pytest.mark.parametrize("values", [{"actors": 0}, {"actors": 1, "shards": -1}, {"actors": 1, "gpus": -0.5}])
def test_impossible_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="invalid cluster options"):
        ClusterOptions(**values)  # type: ignore[arg-type]


def test_actors_need_a_folder_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "caption", "photos", "--bundle", "examples/bundle", "--actors", "2")
    assert outcome.code == 2
    assert "--actors needs --out" in outcome.err
