"""Killed at any instant and run again, a run has captioned every input exactly once."""

import gc
import json
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import engine.results
import engine.run
from engine.captioner import Captioner, CaptionOptions
from engine.images import Source
from engine.records import Alternative, Attention, Failure, Record
from engine.results import (
    FAILURES,
    LOCK,
    RUN,
    ResultsWriter,
    Totals,
    committed_parts,
    done_names,
    read_failures,
    read_records,
    read_run,
    results_folders,
    shard_name,
)
from engine.run import run
from saccade.errors import OutputError
from saccade.progress import Reporter
from tests.bundles import save_patchworks

FINGERPRINT = {"bundle": "b" * 64, "search": {"beam": 3, "max_length": 40}, "attention": False}
INPUTS = tuple(f"photos/{index}.jpg" for index in range(8))


def record(path: str) -> Record:
    return Record(path=path, caption="a ball", score=-1.5, tokens=(4, 5), words=("a", "ball"), truncated=False)


def failure(path: str) -> Failure:
    return Failure(path=path, kind="truncated", error=f"{path}: cut")


def result(path: str) -> Record | Failure:
    """Every third input fails: 2 and 5, in different parts."""
    return failure(path) if int(path[7]) % 3 == 2 else record(path)


def writer(
    folder: Path,
    fingerprint: dict[str, Any] = FINGERPRINT,
    *,
    overwrite: bool = False,
    retry_failures: bool = False,
) -> ResultsWriter:
    details = {"geometry": "squash"}
    return ResultsWriter(folder, fingerprint, details, overwrite=overwrite, retry_failures=retry_failures)


def caption_all(folder: Path, *, overwrite: bool = False) -> list[str]:
    """Caption what the folder does not hold, three inputs a part; returns what was captioned now."""
    with writer(folder, overwrite=overwrite) as opened:
        done = set(opened.done())
        waiting = [path for path in INPUTS if path not in done]
        for first in range(0, len(waiting), 3):
            opened.commit([result(path) for path in waiting[first : first + 3]])
    return waiting


def commit(folder: Path, results: Sequence[Record | Failure]) -> None:
    with writer(folder) as opened:
        opened.commit(results)


def files(folder: Path) -> list[Path]:
    """All but the lock, which each writer takes."""
    return [file for file in folder.iterdir() if file.name != LOCK]


def assert_complete(folder: Path) -> None:
    found: list[Record | Failure] = [*read_records(folder), *read_failures(folder)]
    assert Counter(one.path for one in found) == Counter(INPUTS)
    assert all(one == result(one.path) for one in found)
    assert len((folder / FAILURES).read_text().splitlines()) == 2
    with writer(folder) as opened:
        assert opened.totals == Totals(captioned=6, failed=2)
    markers = committed_parts(folder)
    expected = {RUN, FAILURES, *(f"part-{n:05d}.{end}" for n in range(len(markers)) for end in ("jsonl", "stats.json"))}
    assert {file.name for file in files(folder)} == expected


