"""How inputs are read: what each kind means, which comes first, and what becomes an error or a failed image."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from engine.images import ScanOptions, Source
from engine.sources import count_images, find_images
from saccade.errors import ConfigError, DataError, ImageError
from tests.engine.places import content, picture, touch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str, **options: Any) -> list[str]:
    return [source.name for source in find_images(inputs, ScanOptions(**options))]


def archive(path: Path, *members: str) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as file:
        for member in members:
            header = tarfile.TarInfo(member)
            header.size = len(picture(1))
            file.addfile(header, io.BytesIO(picture(1)))


def kinds(sources: Iterable[Source]) -> dict[str, str]:
    return {source.name: source.content.kind for source in sources if isinstance(source.content, ImageError)}


# Files, folders and archives that are given.


def test_inputs_are_taken_in_the_order_they_are_given(here: Path) -> None:
    touch(here, "b/1.jpg", "a/2.jpg", "c.jpg")
    assert names("c.jpg", "b", "a") == ["c.jpg", "b/1.jpg", "a/2.jpg"]


def test_a_file_that_is_named_is_always_tried(here: Path) -> None:
    touch(here, "notes.txt", ".hidden", ".cache/b.jpg")
    assert names("notes.txt", ".hidden", ".cache") == ["notes.txt", ".hidden", ".cache/b.jpg"]


def test_names_are_written_in_one_way(here: Path) -> None:
    """So that equal images have equal names, but nothing that changes where a path leads."""
    touch(here, "a/1.jpg", "a/b/2.jpg")
    assert names("./a//1.jpg", "a/./b/", "./a") == ["a/1.jpg", "a/b/2.jpg", "a/1.jpg", "a/b/2.jpg"]
    assert names("a/b/../1.jpg", f"{here}/a/1.jpg") == ["a/b/../1.jpg", f"{here}/a/1.jpg"]


def test_an_image_that_is_given_twice_comes_twice(here: Path) -> None:
    """The run keeps the first; here a set of what was seen would grow with the images."""
    touch(here, "a.jpg")
    assert names("a.jpg", "a.jpg", ".") == ["a.jpg"] * 3


def test_a_path_that_exists_is_that_path_whatever_it_looks_like(here: Path) -> None:
    odd = ["*.jpg", "{a,b}.jpg", "{1..3}.jpg", "[x].jpg", "@x.jpg", "-"]
    touch(here, *odd, "z.jpg")
    for name in odd[:4]:
        assert names(name) == [name]
    assert names("./@x.jpg", "./-") == ["@x.jpg", "-"]


def test_what_is_in_a_given_archive_or_folder(here: Path) -> None:
    archive(here / "s.tar", "a.png", ".b.png", "c.txt")
    archive(here / "t.tgz", "d.png")
    touch(here, "folder.tar/x.jpg")
    assert names("s.tar", "t.tgz", "folder.tar") == ["s.tar/a.png", "t.tgz/d.png", "folder.tar/x.jpg"]
    assert names("s.tar", hidden=True) == ["s.tar/a.png", "s.tar/.b.png"]
    assert [content(source) for source in find_images(["s.tar", "t.tgz"])] == [picture(1)] * 2


def test_archives_in_a_folder_are_passed_over(here: Path) -> None:
    archive(here / "s.tar", "a.png")
    touch(here, "b.jpg")
    assert names(".") == ["b.jpg"]


@pytest.mark.parametrize(
    "missing", ["gone.jpg", "gone/", "gone.tar", "gone.parquet", "@gone.txt", "@", "", "a.jpg/b.jpg"]
)
def test_a_missing_input_is_an_error(here: Path, missing: str) -> None:
    touch(here, "a.jpg")
    with pytest.raises(DataError, match=r"cannot be read \((No such file|Not a dir).*leave it out, or repair it"):
        names(missing)


def test_a_name_that_no_file_can_have_is_an_error() -> None:
    with pytest.raises(DataError, match="cannot be the name of a file"):
        names("a\0b.jpg")


def test_a_damaged_archive_that_is_given_is_an_error(here: Path) -> None:
    (here / "s.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"s\.tar cannot be read \(.*leave it out"):
        names("s.tar")


def test_an_archive_that_may_not_be_read_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(here / "s.tar", "a.png")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"s\.tar cannot be read \(Permission denied\): leave it out"):
        names("s.tar")


def test_nothing_found_is_an_error_that_names_the_inputs(here: Path) -> None:
    touch(here, "a/notes.txt", "b/.hidden.jpg")
    archive(here / "c.tar")
    with pytest.raises(DataError, match=r"^no image found in a, b, c\.tar: expected files named \.jpg"):
        names("a", "b", "c.tar")


def test_names_that_are_not_utf8_are_kept(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        touch(here, name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (here / "list").write_bytes(b"caf\xe9.jpg\n")
    assert names(name, ".", "*.jpg", "@list") == [name] * 4
    assert {source.content for source in find_images([name, ".", "*.jpg", "@list"])} == {Path(name)}


# Patterns and braces.


def test_a_pattern_gives_its_matches_and_walks_folders(here: Path) -> None:
    touch(here, "b.jpg", "a.jpg", "notes.txt", "ax/1.jpg", "ax/2.txt", "x.jpg/3.png")
    assert names("a*") == ["a.jpg", "ax/1.jpg"]
    assert names("*.jpg") == ["a.jpg", "b.jpg", "x.jpg/3.png"]
    assert names("*.txt") == ["notes.txt"]
    assert names("**/*.jpg") == ["a.jpg", "b.jpg", "x.jpg/3.png", "ax/1.jpg"]


def test_a_pattern_gives_what_is_in_archives(here: Path) -> None:
    archive(here / "s-1.tar", "b.png")
    archive(here / "s-0.tar", "a.png")
    (here / "s-2.tar").write_bytes(b"no archive" * 100)
    sources = list(find_images(["s-?.tar"]))
    assert [source.name for source in sources] == ["s-0.tar/a.png", "s-1.tar/b.png", "s-2.tar"]
    assert kinds(sources) == {"s-2.tar": "corrupt"}


@pytest.mark.parametrize("pattern", ["*.gif", "gone/*.jpg", "a.jpg/*", "[z]*"])
def test_a_pattern_that_matches_nothing_is_an_error(here: Path, pattern: str) -> None:
    touch(here, "a.jpg")
    with pytest.raises(DataError, match=r"^nothing matches .*: expected a pattern of files or folders that exist"):
        names(pattern)


@pytest.mark.parametrize(
    ("braces", "numbers"),
    [
        ("{0..3}", ["0", "1", "2", "3"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{8..011}", ["008", "009", "010", "011"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{5..5}", ["5"]),
        ("{a,b c,}", ["a", "b c", ""]),
        ("{0..1}{x,y}", ["0x", "0y", "1x", "1y"]),
    ],
)
def test_braces_are_those_of_a_shell(here: Path, braces: str, numbers: list[str]) -> None:
    touch(here, *(f"s{number}.jpg" for number in numbers))
    assert names(f"s{braces}.jpg") == [f"s{number}.jpg" for number in numbers]


@pytest.mark.parametrize("text", ["{a}", "{}", "{1..}", "{a..c}", "{1...3}"])
def test_other_braces_are_characters_of_a_name(here: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        names(f"{text}.jpg")
    touch(here, f"{text}.jpg")
    assert names(f"{text}.jpg") == [f"{text}.jpg"]


def test_braces_may_hold_any_other_kind_of_input(here: Path) -> None:
    touch(here, "a/1.jpg", "b/2.jpg", "b/3.jpg")
    (here / "l0").write_text("a/1.jpg\n")
    (here / "l1").write_text("b/2.jpg\n")
    archive(here / "s.tar", "x.png")
    assert names("{a,b}") == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert names("{a,b}/[13].jpg") == ["a/1.jpg", "b/3.jpg"]
    assert names("@l{0..1}") == ["a/1.jpg", "b/2.jpg"]
    assert names("{s.tar,a}") == ["s.tar/x.png", "a/1.jpg"]


def test_a_pattern_may_be_longer_than_a_name(here: Path) -> None:
    expected = [f"image-{number:04d}.jpg" for number in range(50)]
    touch(here, *expected)
    assert names("{" + ",".join(expected) + "}") == expected


def test_a_shard_that_is_missing_in_a_range_is_named_when_its_turn_comes(here: Path) -> None:
    archive(here / "s-00.tar", "a.png")
    sources = find_images(["s-{00..02}.tar"])
    assert next(sources).name == "s-00.tar/a.png"
    with pytest.raises(DataError, match=r"^s-01\.tar cannot be read \(No such file"):
        next(sources)


def test_a_range_is_not_held_in_memory(here: Path) -> None:
    touch(here, "s0.jpg")
    assert next(find_images(["s{0..999999999999}.jpg"])).name == "s0.jpg"


# Lists.


def write(here: Path, data: bytes) -> list[str]:
    (here / "list").write_bytes(data)
    return names("@list")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.jpg\nb.jpg\n", ["a.jpg", "b.jpg"]),
        (b"a.jpg\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a.jpg\r\nb.jpg\r\n", ["a.jpg", "b.jpg"]),
        (b"a.jpg\r\nb.jpg\r", ["a.jpg", "b.jpg"]),
        (b"\n\na.jpg\n\r\n\nb.jpg\n\n", ["a.jpg", "b.jpg"]),
        (b"\xef\xbb\xbfa.jpg\nb.jpg\n", ["a.jpg", "b.jpg"]),
        (b"a.jpg", ["a.jpg"]),
        (b"a b .jpg\n c.jpg\n", ["a b .jpg", " c.jpg"]),
        (b"a\nb.jpg\0c\r.jpg\0", ["a\nb.jpg", "c\r.jpg"]),
        (b"a.jpg\0\0b.jpg\r", ["a.jpg", "b.jpg\r"]),
        (b"*.jpg\n{a,b}.jpg\n@x.jpg\n-.jpg\n#.jpg\n", ["*.jpg", "{a,b}.jpg", "@x.jpg", "-.jpg", "#.jpg"]),
    ],
)
def test_a_list_has_one_name_a_line(here: Path, data: bytes, expected: list[str]) -> None:
    assert write(here, data) == expected


def test_lines_longer_than_a_block_are_put_together(here: Path) -> None:
    expected = [f"{number}" * 50 + ".jpg" for number in range(5000)]
    assert write(here, "\r\n".join(expected).encode()) == expected


def test_a_list_may_name_folders_archives_and_files_of_any_name(here: Path) -> None:
    touch(here, "a/1.jpg", "notes")
    archive(here / "s.tar", "x.png")
    assert write(here, b"a\ns.tar\nnotes\n") == ["a/1.jpg", "s.tar/x.png", "notes"]


def test_what_is_listed_and_not_there_is_a_failed_image(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(here, "a.jpg", "locked/x.jpg")
    (here / "bad.tar").write_bytes(b"no archive" * 100)
    (here / "list").write_text("gone\ngone.jpg\ngone.tar\nbad.tar\nlocked\n-\n@list\n*.jpg\na.jpg\n")

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    sources = list(find_images(["@list"]))
    assert [source.name for source in sources] == (here / "list").read_text().split()
    assert {source.name for source in sources if source.content == Path(source.name)} == {"gone.jpg", "*.jpg", "a.jpg"}
    missing = dict.fromkeys(("gone", "gone.tar", "-", "@list"), "missing")
    assert kinds(sources) == missing | {"bad.tar": "corrupt", "locked": "permission"}


def test_a_listed_image_is_not_looked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network disk each look takes a millisecond, and there may be millions."""
    (here / "list").write_text("a.jpg\nb.png\n")
    stat = os.stat

    def look(path: Any, **options: Any) -> os.stat_result:
        assert str(path) not in ("a.jpg", "b.png")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", look)
    assert names("@list") == ["a.jpg", "b.png"]
    with pytest.raises(AssertionError):
        names("a.jpg")


