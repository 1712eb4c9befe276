"""`saccade caption` on a part of the images: limits, samples, shards, what is tried again, and what would be done."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from engine.results import done_names, read_failures, read_records, read_run, results_folders
from tests.bundles import save_patchworks
from tests.commands import COMMAND, Outcome, call

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirty pictures in folders."""
    save_patchworks(tmp_path / "photos" / "a", 12)
    save_patchworks(tmp_path / "photos" / "b", 18, seed=2)
    return tmp_path / "photos"


def caption(capsys: Capsys, bundle: Path, *arguments: str | Path) -> Outcome:
    return call(capsys, "caption", "--bundle", bundle, "--quiet", *arguments)


def captioned(out: Path) -> list[str]:
    return ["/".join(Path(name).parts[-2:]) for name in done_names(out)]


def test_a_limit_takes_the_first_images_and_a_higher_one_continues(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "out"
    for limit in (5, 5, 14):
        assert caption(capsys, tiny_bundle, photos, "--out", out, "--limit", str(limit)).code == 0
        assert len(captioned(out)) == limit
    assert captioned(out) == [f"a/{number:02d}.png" for number in range(12)] + ["b/00.png", "b/01.png"]


def test_a_sample_is_the_same_each_time_and_part_of_a_larger_one(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    small = caption(capsys, tiny_bundle, photos, "--sample", "0.3").out
    large = caption(capsys, tiny_bundle, photos, "--sample", "0.7").out
    assert caption(capsys, tiny_bundle, photos, "--sample", "0.3").out == small
    assert 3 <= len(small.splitlines()) < len(large.splitlines()) < 30
    assert set(small.splitlines()) < set(large.splitlines())


def test_shards_share_the_images_and_their_folders_are_read_as_one(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "out"
    for shard in ("0", "1", "2"):
        shards = ("--num-shards", "3", "--shard-index", shard)
        assert caption(capsys, tiny_bundle, photos, "--out", out, *shards).code == 0
    folders = results_folders(out)
    assert [folder.name for folder in folders] == [f"shard-{shard:04d}-of-0003" for shard in range(3)]
    assert all(captioned(folder) for folder in folders)  # which shard an image is in hangs on its path
    together = Counter(name for folder in folders for name in done_names(folder))
    assert together == Counter(map(str, photos.rglob("*.png")))


def test_a_shard_that_does_not_exist_is_refused(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    outcome = caption(capsys, tiny_bundle, photos, "--num-shards", "3", "--shard-index", "3", "--out", tmp_path / "out")
    assert "the shard must be between 0 and 2, got 3" in outcome.error


def test_runs_of_other_shards_do_not_mix(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys) -> None:
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    caption(capsys, tiny_bundle, photos, "--out", whole)
    first_of_two = ("--num-shards", "2", "--shard-index", "0")
    assert "a run without shards" in caption(capsys, tiny_bundle, photos, "--out", whole, *first_of_two).error
    caption(capsys, tiny_bundle, photos, "--out", shards, *first_of_two)
    for other in ((), ("--num-shards", "3", "--shard-index", "1")):
        assert (
            "holds results of 2 shards, not of" in caption(capsys, tiny_bundle, photos, "--out", shards, *other).error
        )


def test_another_column_is_another_run(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys) -> None:
    caption(capsys, tiny_bundle, photos, "--out", tmp_path / "out", "--column", "left")
    other = caption(capsys, tiny_bundle, photos, "--out", tmp_path / "out", "--column", "right")
    assert "column was left, is right" in other.error


def test_a_limit_does_not_wait_for_an_image_that_it_leaves_out(tiny_bundle: Path, photos: Path) -> None:
    command = (sys.executable, "-c", COMMAND[-1], "caption", "-", "--bundle", tiny_bundle, "--quiet", "--limit", "2")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(b"".join(os.fsencode(photos / "a" / f"{number:02d}.png") + b"\n" for number in range(2)))
        process.stdin.flush()
        assert process.wait(30) == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("given", [0, 3])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_signal_ends_a_run_whose_list_pauses(
    tiny_bundle: Path, photos: Path, tmp_path: Path, sent: signal.Signals, given: int, keeps: bool
) -> None:
    out = ("--out", tmp_path / "out") if keeps else ()
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{heeded}; {COMMAND[-1]}", "caption", "-", "--bundle", tiny_bundle, *out],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"".join(os.fsencode(photos / "a" / f"{number:02d}.png") + b"\n" for number in range(given)))
    process.stdin.flush()
    assert process.stderr.readline().startswith(b"backend: ")
    time.sleep(0.5)
    process.send_signal(sent)
    assert process.wait(10) == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    process.stdin.close()
    process.stderr.close()
    if keeps and given:
        assert captioned(tmp_path / "out") == [f"a/{number:02d}.png" for number in range(given)]


def test_an_image_that_is_named_twice_is_captioned_once(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "list.txt").write_text(f"{photos / 'a' / '03.png'}\n" * 3)
    found = caption(capsys, tiny_bundle, f"@{tmp_path / 'list.txt'}", photos / "a", photos / "a" / "05.png").out
    assert Counter(line.split("\t")[0] for line in found.splitlines()) == Counter(map(str, (photos / "a").iterdir()))


def test_failures_are_tried_again_where_that_is_asked_for(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out, broken = tmp_path / "out", photos / "a" / "04.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    (photos / "a" / "text.jpg").write_text("This is no photo.")
    assert caption(capsys, tiny_bundle, photos, "--out", out).code == 3
    broken.write_bytes(whole)
    assert caption(capsys, tiny_bundle, photos, "--out", out).code == 3
    assert len(list(read_failures(out))) == 2
    assert caption(capsys, tiny_bundle, photos, "--out", out, "--retry-failures", "--max-failures", "1").code == 0
    assert [Path(one.path).name for one in read_failures(out)] == ["text.jpg"]
    assert Counter(record.path for record in read_records(out)) == Counter(map(str, photos.rglob("*.png")))


def test_a_dry_run_counts_and_writes_nothing(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "out"
    dry = (photos, photos / "a", "--out", out, "--dry-run")
    assert caption(capsys, tiny_bundle, *dry).out == "30 images to caption, 0 done, 12 named more than once\n"
    assert not out.exists()
    caption(capsys, tiny_bundle, photos / "a", "--out", out)
    before = {file: file.read_bytes() for file in out.iterdir()}
    assert json.loads(caption(capsys, tiny_bundle, *dry, "--json").out) == {"done": 12, "waiting": 18, "again": 12}
    assert json.loads(caption(capsys, tiny_bundle, *dry, "--json", "--overwrite").out)["waiting"] == 30
    assert "search.beam was 3, is 5" in caption(capsys, tiny_bundle, *dry, "--beam", "5").error
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_json_on_stdout_holds_whole_records(tiny_bundle: Path, photos: Path, capsys: Capsys) -> None:
    (photos / "a" / "text.jpg").write_text("This is no photo.")
    found = caption(capsys, tiny_bundle, photos, "--json", "--n-best", "2", "--attention")
    values = [json.loads(line) for line in found.out.splitlines()]
    assert found.code == 3
    assert len(values) == 31
    failed = [value for value in values if "kind" in value]
    assert [(Path(value["path"]).name, value["kind"]) for value in failed] == [("text.jpg", "not_an_image")]
    for value in values:
        if "kind" not in value:
            assert len(value["alternatives"]) == 1
            assert len(value["attention"]["alphas"]) == len(value["words"])


def test_json_beside_a_folder_tells_what_the_run_did(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "out"
    told = json.loads(caption(capsys, tiny_bundle, photos, "--out", out, "--json").out)
    assert (told["out"], told["captioned"], told["failed"]) == (str(out), 30, 0)
    assert list(told["stages"]) == ["scan", "read", "decode", "encode", "search", "write"]
    assert told["bottleneck"] in told["stages"]
    kept = read_run(out)["last_run"]
    assert kept["complete"] is True
    assert kept["backend"].startswith("OpenVINO ")
    assert {name: kept[name] for name in told if name != "out"} == {n: v for n, v in told.items() if n != "out"}


def test_results_are_converted_when_all_is_done(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "out"
    formats = ("--format", "csv", "--format", "coco", "--format", "txt")
    assert caption(capsys, tiny_bundle, photos / "a", "--out", out, *formats).code == 0
    captions = {record.path: record.caption for record in read_records(out)}
    with (out / "captions.csv").open(encoding="utf-8", newline="") as file:
        assert {row["path"]: row["caption"] for row in csv.DictReader(file)} == captions
    assert [one["caption"] for one in json.loads((out / "captions.json").read_text())] == list(captions.values())
    for name, said in captions.items():
        assert Path(name).with_suffix(".txt").read_text("utf-8").strip() == said
    (photos / "a" / "x99.png").hardlink_to(photos / "b" / "00.png")
    assert caption(capsys, tiny_bundle, photos / "a", "--out", out, *formats).code == 0
    assert (out / "captions.csv").read_text("utf-8").count("\n") == 14


def test_shards_are_shown_on_one_page(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "out"
    for shard in ("0", "1"):
        caption(capsys, tiny_bundle, photos, "--out", out, "--num-shards", "2", "--shard-index", shard)
    assert call(capsys, "gallery", out).err == f"{out / 'gallery.html'}: 30 images\n"


def test_a_list_comes_through_a_pipe(tiny_bundle: Path, photos: Path) -> None:
    names = b"\n".join(os.fsencode(photos / "a" / f"{number:02d}.png") for number in (7, 3, 5))
    done = subprocess.run(
        [sys.executable, "-c", COMMAND[-1], "caption", "-", "--bundle", tiny_bundle, "--quiet"],
        input=names,
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines] == ["07.png", "03.png", "05.png"]


def test_hidden_files_are_taken_where_that_is_asked_for(tiny_bundle: Path, photos: Path, capsys: Capsys) -> None:
    (photos / "a" / "00.png").rename(photos / "a" / ".00.png")
    assert len(caption(capsys, tiny_bundle, photos).out.splitlines()) == 29
    assert len(caption(capsys, tiny_bundle, photos, "--hidden").out.splitlines()) == 30


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--show", "--json", "--out", "out"), "--show and --json both write to stdout"),
        (("--overwrite", "--retry-failures", "--out", "out"), "--overwrite leaves no failures"),
        (("--retry-failures",), "need --out"),
        (("--sample", "0"), "--sample"),
        (("--num-shards", "3"), "needs --shard-index"),
        (("--gpus-per-actor", "1"), "needs --actors"),
        (("--actors", "2", "--overwrite", "--out", "out"), "choose another --out"),
        (("--limit", "-1"), "--limit"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    tiny_bundle: Path, photos: Path, capsys: Capsys, options: tuple[str, ...], problem: str
) -> None:
    outcome = caption(capsys, tiny_bundle, photos, *options)
    assert outcome.code == 2
    assert problem in outcome.err
