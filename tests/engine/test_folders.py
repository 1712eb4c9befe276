"""What is found below folders and by patterns, and in which order."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import folders
from engine.folders import images_below, matches, walk
from engine.images import SUFFIXES, ScanOptions, Source
from saccade.errors import ImageError
from tests.engine.places import touch


def below(folder: Path, **options: object) -> list[str]:
    scan = ScanOptions(**options)  # type: ignore[arg-type]
    return [str(Path(source.name).relative_to(folder)) for source in images_below(str(folder), scan)]


def matching(folder: Path, pattern: str, **options: object) -> list[str]:
    scan = ScanOptions(**options)  # type: ignore[arg-type]
    return [str(Path(entry.path).relative_to(folder)) for entry in matches(f"{folder}/{pattern}", scan)]


@pytest.fixture
def small_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of more than three entries is a large one."""
    monkeypatch.setattr(folders, "LARGE", 3)


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Root may read every folder, so a refusal has to be made."""
    scandir = os.scandir

    def refuse_one(path: str | int) -> object:
        if not isinstance(path, int) and Path(path).name == name:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_one)


def test_a_folder_is_walked_in_sorted_order_with_files_before_subfolders(tmp_path: Path) -> None:
    touch(tmp_path, "z.png", "b/2.jpg", "b/10.jpg", "b/a/1.jpg", "a/x.png", "A.jpg", "m.jpg")
    assert below(tmp_path) == ["A.jpg", "m.jpg", "z.png", "a/x.png", "b/10.jpg", "b/2.jpg", "b/a/1.jpg"]


def test_an_image_is_its_path(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    path = tmp_path / "a" / "1.jpg"
    assert list(images_below(f"{tmp_path}//.", ScanOptions())) == [Source(str(path), path)]


def test_the_working_directory_leaves_no_trace_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg")
    monkeypatch.chdir(tmp_path)
    assert [source.name for source in images_below(".", ScanOptions())] == ["a.jpg", "b/c.jpg"]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_files_named_like_images_are_found_in_any_case(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}")
    assert below(tmp_path) == [f"a{suffix}", f"b{suffix.upper()}"]


def test_other_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt", "jpg", "a.jpg.part", "a.tar", ".hidden.jpg", ".git/b.jpg", "._a.jpg")
    assert below(tmp_path) == ["a.jpg"]


def test_hidden_files_are_found_on_demand(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".hidden.jpg", ".git/b.jpg", ".jpg")
    assert below(tmp_path, hidden=True) == [".hidden.jpg", "a.jpg", ".git/b.jpg"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg/b.png")
    assert below(tmp_path) == ["a.jpg/b.png"]


def test_a_link_to_a_folder_is_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/deep/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "photos" / "deep" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    assert below(tmp_path / "photos") == ["a.jpg", "deep/b.jpg", "linked/c.jpg"]


def test_links_that_lead_nowhere_are_tried_where_they_are_named_like_images(tmp_path: Path) -> None:
    """They are then recorded as unreadable, and do not end the walk."""
    for name in ("gone", "gone.jpg"):
        (tmp_path / name).symlink_to(tmp_path / "absent")
    for name in ("circle", "circle.jpg"):
        (tmp_path / name).symlink_to(tmp_path / name)
    touch(tmp_path, "a.jpg")
    assert below(tmp_path) == ["a.jpg", "circle.jpg", "gone.jpg"]


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.jpg")
    try:
        touch(tmp_path, name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert below(tmp_path) == [name]


def test_a_subfolder_that_may_not_be_read_is_a_failed_image_and_the_walk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.jpg", "locked/2.jpg", "z/3.jpg")
    refuse(monkeypatch, "locked")
    found = {source.name: source.content for source in images_below(str(tmp_path), ScanOptions())}
    assert list(found) == [str(tmp_path / name) for name in ("a/1.jpg", "locked", "z/3.jpg")]
    failure = found[str(tmp_path / "locked")]
    assert isinstance(failure, ImageError)
    assert (failure.kind, str(failure)) == ("permission", f"{tmp_path}/locked cannot be read (Permission denied)")


def test_a_subfolder_that_vanishes_is_a_failed_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg")
    found = images_below(str(tmp_path), ScanOptions())
    assert next(found).name == str(tmp_path / "a.jpg")
    (tmp_path / "b" / "c.jpg").unlink()
    (tmp_path / "b").rmdir()
    [failed] = found
    assert failed.name == str(tmp_path / "b")
    assert isinstance(failed.content, ImageError)
    assert failed.content.kind == "missing"


def test_a_top_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, tmp_path.name)
    with pytest.raises(ImageError, match=r"cannot be read \(Permission denied\)"):
        list(images_below(str(tmp_path), ScanOptions()))


def test_images_come_before_the_walk_is_over(tmp_path: Path) -> None:
    """So captions begin at once, however large the folder is."""
    touch(tmp_path, "a.jpg", "b/c.jpg")
    found = images_below(str(tmp_path), ScanOptions())
    assert Path(next(found).name).name == "a.jpg"
    (tmp_path / "b" / "c.jpg").rename(tmp_path / "b" / "d.jpg")
    assert Path(next(found).name).name == "d.jpg"


class Counted:
    """The entries of a folder, and how many of them were asked for."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self.entries, self.taken = entries, 0

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        for entry in self.entries:
            self.taken += 1
            yield entry