def test_what_is_no_list_is_an_error(here: Path) -> None:
    (here / "list").write_bytes(bytes(range(65, 91)) * 10_000)
    with pytest.raises(DataError, match=r"^list has a line of over 65536 bytes: expected a path or URL in each"):
        names("@list")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\): expected a list of paths or URLs"):
        names(f"@{here}")
    (here / "empty").touch()
    with pytest.raises(DataError, match=r"^no image found in @empty: expected"):
        names("@empty")


def test_a_list_is_read_while_it_is_written(here: Path) -> None:
    """As from `find ... | saccade caption -`: the first image need not wait for the last."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        sources = find_images([f"@/dev/fd/{reading}"])
        pipe.write(b"a.jpg\nb.j")
        assert next(sources).name == "a.jpg"
        threading.Timer(0.1, pipe.write, [b"pg\n"]).start()
        assert next(sources).name == "b.jpg"
    assert list(sources) == []
    os.close(reading)


def test_null_characters_are_seen_in_what_comes_first(here: Path) -> None:
    """Even if the first piece of a pipe ends within a name."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        pipe.write(b"a")
        threading.Timer(0.1, pipe.write, [b"\n.jpg\0b.jpg\0"]).start()
        sources = find_images([f"@/dev/fd/{reading}"])
        assert [next(sources).name, next(sources).name] == ["a\n.jpg", "b.jpg"]
    os.close(reading)


