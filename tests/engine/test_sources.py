"""Which files a run captions, and in which order."""

import os
from pathlib import Path

import pytest

from engine.sources import SUFFIXES, find_images
from saccade.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder: Path, *paths: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_images(paths or [folder])]


def test_a_folder_is_walked_in_sorted_order_with_files_before_subfolders(tmp_path: Path) -> None:
    touch(tmp_path, "z.png", "b/2.jpg", "b/10.jpg", "b/a/1.jpg", "a/x.png", "A.jpg", "m.jpg")
    assert names(tmp_path) == ["A.jpg", "m.jpg", "z.png", "a/x.png", "b/10.jpg", "b/2.jpg", "b/a/1.jpg"]


def test_paths_are_taken_in_the_order_they_are_given(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "a/2.jpg", "c.jpg")
    assert names(tmp_path, tmp_path / "c.jpg", tmp_path / "b", tmp_path / "a") == ["c.jpg", "b/1.jpg", "a/2.jpg"]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_files_named_like_images_are_found_in_any_case(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}")
    assert names(tmp_path) == [f"a{suffix}", f"b{suffix.upper()}"]


def test_other_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt", "jpg", "a.jpg.part", ".hidden.jpg", ".git/b.jpg", "._a.jpg")
    assert names(tmp_path) == ["a.jpg"]


def test_a_file_that_is_named_is_always_tried(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden", ".cache/b.jpg")
    given = [tmp_path / "notes.txt", tmp_path / ".hidden", tmp_path / ".cache"]
    assert names(tmp_path, *given) == ["notes.txt", ".hidden", ".cache/b.jpg"]


def test_each_image_comes_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jpg")
    given = [tmp_path / "a" / "2.jpg", tmp_path / "a", tmp_path, Path(f"{tmp_path}//./a/1.jpg")]
    assert names(tmp_path, *given) == ["a/2.jpg", "a/1.jpg"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg/b.png")
    assert names(tmp_path) == ["a.jpg/b.png"]


def test_a_link_to_a_folder_is_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/deep/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "photos" / "deep" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    assert names(tmp_path, tmp_path / "photos") == ["photos/a.jpg", "photos/deep/b.jpg", "photos/linked/c.jpg"]


def test_links_that_lead_nowhere_are_tried_where_they_are_named_like_images(tmp_path: Path) -> None:
    """They are then recorded as unreadable, and do not end the walk."""
    for name in ("gone", "gone.jpg"):
        (tmp_path / name).symlink_to(tmp_path / "absent")
    for name in ("circle", "circle.jpg"):
        (tmp_path / name).symlink_to(tmp_path / name)
    touch(tmp_path, "a.jpg")
    assert names(tmp_path) == ["a.jpg", "circle.jpg", "gone.jpg"]


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        touch(tmp_path, name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert names(tmp_path) == [name]


def test_nothing_found_is_an_error_that_names_the_places(tmp_path: Path) -> None:
    touch(tmp_path, "a/notes.txt", "b/.hidden.jpg")
    with pytest.raises(DataError, match=r"no image found in .*/a, .*/b: expected files named \.jpg"):
        list(find_images([tmp_path / "a", tmp_path / "b"]))


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To pass it over in silence would be to leave images out."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    touch(tmp_path, "locked/a.jpg")
    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    with pytest.raises(DataError, match=r"locked cannot be read \(Permission denied\): leave it out"):
        list(find_images([tmp_path / "locked"]))


def test_images_come_before_the_walk_is_over(tmp_path: Path) -> None:
    """So captions begin at once, however large the folder is."""
    touch(tmp_path, "a.jpg", "b/c.jpg")
    found = find_images([tmp_path])
    assert next(found).name == "a.jpg"
    (tmp_path / "b" / "c.jpg").rename(tmp_path / "b" / "d.jpg")
    assert next(found).name == "d.jpg"