def test_a_large_folder_comes_as_the_disk_gives_it_and_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_folders: None
) -> None:
    touch(tmp_path, *(f"{number}.jpg" for number in range(9)), "5/x.jpg")
    with os.scandir(tmp_path) as scan:
        counted = Counted(sorted(scan, key=lambda entry: entry.name, reverse=True))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: counted if path == str(tmp_path) else scandir(path))
    found = images_below(str(tmp_path), ScanOptions())
    assert Path(next(found).name).name == "8.jpg"
    assert counted.taken == 4
    assert [str(Path(source.name).relative_to(tmp_path)) for source in found] == [
        *("7.jpg", "6.jpg", "5.jpg", "5/x.jpg", "4.jpg", "3.jpg", "2.jpg", "1.jpg", "0.jpg")
    ]


def test_a_large_folder_is_sorted_on_demand(tmp_path: Path, small_folders: None) -> None:
    names = [f"{number}.jpg" for number in (5, 3, 9, 1, 7, 2, 8)]
    touch(tmp_path, *names, "4/x.jpg")
    assert set(below(tmp_path)) == {*names, "4/x.jpg"}
    assert below(tmp_path, order="name") == [*sorted(names), "4/x.jpg"]


def test_a_folder_of_just_not_too_many_entries_is_sorted(tmp_path: Path, small_folders: None) -> None:
    touch(tmp_path, "c.jpg", "a.jpg", "b.jpg", ".hidden")
    assert below(tmp_path) == ["a.jpg", "b.jpg", "c.jpg"]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def deep(folder: Path, levels: int) -> None:
    """Folders in folders, with an image in the last, made without long paths."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open("x.jpg", os.O_CREAT, dir_fd=handle))
    os.close(handle)


@pytest.fixture
def own_path(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed without recursion, as pytest would not."""
    yield tmp_path
    subprocess.run(["rm", "-r", tmp_path], check=True)


