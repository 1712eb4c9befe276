"""What the endurance benchmark says of a run is true of it."""

from pathlib import Path

import pytest

from benchmarks.endurance import Sample, draw_images, measure_captioning, measure_scanning, steadiness
from saccade.errors import OutputError


def samples(*resident_mib: float) -> list[Sample]:
    """A sample every ten seconds."""
    return [
        Sample(second=10.0 * number, resident_mib=value, descriptors=20 + number % 2, threads=9)
        for number, value in enumerate(resident_mib)
    ]


def test_growth_is_from_the_second_minute_to_the_last() -> None:
    found = steadiness(
        samples(10, 50, 90, 100, 150, 190, 200, 210, 200, 999, 200, 190, 210, 220, 240, 240, 240, 240, 250)
    )
    assert (found["resident_mib_in_second_minute"], found["resident_mib_in_last_minute"]) == (200, 240)
    assert found["resident_mib_most"] == 999
    assert found["growth"] == pytest.approx(0.2)
    assert (found["descriptors"], found["threads"], found["seconds"]) == ([20, 21], [9, 9], 180)


def test_a_run_that_is_over_before_shows_nothing() -> None:
    with pytest.raises(OutputError, match="take more images"):
        steadiness(samples(10, 20))


def test_images_have_many_names_and_few_contents(tmp_path: Path) -> None:
    draw_images(tmp_path, 2001, size=32)
    images = sorted((tmp_path / "images").rglob("*.jpg"))
    assert len(images) == 2001
    assert {len(list(folder.iterdir())) for folder in (tmp_path / "images").iterdir()} == {1000, 1}
    assert len({image.read_bytes() for image in images}) == 200


def test_names_are_scanned_and_counted(tmp_path: Path) -> None:
    found = measure_scanning(tmp_path / "names", 300)
    assert found["names"] == 300
    assert 0 < found["first_s"] <= found["all_s"] < 10
    assert 10 < found["peak_mib"] < 200


def test_every_image_of_a_run_is_counted_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.endurance._MINUTE_S", 0.3)
    monkeypatch.setattr("benchmarks.endurance._PAUSE_S", 0.01)
    found = measure_captioning(tiny_bundle, tmp_path, 40, ["--batch=8"])
    assert found["each_exactly_once"] is True
    assert found["images"] == 40
    assert 1 < found["resident_mib_in_last_minute"] <= found["resident_mib_most"]
    assert found["most_waiting"]["scan"] <= 256


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"ended with 1: saccade: error: .*no bundle"):
        measure_captioning(tmp_path / "absent", tmp_path, 2, [])