def test_parts_are_committed_with_their_failures(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert caption_all(out) == list(INPUTS)
    assert_complete(out)
    assert [(marker.records, marker.failures, marker.failures_total) for marker in committed_parts(out)] == [
        (2, 1, 1),
        (2, 1, 2),
        (2, 0, 2),
    ]
    assert [one.path for one in read_records(out)] == [f"photos/{index}.jpg" for index in (0, 1, 3, 4, 6, 7)]


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    caption_all(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in files(tmp_path)}
    assert caption_all(tmp_path) == []
    assert {file: file.stat().st_mtime_ns for file in files(tmp_path)} == before


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = replace(
        record("a.jpg"),
        caption="बिल्ली 🐈\u2028\x85\n",
        truncated=True,
        alternatives=(Alternative(caption="", score=-2.25, tokens=(), truncated=False),),
        attention=Attention(rows=1, columns=2, alphas=((0.25, 0.75), (1.0, 0.0))),
    )
    commit(tmp_path, [whole, record("b.jpg")])
    assert list(read_records(tmp_path)) == [whole, record("b.jpg")]


def test_names_that_are_not_utf8_come_back_as_they_were(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9.jpg", b"\xff\xfe\x00a"[:2], "日本.jpg".encode(), b"a\nb\x85.jpg")]
    commit(tmp_path, [record(names[0]), failure(names[1]), record(names[2]), failure(names[3])])
    assert set(done_names(tmp_path)) == set(names)
    for file in files(tmp_path):
        assert file.read_bytes().isascii()


def test_a_part_without_its_marker_never_happened(tmp_path: Path) -> None:
    caption_all(tmp_path)
    (tmp_path / "part-00002.stats.json").unlink()
    assert [one.path for one in read_records(tmp_path)] == [f"photos/{index}.jpg" for index in (0, 1, 3, 4)]
    assert caption_all(tmp_path) == list(INPUTS[6:])
    assert_complete(tmp_path)


def test_failures_after_the_last_marker_are_dropped(tmp_path: Path) -> None:
    caption_all(tmp_path)
    for number in (1, 2):
        (tmp_path / f"part-{number:05d}.stats.json").unlink()
    assert [one.path for one in read_failures(tmp_path)] == ["photos/2.jpg"]
    assert caption_all(tmp_path) == list(INPUTS[3:])
    assert_complete(tmp_path)


def test_parts_behind_a_gap_never_happened_either(tmp_path: Path) -> None:
    """They would come back to life with the part that fills the gap."""
    caption_all(tmp_path)
    (tmp_path / "part-00001.stats.json").unlink()
    commit(tmp_path, [result(path) for path in INPUTS[3:5]])
    assert len(committed_parts(tmp_path)) == 2
    assert caption_all(tmp_path) == list(INPUTS[5:])
    assert_complete(tmp_path)


def test_a_failure_cut_in_the_middle_of_its_line_is_dropped(tmp_path: Path) -> None:
    caption_all(tmp_path / "whole")
    for number in (1, 2):
        (tmp_path / "whole" / f"part-{number:05d}.stats.json").unlink()
    failures = (tmp_path / "whole" / FAILURES).read_bytes()
    for length in range(failures.index(b"\n") + 1, len(failures) + 1):
        out = shutil.copytree(tmp_path / "whole", tmp_path / str(length))
        (out / FAILURES).write_bytes(failures[:length])
        assert caption_all(out) == list(INPUTS[3:])
        assert_complete(out)


def snapshots(monkeypatch: pytest.MonkeyPatch, folder: Path, into: Path) -> Callable[[], list[Path]]:
    """From now on, keep a copy of the folder as it is before and after everything that reaches the disk."""
    numbers = count()

    def keep() -> None:
        if folder.exists():
            shutil.copytree(folder, into / f"{next(numbers):03d}")

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            keep()
            value = function(*arguments, **options)
            keep()
            return value

        return call

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "chmod"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))

    def taken() -> list[Path]:
        monkeypatch.undo()
        return sorted(into.iterdir())

    return taken


def test_killed_between_any_two_writes_every_input_is_captioned_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = snapshots(monkeypatch, tmp_path / "out", tmp_path / "killed")
    caption_all(tmp_path / "out")
    killed = taken()
    assert len(killed) > 40
    left = set()
    for folder in killed:
        left.add(len(caption_all(folder)))
        assert_complete(folder)
    assert left == {0, 2, 5, 8}  # killed within each part, and after the last


def test_a_resumption_may_be_killed_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    caption_all(out)
    (out / "part-00001.stats.json").unlink()
    (out / ".part-00001.stats.json.x7_k").write_text('{"rec')
    taken = snapshots(monkeypatch, out, tmp_path / "killed")
    caption_all(out)
    for folder in taken():
        caption_all(folder)
        assert_complete(folder)


