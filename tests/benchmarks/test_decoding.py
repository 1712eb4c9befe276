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
from numpy.typing import NDArray
from PIL import Image

from benchmarks import decoding as benchmark
from benchmarks.decoding import alternate, changed_captions, errors, mosaics, ratios, read_images, sides
from engine.captioner import Captioner
from saccade.errors import ConfigError
from saccade.pixels import load_rgb
from saccade.preprocessing import PreprocessSpec, load_image
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


def test_a_mosaic_shows_the_centres_of_images_at_their_own_size(folder: Path) -> None:
    """Images of 40 x 50 and, with a frame that the centre leaves out, of 64 x 50 have 32 x 48 in common."""
    framed = Image.new("RGB", (64, 50), "white")
    framed.paste("blue", (12, 0, 52, 50))
    buffer = io.BytesIO()
    framed.save(buffer, "PNG")
    made = mosaics([*read_images([folder]), buffer.getvalue()], 3, 5)
    assert len(made) == 5
    found = set()
    for picture in map(load_rgb, made):
        assert picture.size == (3 * 32, 3 * 48)
        pixels = np.asarray(picture).reshape(3, 48, 3, 32, 3).swapaxes(1, 2).astype(int)
        for part in pixels.reshape(9, 48, 32, 3)[:, 8:-8, 8:-8]:  # away from where JPEG blurs the borders
            assert np.ptp(part, axis=(0, 1)).max() <= 8
            found.add(COLOURS[int(part[0, 0].argmax())])
            assert np.sort(part[0, 0])[1] < 10  # never white
    assert found == set(COLOURS)


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


def test_every_side_does_what_its_name_says(folder: Path) -> None:
    """On a mosaic that is large enough for the fast path to differ."""
    (image,) = mosaics(read_images([folder / "a.png", folder / "b.jpg"]), 8, 1)
    found: dict[str, NDArray[np.uint8]] = {name: load(image) for name, load in sides(SPEC).items()}  # type: ignore[misc]
    assert np.array_equal(found["simplejpeg"], np.asarray(load_rgb(image)))
    assert np.array_equal(found["reference"], load_image(image, SPEC))
    assert np.array_equal(found["fast"], load_image(image, SPEC, fast=True))
    assert not np.array_equal(found["fast"], found["reference"])


def test_errors_are_those_of_a_hand_made_pair() -> None:
    reference = np.full((2, 2, 2, 3), 100, dtype=np.uint8)
    fast = reference.copy()
    fast[1, 0, 0] = [100, 97, 103]
    found = errors(reference, fast)
    assert (found.mean_absolute, found.worst_image) == (6 / 24, 6 / 12)
    assert (found.largest_absolute, found.equal, found.reduced) == (3, 22 / 24, 0.5)
    assert errors(fast, reference) == found


def test_changed_captions_are_counted(tiny_bundle: Path) -> None:
    """More images than a batch, of which some are exchanged for others with other captions."""
    before = patchworks(40, seed=1)
    with Captioner.open(tiny_bundle) as captioner:
        said = [hypotheses[0].tokens for hypotheses in captioner.caption_pixels(before)]
        other = next(number for number, tokens in enumerate(said) if tokens != said[0])
        after = before.copy()
        after[[0, 39]] = before[[other, other]]
        changed = 1 + (said[39] != said[other])
        assert changed_captions(captioner, before, after) == changed / 40
        assert changed_captions(captioner, before, before.copy()) == 0


def run(*arguments: object) -> tuple[list[str], dict[str, Any]]:
    outcome = CliRunner().invoke(benchmark.main, [str(each) for each in arguments], catch_exceptions=False)
    assert outcome.exit_code == 0
    *table, last = outcome.stdout.splitlines()
    return table, json.loads(last)


def test_the_last_line_is_json_that_tells_what_the_table_shows(folder: Path) -> None:
    table, record = run(folder, "--size", "16", "--geometry", "crop", "--rounds", "2", "--limit", "2")
    assert (record["images"], record["size"], record["geometry"], record["changed_captions"]) == (2, 16, "crop", None)
    assert list(record["images_per_s"]) == ["simplejpeg", "reference", "fast"]
    for name, rates in record["images_per_s"].items():
        assert len(rates) == 2
        row = next(line.split() for line in table if line.startswith(name))
        assert [float(figure) for figure in row[1:]] == pytest.approx(
            [np.median(rates), min(rates), max(rates), record["ratios"][name]], abs=0.06
        )
    assert record["errors"]["equal"] == 1
    assert {"saccade", "commit", "device", "pillow", "pillow_libjpeg_turbo", "simplejpeg"} <= record[
        "environment"
    ].keys()


def test_a_bundle_says_size_and_geometry_and_captions_the_mosaics(folder: Path, tiny_bundle: Path) -> None:
    _, record = run(folder, "--bundle", tiny_bundle, "--mosaic", "60", "--limit", "2", "--rounds", "1")
    assert (record["size"], record["images"], record["mosaic"]) == (64, 2, 60)
    assert record["errors"]["reduced"] == 1
    assert record["changed_captions"] in (0, 0.5, 1)
