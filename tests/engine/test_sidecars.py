"""A text file for each image: in its place, whole, never another image's, and the same when it is written again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.conversion import Conversion, ConversionOptions, convert
from engine.records import Record
from engine.results import ResultsWriter
from engine.sidecars import SidecarOptions
from saccade.errors import ConfigError, OutputError
from saccade.progress import Reporter
from tests.commands import call


def record(path: str | Path, caption: str = "a ball") -> Record:
    return Record(path=str(path), caption=caption, score=-1.5, tokens=(4, 5), words=("a", "ball"), truncated=False)


def results(folder: Path, paths: Sequence[str | Path], caption: str = "a ball") -> Path:
    """Write the results of a run in the folder above."""
    with ResultsWriter(folder, {}, {"working_directory": str(folder.parent)}) as writer:
        writer.commit([record(path, caption) for path in paths])
    return folder


def write(source: Path, **options: Any) -> Conversion:
    sidecars = SidecarOptions(**options)
    return convert(source, ConversionOptions(format="txt", sidecars=sidecars), Reporter(quiet=True))


def texts(folder: Path) -> dict[str, str]:
    """Sidecars below a folder; results and images are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "out" not in path.parts)
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in files if path.stat().st_size}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Empty files named like images: a sidecar asks no more of them."""
    for name in ("a.jpg", "b.tar.png", "deep/a.jpg", "deep/no suffix"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


ALL = ("photos/a.jpg", "photos/b.tar.png", "photos/deep/a.jpg", "photos/deep/no suffix")


def test_sidecars_are_beside_their_images_wherever_the_command_runs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are relative to where the run was, not to where the conversion is."""
    out = results(tmp_path / "out", [*ALL[:3], photos / "deep/no suffix"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert write(out) == Conversion(records=4)
    expected = ("photos/a.txt", "photos/b.tar.txt", "photos/deep/a.txt", "photos/deep/no suffix.txt")
    assert texts(tmp_path) == dict.fromkeys(expected, "a ball\n")


def test_paths_of_a_file_of_records_are_relative_to_the_working_directory(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "captions.csv").write_text("path,caption\na.jpg,ein Hund\n")
    monkeypatch.chdir(photos)
    write(photos / "captions.csv")
    assert (photos / "a.txt").read_text() == "ein Hund\n"


def test_each_shard_has_the_working_directory_of_its_own_run(photos: Path, tmp_path: Path) -> None:
    for number, base in enumerate((photos, photos / "deep")):
        folder = tmp_path / "out" / f"shard-{number:04d}-of-0002"
        with ResultsWriter(folder, {}, {"working_directory": str(base)}) as writer:
            writer.commit([record("a.jpg", str(number))])
    write(tmp_path / "out")
    assert texts(photos) == {"a.txt": "0\n", "deep/a.txt": "1\n"}


def test_below_a_root_sidecars_have_the_folders_of_their_images(photos: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", [ALL[0], photos / "deep/a.jpg", "/elsewhere/c.jpg", "../d.jpg", "x/../y/e.jpg"])
    write(out, root=tmp_path / "side")
    expected = ("photos/a.txt", "photos/deep/a.txt", "elsewhere/c.txt", "d.txt", "y/e.txt")
    assert texts(tmp_path / "side") == dict.fromkeys(sorted(expected), "a ball\n")
    assert texts(photos) == {}


@pytest.mark.parametrize(
    ("name", "sidecar"),
    [
        ("shard.tar/cats/1.jpg", "shard.tar/cats/1.txt"),
        ("shards/s.tgz/1.jpg", "shards/s.tgz/1.txt"),
        ("table.parquet#17", "table.parquet/17.txt"),
        ("https://example.org/a/b.jpg?size=9", "example.org/a/b.txt"),
        ("s3://bucket/a.jpg", "bucket/a.txt"),
    ],
)
def test_what_is_no_file_on_disk_has_its_sidecar_below_the_root_only(tmp_path: Path, name: str, sidecar: str) -> None:
    (tmp_path / "shard.tar").touch()
    out = results(tmp_path / "out", [name])
    with pytest.raises(OutputError, match="is no file on disk to have a sidecar beside it: give a folder with --root"):
        write(out)
    assert texts(tmp_path) == {}
    write(out, root=tmp_path / "side")
    assert texts(tmp_path / "side") == {sidecar: "a ball\n"}


@pytest.mark.parametrize("name", ["../../../etc/a.jpg", "/../etc/a.jpg", "a.tar//etc/a.jpg", "a.tar/../../etc/a.jpg"])
def test_no_name_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    write(results(tmp_path / "out", [name]), root=tmp_path / "deep" / "side")
    (path,) = texts(tmp_path)
    assert path in ("deep/side/etc/a.txt", "deep/side/a.tar/etc/a.txt")


@pytest.mark.parametrize("name", ["", "..", "/", "photos/..", "https://"])
def test_a_name_of_no_image_is_refused(tmp_path: Path, name: str) -> None:
    out = results(tmp_path / "out", [name])
    for root in (None, tmp_path / "side"):
        with pytest.raises(OutputError, match="names no image, so it can have no sidecar"):
            write(out, root=root)
    assert texts(tmp_path) == {}


def test_two_images_never_share_a_sidecar(photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").touch()
    out = results(tmp_path / "out", ["photos/b.png", "photos/a.jpg", "photos/deep/../a.png"])
    with pytest.raises(
        OutputError, match=r"photos/a\.jpg and photos/deep/\.\./a\.png would share the sidecar .*/photos/a\.txt: "
    ):
        write(out)
    assert texts(photos) == {}
    write(out, keep_suffix=True)
    assert set(texts(photos)) == {"a.jpg.txt", "a.png.txt", "b.png.txt"}


def test_what_leads_to_one_place_below_the_root_is_refused_too(tmp_path: Path) -> None:
    out = results(tmp_path / "out", ["../a.jpg", "a.jpg"])
    with pytest.raises(OutputError, match=r"\.\./a\.jpg and a\.jpg would share the sidecar"):
        write(out, root=tmp_path / "side", keep_suffix=True)


def test_existing_sidecars_are_left_alone_unless_told_otherwise(photos: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ["photos/a.jpg", "photos/deep/a.jpg"])
    (photos / "a.txt").write_text("mine")
    assert write(out) == Conversion(records=2, left=1)
    assert texts(photos) == {"a.txt": "mine", "deep/a.txt": "a ball\n"}
    assert write(out, existing="overwrite") == Conversion(records=2)
    assert texts(photos) == {"a.txt": "a ball\n", "deep/a.txt": "a ball\n"}


def test_an_existing_sidecar_may_be_an_error_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ["photos/a.jpg", "photos/deep/a.jpg"])
    (photos / "deep/a.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"deep/a\.txt exists already: choose --existing skip, overwrite or append"):
        write(out, existing="error")
    assert texts(photos) == {"deep/a.txt": "mine"}
    (photos / "deep/a.txt").unlink()
    assert write(out, existing="error") == Conversion(records=2)
    assert texts(photos) == {"a.txt": "a ball\n", "deep/a.txt": "a ball\n"}


@pytest.mark.parametrize(
    ("before", "caption", "after"),
    [
        (None, "a ball", b"a ball\n"),
        (b"", "a ball", b"a ball\n"),
        (b"red", "a ball", b"red\na ball\n"),
        (b"red\n", "a ball", b"red\na ball\n"),
        (b"red\n\n", "a ball", b"red\n\na ball\n"),
        (b"a ball", "a ball", b"a ball"),
        (b"red\r\na ball\r\n", "a ball", b"red\r\na ball\r\n"),
        (b"a ball\nred\n", "a ball", b"a ball\nred\na ball\n"),
        (b"not a ball\n", "a ball", b"not a ball\na ball\n"),
        (b"caf\xe9\n", "a ball", b"caf\xe9\na ball\n"),
        (None, "", b"\n"),
        (b"red\n", "", b"red\n\n"),
        (None, "two\nlines", b"two\nlines\n"),
    ],
)
def test_a_line_is_added_once(photos: Path, tmp_path: Path, before: bytes | None, caption: str, after: bytes) -> None:
    """Whatever the sidecar held before, in any encoding, a second conversion changes nothing."""
    out = results(tmp_path / "out", ["photos/a.jpg"], caption)
    if before is not None:
        (photos / "a.txt").write_bytes(before)
    assert write(out, existing="append").left == (before == after)
    assert (photos / "a.txt").read_bytes() == after
    assert write(out, existing="append") == Conversion(records=1, left=1)
    assert (photos / "a.txt").read_bytes() == after


def test_a_caption_stands_between_prefix_and_suffix(photos: Path, tmp_path: Path) -> None:
    out = results(tmp_path / "out", ["photos/a.jpg"], "एक गेंद")
    write(out, prefix="photo of ", suffix=", 日本", extension=".caption")
    assert texts(photos) == {"a.caption": "photo of एक गेंद, 日本\n"}
    write(out, existing="append", prefix="photo of ", suffix="!", extension=".caption")
    assert texts(photos) == {"a.caption": "photo of एक गेंद, 日本\nphoto of एक गेंद!\n"}


def test_images_with_odd_names_have_sidecars(photos: Path, tmp_path: Path) -> None:
    odd = [os.fsdecode(name) for name in (b"caf\xe9.jpg", b"a\nb.jpg", b" .jpg", b".jpg", b"x" * 250 + b".jpg")]
    for name in odd:
        (photos / name).touch()
    write(results(tmp_path / "out", [photos / name for name in odd]))
    expected = [b"caf\xe9.txt", b"a\nb.txt", b" .txt", b".jpg.txt", b"x" * 250 + b".txt"]
    assert {os.fsencode(path) for path in texts(photos)} == set(expected)


def test_text_that_is_no_unicode_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*photos/a\.txt: .*surrogates not allowed"):
        write(results(tmp_path / "out", ["photos/a.jpg"], "\ud800"))
    assert texts(photos) == {}


@pytest.mark.parametrize("extension", ["", ".", "txt", ".a/b", "..", ".x."])
def test_an_extension_is_a_dot_and_a_name(extension: str) -> None:
    with pytest.raises(ConfigError, match="the extension must be a dot and a name, got "):
        SidecarOptions(extension=extension)


def test_sidecars_never_replace_images(photos: Path, tmp_path: Path) -> None:
    for extension in (".png", ".JPG"):
        with pytest.raises(ConfigError, match="is one of images, which sidecars would replace"):
            SidecarOptions(extension=extension, existing="overwrite")
    (photos / "picture.txt").write_text("an image, in spite of its name")
    out = results(tmp_path / "out", ["photos/picture.txt"])
    for root in (None, tmp_path):
        with pytest.raises(
            OutputError, match=r"picture\.txt would be replaced by its own sidecar: choose another --ext"
        ):
            write(out, existing="overwrite", root=root)
    assert texts(photos) == {"picture.txt": "an image, in spite of its name"}


def test_a_full_disk_is_an_error_that_leaves_nothing_torn(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    out = results(tmp_path / "out", ALL)
    (photos / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*photos/.*\.txt: No space left on device; free some space"):
        write(out, existing="overwrite")
    assert texts(photos) == {"a.txt": "old"}


def test_many_sidecars_are_written_each_with_its_own_caption(photos: Path, tmp_path: Path) -> None:
    """More than one batch of the threads that write."""
    with ResultsWriter(tmp_path / "out", {}, {"working_directory": str(photos)}) as writer:
        writer.commit([record(f"{number}.jpg", f"number {number}") for number in range(600)])
    assert write(tmp_path / "out") == Conversion(records=600)
    assert texts(photos) == {f"{number}.txt": f"number {number}\n" for number in range(600)}


def test_the_names_of_coco_results_are_ids(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"image_id": 7, "caption": "a"}, {"image_id": "x.y", "caption": "b"}]')
    write(tmp_path / "a.json", root=tmp_path / "side", keep_suffix=True)
    assert texts(tmp_path / "side") == {"7.txt": "a\n", "x.y.txt": "b\n"}


def test_the_command_says_how_many_it_wrote(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = results(tmp_path / "out", ALL)
    (photos / "a.txt").write_text("mine")
    outcome = call(capsys, "convert", out, "--to", "txt", "--prefix", "photo of ")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.splitlines()[-1] == f"{out}: 3 sidecars written, 1 left as they were"
    assert (photos / "deep/a.txt").read_text() == "photo of a ball\n"
