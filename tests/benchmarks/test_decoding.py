"""The benchmark of decoding: its figures are what the clock and the pixels say."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks import decoding as benchmark
from benchmarks.decoding import alternate, difference, nudged, ratios, read_images, sides
from engine.captioner import Captioner
from saccade.errors import ConfigError
from saccade.pixels import load_rgb
from saccade.preprocessing import PreprocessSpec, load_image, resize
from tests.bundles import patchworks

SPEC = PreprocessSpec(size=8, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
COLOURS = ("red", "lime", "blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A red PNG, a lime JPEG and a blue one, the last in a folder of its own."""
    (tmp_path / "images/deep").mkdir(parents=True)
    for colour, name in zip(COLOURS, ("a.png", "b.jpg", "deep/c.jpg"), strict=True):
        Image.new("RGB", (40, 50), colour).save(tmp_path / "images" / name)
    return tmp_path / "images"


def encoded(picture: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format)
    return buffer.getvalue()


def colour(image: bytes) -> str:
    pixel = np.array(load_rgb(image).getpixel((0, 0)))
    return COLOURS[int(pixel.argmax())]


def test_files_folders_and_tar_files_become_jpeg_files_in_order(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, "images")
    for path in (folder, tmp_path / "images.tar"):
        images = read_images([path, folder / "b.jpg"])
        assert [colour(image) for image in images] == ["red", "lime", "blue", "lime"]
        assert {Image.open(io.BytesIO(image)).format for image in images} == {"JPEG"}
    assert images[3] == (folder / "b.jpg").read_bytes()  # a JPEG stays as it is
    assert len(read_images([folder], 2)) == 2


def test_no_image_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no image in"):
        read_images([tmp_path])


def test_rates_are_images_by_the_seconds_of_their_side_and_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = 0.0, []
    seconds = {"simplejpeg": iter([9, 9, 1, 1, 2, 2]), "fast": iter([7, 7, 2, 2, 1, 1])}

    def load(name: str) -> Any:
        def count(image: bytes) -> None:
            nonlocal clock
            order.append(name)
            clock += next(seconds[name])

        return count

    monkeypatch.setattr("time.process_time", lambda: clock)
    rates = alternate({name: load(name) for name in seconds}, [b"one", b"two"], rounds=2)
    assert rates == {"simplejpeg": [1, 0.5], "fast": [0.5, 1]}
    assert order == (["simplejpeg"] * 2 + ["fast"] * 2) * 3
    assert ratios({"simplejpeg": [4, 1, 2], "fast": [3, 1, 1]}) == {"simplejpeg": 1, "fast": 0.5}


def test_every_side_does_what_its_name_says() -> None:
    """For 8 pixels and a margin of 2, 136 x 72 are decoded at a quarter: an eighth would be 9 pixels high."""
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (72, 136, 3), dtype=np.uint8))
    image = encoded(picture, "JPEG")
    found = {name: load(image) for name, load in sides(SPEC, 2.0).items()}
    reduced = Image.open(io.BytesIO(image))
    reduced.draft("RGB", (34, 18))
    assert np.array_equal(found["simplejpeg"], np.asarray(load_rgb(image)))
    assert np.array_equal(found["reference"], load_image(image, SPEC))
    assert np.array_equal(found["full"], found["reference"])
    assert np.array_equal(found["scaled"], resize(reduced, SPEC))
    assert not np.array_equal(found["scaled"], found["reference"])


def test_the_difference_of_a_hand_made_pair() -> None:
    reference = np.full((2, 2, 2, 3), 100, dtype=np.uint8)
    pixels = reference.copy()
    pixels[1, 0, 0] = [100, 97, 103]
    found = difference(reference, pixels)
    assert (found.mean_absolute, found.worst_image) == (6 / 24, 6 / 12)
    assert (found.largest_absolute, found.equal, found.changed_captions) == (3, 22 / 24, None)
    assert difference(pixels, reference) == found


def test_a_share_of_the_values_is_nudged_by_one() -> None:
    pixels = np.repeat(np.array([0, 100, 255], dtype=np.uint8), 10_000)
    apart = nudged(pixels, 0.3).astype(int) - pixels
    assert sorted(np.unique(apart[:20_000])) == [0, 1]
    assert sorted(np.unique(apart[20_000:])) == [-1, 0]
    assert np.abs(apart).mean() == pytest.approx(0.3, abs=0.02)


def test_changed_captions_are_counted(tiny_bundle: Path) -> None:
    """More images than a batch, of which some are exchanged for others with other captions."""
    before = patchworks(40, seed=1)
    with Captioner.open(tiny_bundle) as captioner:
        said = [hypotheses[0].tokens for hypotheses in captioner.caption_pixels(before)]
        other = next(number for number, tokens in enumerate(said) if tokens != said[0])
        after = before.copy()
        after[[0, 39]] = before[[other, other]]
        changed = 1 + (said[39] != said[other])
        assert difference(before, after, captioner).changed_captions == changed / 40
        assert difference(before, before.copy(), captioner).changed_captions == 0


def run(*arguments: object) -> tuple[list[str], dict[str, Any]]:
    outcome = CliRunner().invoke(benchmark.main, [str(each) for each in arguments], catch_exceptions=False)
    assert outcome.exit_code == 0
    *table, last = outcome.stdout.splitlines()
    return table, json.loads(last)


def test_the_last_line_is_json_that_tells_what_the_table_shows(folder: Path) -> None:
    table, record = run(folder, "--size", "16", "--geometry", "crop", "--rounds", "2", "--limit", "2")
    assert (record["images"], record["size"], record["geometry"], record["margin"]) == (2, 16, "crop", 2)
    assert list(record["images_per_s"]) == ["simplejpeg", "reference", "full", "scaled"]
    rows = {line.split()[0]: [float(figure) for figure in line.split()[1:]] for line in table[1:]}
    for name, rates in record["images_per_s"].items():
        assert len(rates) == 2
        figures = [np.median(rates), min(rates), max(rates), record["ratios"][name]]
        assert rows[name][:4] == pytest.approx(figures, abs=0.06)
    for name, found in record["differences"].items():
        assert rows[name][-1] == pytest.approx(found["mean_absolute"], abs=1e-4)
    assert record["differences"]["full"]["equal"] == 1
    assert 0.005 < record["differences"]["nudged"]["mean_absolute"] < 0.02
    assert {"saccade", "commit", "device", "pillow", "pillow_libjpeg_turbo", "simplejpeg"} <= record[
        "environment"
    ].keys()


def test_a_bundle_says_size_and_geometry_and_captions_what_is_compared(folder: Path, tiny_bundle: Path) -> None:
    table, record = run(folder, "--bundle", tiny_bundle, "--size", "16", "--rounds", "1")
    assert (record["size"], record["images"]) == (64, 3)
    assert record["differences"]["full"]["changed_captions"] == 0
    assert [line.split()[-1] for line in table if line.startswith("full")] == ["0.00%"]