def run_inputs(captioner: Captioner, photos: list[Path], out: Path) -> None:
    run(captioner, list(map(str, photos)), out, reporter=Reporter(quiet=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file between `open` and `with`
def test_interrupted_at_any_line_every_input_is_captioned_exactly_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption, unlike a kill, still commits what it can; nothing may come of it twice."""
    monkeypatch.setattr(engine.run, "PART_SIZE", 2)
    photos = save_patchworks(tmp_path / "photos", 3)
    photos[1].write_bytes(b"")
    watched = {engine.run.__file__, engine.results.__file__}
    gc.freeze()  # what is there already need not be looked through each time
    with Captioner.open(tiny_bundle, CaptionOptions(batch=1, loaders=1)) as captioner:
        for instant in count():
            out = tmp_path / str(instant)
            interrupted = interrupt_at(instant, watched, partial(run_inputs, captioner, photos, out))
            gc.collect()  # as at the end of a process, nothing of the interrupted run is left, nor its lock
            run_inputs(captioner, photos, out)
            found: list[Record | Failure] = [*read_records(out), *read_failures(out)]
            assert Counter(one.path for one in found) == Counter(map(str, photos)), f"interrupted at line {instant}"
            if not interrupted:
                break
    gc.unfreeze()
    assert instant > 100


def interrupt_at(instant: int, watched: set[str], function: Callable[[], None]) -> bool:
    """Call a function and interrupt it at the given line, counted in the watched files; False if it ended before.

    In a thread of its own: an exception out of nowhere can leave another one behind as the one being handled.
    """
    lines, interrupted = count(), threading.Event()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in watched:
            return None
        if event == "line" and next(lines) == instant:
            raise KeyboardInterrupt
        return trace

    def call() -> None:
        sys.settrace(trace)
        try:
            function()
        except KeyboardInterrupt:
            interrupted.set()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return interrupted.is_set()


def test_an_interruption_keeps_what_is_captioned(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Captioner, images: Iterable[Source], **_: object) -> Generator[Record | Failure]:
        yield from map(result, INPUTS[:4])
        raise KeyboardInterrupt

    photos = save_patchworks(tmp_path / "photos", 2)
    monkeypatch.setattr(Captioner, "caption", interrupted)
    with Captioner.open(tiny_bundle) as captioner, pytest.raises(KeyboardInterrupt):
        run_inputs(captioner, photos, tmp_path / "out")
    assert [one.path for one in read_records(tmp_path / "out")] == [f"photos/{index}.jpg" for index in (0, 1, 3)]
    assert [one.path for one in read_failures(tmp_path / "out")] == ["photos/2.jpg"]


def test_an_overwrite_killed_between_any_two_writes_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    caption_all(out)
    taken = snapshots(monkeypatch, out, tmp_path / "killed")
    assert caption_all(out, overwrite=True) == list(INPUTS)
    assert_complete(out)
    for folder in taken():
        assert caption_all(folder, overwrite=True) == list(INPUTS)
        assert_complete(folder)


def test_an_overwrite_killed_between_any_two_writes_leaves_results_of_one_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either fewer of the old run, or none of the new one yet."""
    out = tmp_path / "out"
    caption_all(out)
    taken = snapshots(monkeypatch, out, tmp_path / "killed")
    other = FINGERPRINT | {"attention": True}
    with writer(out, other, overwrite=True):
        pass
    fewer = set()
    for folder in taken():
        if read_run(folder)["fingerprint"] == other:
            assert list(read_records(folder)) == []
        else:
            fewer.add(len(list(read_records(folder))))
            caption_all(folder)
            assert_complete(folder)
    assert fewer == {0, 2, 4, 6}


def test_failures_can_be_tried_again(tmp_path: Path) -> None:
    caption_all(tmp_path)
    with writer(tmp_path, retry_failures=True) as opened:
        assert set(opened.done()) == {one.path for one in read_records(tmp_path)}
        assert opened.totals == Totals(captioned=6, failed=0)
        opened.commit([record("photos/2.jpg"), failure("photos/5.jpg")])
    assert [one.path for one in read_failures(tmp_path)] == ["photos/5.jpg"]
    assert Counter(done_names(tmp_path)) == Counter(INPUTS)
    assert len((tmp_path / FAILURES).read_text().splitlines()) == 3  # the history stays
    assert caption_all(tmp_path) == []


def test_a_retry_killed_between_any_two_writes_can_be_resumed_or_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    caption_all(out)
    taken = snapshots(monkeypatch, out, tmp_path / "killed")
    with writer(out, retry_failures=True) as opened:
        opened.commit([failure("photos/2.jpg"), record("photos/5.jpg")])
    for folder in taken():
        caption_all(folder)
        assert Counter(done_names(folder)) == Counter(INPUTS)
        with writer(folder, retry_failures=True) as opened:
            assert opened.totals.failed == 0
        caption_all(folder)
        assert Counter(done_names(folder)) == Counter(INPUTS)


def test_an_overwrite_after_a_retry_reads_its_own_failures(tmp_path: Path) -> None:
    caption_all(tmp_path)
    with writer(tmp_path, retry_failures=True):
        pass
    caption_all(tmp_path, overwrite=True)
    assert_complete(tmp_path)


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_one_writes(tmp_path: Path) -> None:
    with writer(tmp_path), pytest.raises(OutputError, match=rf"another run \(process {os.getpid()}\) is writing to"):
        writer(tmp_path)
    caption_all(tmp_path)
    assert_complete(tmp_path)


def test_the_folders_of_all_shards_are_found_in_order(tmp_path: Path) -> None:
    folders = [tmp_path / shard_name(shard, 3) for shard in range(3)]
    for folder in reversed(folders):
        caption_all(folder)
    assert results_folders(tmp_path) == folders
    assert results_folders(folders[1]) == [folders[1]]
    shutil.rmtree(folders[1])
    with pytest.raises(OutputError, match="lacks shards 1 of 3: caption them"):
        results_folders(tmp_path)
    assert results_folders(tmp_path, partial=True) == [folders[0], folders[2]]
    caption_all(tmp_path / shard_name(0, 2))
    for those_there in (False, True):
        with pytest.raises(OutputError, match="of 2 different numbers"):
            results_folders(tmp_path, partial=those_there)


def test_an_overwrite_leaves_other_files_in_place(tmp_path: Path) -> None:
    caption_all(tmp_path)
    mine = [tmp_path / "gallery.html", tmp_path / "notes.txt", tmp_path / "part-of-mine.jsonl"]
    for file in mine:
        file.write_text("mine")
    with writer(tmp_path, overwrite=True):
        pass
    assert {file.read_text() for file in mine} == {"mine"}
    assert list(read_records(tmp_path)) == []


def test_another_run_is_refused_naming_what_differs(tmp_path: Path) -> None:
    caption_all(tmp_path)
    other = {"bundle": "c" * 64, "search": {"beam": 5, "max_length": 40}, "attention": False}
    with pytest.raises(OutputError) as caught:
        writer(tmp_path, other)
    assert str(caught.value) == (
        f"{tmp_path} holds results of another run (bundle was bbbbbbbbbbbb..., is cccccccccccc..., "
        "search.beam was 3, is 5): choose another --out, or start anew with --overwrite"
    )
    assert_complete(tmp_path)


def test_an_option_that_one_of_the_runs_did_not_know_differs(tmp_path: Path) -> None:
    caption_all(tmp_path)
    with pytest.raises(OutputError, match=r"\(search\.top_p was None, is 0\.5\)"):
        writer(tmp_path, FINGERPRINT | {"search": {"beam": 3, "max_length": 40, "top_p": 0.5}})


def test_a_folder_with_other_files_is_refused_even_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="is not empty and holds no results: choose another --out"):
            writer(tmp_path, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_without_results_is_refused_to_readers(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds no results \(no run\.json\): give a folder that `saccade caption"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (RUN, '{"fing', "run.json cannot be read as JSON"),
        (RUN, "[]", r"run.json: expected an object, got \[\]"),
        ("part-00000.stats.json", "", "part-00000.stats.json cannot be read as JSON"),
        ("part-00001.stats.json", '{"records": 2}', "'failures' is missing; 'failures_total' is missing"),
        ("part-00001.jsonl", '{"path": "photos/3.jpg"}\n', "part-00001.jsonl is damaged at line 1 .'caption'"),
        ("part-00001.jsonl", "7\n", "part-00001.jsonl is damaged at line 1"),
        ("part-00001.jsonl", "", "part-00001.jsonl is damaged: 0 lines, expected 2"),
        (FAILURES, "", "failures.jsonl is damaged: 0 lines, expected 2"),
        (FAILURES, '{"path": "a"}\n', "failures.jsonl is damaged at line 1"),
        (FAILURES, "{\n", "failures.jsonl is damaged at line 1"),
    ],
)
def test_damaged_results_are_refused_by_name(tmp_path: Path, name: str, content: str, problem: str) -> None:
    caption_all(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=f"{problem}") as caught:
        caption_all(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    caption_all(tmp_path, overwrite=True)
    assert_complete(tmp_path)


def test_a_missing_part_is_refused_by_name(tmp_path: Path) -> None:
    caption_all(tmp_path)
    (tmp_path / "part-00001.jsonl").unlink()
    with pytest.raises(OutputError, match=r"part-00001\.jsonl is damaged .*No such file"):
        caption_all(tmp_path)


def test_a_full_disk_is_an_error_that_a_repetition_recovers_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    commit(tmp_path, [result(path) for path in INPUTS[:3]])
    with monkeypatch.context() as patch, writer(tmp_path) as opened:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\): free some space"):
            opened.commit([result(path) for path in INPUTS[3:6]])
    assert caption_all(tmp_path) == list(INPUTS[3:])
    assert_complete(tmp_path)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.out cannot be written \(.+\): .*choose another --out"):
        writer(tmp_path / "file" / "out")


def test_every_line_is_valid_json(tmp_path: Path) -> None:
    caption_all(tmp_path)
    for file in tmp_path.glob("*.jsonl"):
        for line in file.read_text("ascii").splitlines():
            json.loads(line, parse_constant=pytest.fail)