def test_a_list_may_come_from_standard_input(here: Path) -> None:
    touch(here, "a/1.jpg")
    code = "from engine.sources import find_images; print([s.name for s in find_images(['-'])])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"a\0x\n.jpg\0caf\xe9.jpg", capture_output=True, env=environment, check=True
    )
    assert done.stdout == b"['a/1.jpg', 'x\\n.jpg', 'caf\\udce9.jpg']\n"


def test_memory_does_not_grow_with_a_list(here: Path) -> None:
    """In a process of its own: how large Python's table of interned strings is, depends on what ran before."""
    with (here / "list").open("w") as file:
        file.writelines(f"some/folder/{number}.jpg\n" for number in range(50_000))
    code = (
        "import tracemalloc; from engine.sources import find_images; tracemalloc.start(); "
        "print(sum(1 for _ in find_images(['@list'])), tracemalloc.get_traced_memory()[1])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    found, peak = map(int, done.stdout.split())
    assert found == 50_000
    assert peak < 8_000_000  # most of it that table


# Counting.


def test_what_is_cheap_to_count_is_counted(here: Path) -> None:
    touch(here, "a/1.jpg", "a/b/2.jpg", "a/notes.txt", "c.jpg")
    archive(here / "s.tar", "x.png", "y.png")
    (here / "list").write_text("a\ngone.jpg\nc.jpg\n")
    for inputs in (["a", "c.jpg"], ["*/*.jpg"], ["s.tar"], ["@list"], ["{a,s.tar}", "c.jpg", "c.jpg"]):
        assert count_images(inputs) == len(names(*inputs)), inputs
    assert count_images(["@list"]) == 4


def test_what_is_not_cheap_or_not_there_is_not_counted(here: Path) -> None:
    archive(here / "t.tar.gz", "x.png")
    touch(here, "a.jpg")
    (here / "list").write_text("a.jpg\nt.tar.gz\n")
    for given in ("t.tar.gz", "@list", "s3://bucket/a", "gone.jpg", "*.gif", "@gone"):
        assert count_images(["a.jpg", given]) is None, given


def test_a_list_that_cannot_be_read_twice_is_not_counted(here: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a.jpg\n")
    os.close(writing)
    assert count_images([f"@/dev/fd/{reading}"]) is None
    assert count_images(["-"]) is None
    assert names(f"@/dev/fd/{reading}") == ["a.jpg"]
    os.close(reading)


def test_an_unknown_order_is_an_error() -> None:
    with pytest.raises(ConfigError, match="order must be one of folder, name, got 'size'"):
        ScanOptions(order="size")  # type: ignore[arg-type]
