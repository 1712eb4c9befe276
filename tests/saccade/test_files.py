"""Files and folders appear whole or not at all."""

import errno
import fcntl
import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.errors import OutputError
from saccade.files import held_cache, replaced, sha256, staged_directory, write_atomically, write_json


class Interruption(BaseException):
    """Like KeyboardInterrupt: no Exception."""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def tree(folder: Path) -> dict[str, str | None]:
    """The content of every file below a folder, None for folders, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def stage(destination: Path, text: str, *, overwrite: bool = False, error: BaseException | None = None) -> None:
    """Write a.txt into a staged folder, and fail afterwards if asked to."""
    with staged_directory(destination, overwrite=overwrite) as folder:
        (folder / "a.txt").write_text(text)
        if error:
            raise error


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "öne\n")
    assert path.read_bytes() == "öne\n".encode()
    write_atomically(path, "two")
    assert tree(tmp_path) == {"a.txt": "two"}
    write_atomically(path, b"caf\xe9")
    assert path.read_bytes() == b"caf\xe9"


@pytest.mark.parametrize("name", ["x" * 255, "日" * 85])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, "1")
    assert tree(tmp_path) == {name: "1"}


def test_a_file_written_bit_by_bit_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replaced(path) as file:
        file.write(b"1")
        assert not path.exists()
        file.write(b"2")
    assert tree(tmp_path) == {"new": None, "new/a.txt": "12"}


@pytest.mark.parametrize("error", [ValueError(), Interruption()])
def test_a_block_that_fails_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def fail(path: Path) -> None:
        with replaced(path) as file:
            file.write(b"new")
            raise error

    write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(type(error)):
        fail(tmp_path / "a.txt")
    assert tree(tmp_path) == {"a.txt": "old"}


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder"):
        with (
            pytest.raises(OutputError, match=rf"cannot write {path}: .+; free some space or choose another"),
            replaced(path),
        ):
            pass
    assert tree(tmp_path) == {"file": "", "folder": None}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise Interruption

    write_atomically(tmp_path / "a.txt", "old")
    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing], fail)
    with pytest.raises(Interruption):
        write_atomically(tmp_path / "a.txt", "new")
    assert tree(tmp_path) == {"a.txt": "old"}


def test_a_file_has_its_content_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sync = os.fsync

    def record(handle: int) -> None:
        seen.append((Path(f"/proc/self/fd/{handle}").resolve().name, (tmp_path / "a.txt").exists()))
        sync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", record)
    write_atomically(tmp_path / "a.txt", "new")
    (temporary, exists_before), (folder, exists_after) = seen
    assert (temporary[:7], exists_before) == (".a.txt.", False)
    assert (folder, exists_after) == (tmp_path.name, True)


def test_what_is_written_is_as_readable_as_any_new_file(tmp_path: Path, umask: None) -> None:
    write_atomically(tmp_path / "a.txt", "")
    with staged_directory(tmp_path / "folder") as folder:
        (folder / "b").mkdir()
        write_atomically(folder / "b" / "c.txt", "")
    assert mode(tmp_path / "a.txt") == mode(tmp_path / "folder" / "b" / "c.txt") == 0o640
    assert mode(tmp_path / "folder") == 0o750


def test_json_keeps_its_order_and_every_script(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": "लड़का", "a": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert "लड़का" in text
    assert list(json.loads(text)) == ["z", "a"]
    assert text.endswith("}\n")


def test_json_carries_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"path": name}


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert tree(tmp_path) == {}


def test_a_folder_takes_its_name_when_the_block_ends(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "folder"
    with staged_directory(destination) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("1")
        assert not destination.exists()
    assert tree(tmp_path) == {"new": None, "new/folder": None, "new/folder/deep": None, "new/folder/deep/a.txt": "1"}


@pytest.mark.parametrize("error", [ValueError(), Interruption()])
def test_a_failed_block_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        stage(tmp_path / "folder", "1", error=error)
    assert tree(tmp_path) == {}


def test_an_existing_folder_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    stage(tmp_path / "folder", "old")
    with pytest.raises(OutputError, match=r"folder exists already: .*--overwrite"):
        stage(tmp_path / "folder", "new")
    assert tree(tmp_path) == {"folder": None, "folder/a.txt": "old"}


def test_an_overwritten_folder_holds_the_new_files_only(tmp_path: Path) -> None:
    stage(tmp_path / "folder", "old")
    (tmp_path / "folder" / "b.txt").write_text("old, too")
    stage(tmp_path / "folder", "new", overwrite=True)
    assert tree(tmp_path) == {"folder": None, "folder/a.txt": "new"}


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    stage(tmp_path / "folder", "old")
    with pytest.raises(Interruption):
        stage(tmp_path / "folder", "new", overwrite=True, error=Interruption())
    assert tree(tmp_path) == {"folder": None, "folder/a.txt": "old"}


def test_an_overwrite_that_fails_between_its_two_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path / "folder", "old")
    rename, renamed = Path.rename, []

    def fail_at_the_second(path: Path, target: Path) -> Path:
        renamed.append(path)
        if len(renamed) == 2:
            raise Interruption
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_second)
    with pytest.raises(Interruption):
        stage(tmp_path / "folder", "new", overwrite=True)
    assert tree(tmp_path) == {"folder": None, "folder/a.txt": "old"}


def test_a_place_that_cannot_hold_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.folder cannot be written \(.+\): choose another place"):
        stage(tmp_path / "file" / "folder", "new")


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_cache_is_held_until_the_block_ends() -> None:
    with held_cache("tests") as folder:
        assert folder is not None
        with (folder / ".lock").open("a") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_cache_that_another_process_keeps_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saccade.files._CACHE_WAIT_S", 0.05)
    with held_cache("tests") as folder, held_cache("tests") as other:
        assert folder is not None
        assert other is None


def test_a_forked_child_does_not_keep_a_cache() -> None:
    with held_cache("tests") as folder:
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        assert folder is not None
        with (folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_there_is_no_cache_where_the_file_system_has_no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held_cache("tests") as folder:
        assert folder is None