def test_large_folders_in_one_another_do_not_use_up_the_file_descriptors(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep(own_path, 200)
    monkeypatch.setattr(folders, "LARGE", 0)
    before = open_files()
    most = max(open_files() - before for _ in walk(str(own_path), ScanOptions()))
    assert 50 < most < 80


def test_two_thousand_folders_in_one_another_are_walked_down_to_where_paths_are_too_long(own_path: Path) -> None:
    deep(own_path, 2100)
    image = own_path / ("d/" * 1500) / "x.jpg"
    image.touch()
    found, failed = images_below(str(own_path), ScanOptions())
    assert found.name == str(image)
    assert isinstance(failed.content, ImageError)
    assert (failed.content.kind, "File name too long" in str(failed.content)) == ("unreadable", True)


def test_memory_does_not_grow_with_a_large_folder(tmp_path: Path, small_folders: None) -> None:
    touch(tmp_path, "0.jpg")
    for number in range(1, 5_000):
        os.link(tmp_path / "0.jpg", tmp_path / f"{number}.jpg")
    tracemalloc.start()
    try:
        assert sum(1 for _ in walk(str(tmp_path), ScanOptions())) == 5_001
        assert tracemalloc.get_traced_memory()[1] < 100_000
        assert sum(1 for _ in walk(str(tmp_path), ScanOptions(order="name"))) == 5_001
        assert tracemalloc.get_traced_memory()[1] > 500_000
    finally:
        tracemalloc.stop()


PHOTOS = ("a.jpg", "b.png", "notes.txt", ".h.jpg", "x/1.jpg", "x/y/2.jpg", "x/y/z/3.jpg", "w/1.jpg", ".git/4.jpg")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg"]),
        ("?.*", ["a.jpg", "b.png"]),
        ("[ab].???", ["a.jpg", "b.png"]),
        ("[!a]*", ["b.png", "notes.txt", "w", "x"]),
        ("*", ["a.jpg", "b.png", "notes.txt", "w", "x"]),
        ("*/1.jpg", ["w/1.jpg", "x/1.jpg"]),
        ("x/*/*.jpg", ["x/y/2.jpg"]),
        ("**/*.jpg", ["a.jpg", "w/1.jpg", "x/1.jpg", "x/y/2.jpg", "x/y/z/3.jpg"]),
        ("x/**/?.jpg", ["x/1.jpg", "x/y/2.jpg", "x/y/z/3.jpg"]),
        ("**/y/**/*.jpg", ["x/y/2.jpg", "x/y/z/3.jpg"]),
        ("x/**", ["x"]),
        (".*", [".h.jpg", ".git"]),
        ("a.jpg/*", []),
        ("X/*", []),
        ("absent/*", []),
        ("*.gif", []),
    ],
)
def test_a_pattern_matches_as_in_a_shell(tmp_path: Path, pattern: str, found: list[str]) -> None:
    touch(tmp_path, *PHOTOS)
    assert matching(tmp_path, pattern) == found


def test_a_pattern_matches_hidden_names_on_demand(tmp_path: Path) -> None:
    touch(tmp_path, *PHOTOS)
    assert matching(tmp_path, "**/*.jpg", hidden=True) == [
        *(".h.jpg", "a.jpg", ".git/4.jpg", "w/1.jpg", "x/1.jpg", "x/y/2.jpg", "x/y/z/3.jpg")
    ]


def test_a_pattern_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *PHOTOS)
    monkeypatch.chdir(tmp_path / "x")
    assert [str(Path(entry.path)) for entry in matches("*/2.*", ScanOptions())] == ["y/2.jpg"]
    assert [str(Path(entry.path)) for entry in matches("**/3.jpg", ScanOptions())] == ["y/z/3.jpg"]
    assert [str(Path(entry.path)) for entry in matches("../w/*", ScanOptions())] == ["../w/1.jpg"]


def test_a_folder_that_a_pattern_cannot_look_into_stands_for_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.jpg", "locked/2.jpg", "z/3.jpg")
    refuse(monkeypatch, "locked")
    assert matching(tmp_path, "*/*.jpg") == ["a/1.jpg", "locked", "z/3.jpg"]


def test_a_pattern_is_matched_while_its_folder_is_read(tmp_path: Path, small_folders: None) -> None:
    touch(tmp_path, *(f"{number}.jpg" for number in range(10)))
    first = next(matches(f"{tmp_path}/*.jpg", ScanOptions()))
    assert Path(first.path).parent == tmp_path


def test_a_file_that_was_seen_to_be_one_need_not_be_looked_at_again(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg/c.jpg")
    assert [entry.is_folder for entry in matches(f"{tmp_path}/*", ScanOptions())] == [False, True]
    assert [entry.is_folder for entry in matches(f"{tmp_path}/*/c.jpg", ScanOptions())] == [True]
