"""The preprocessing spec as a contract between bundle and run, and the resize that every path shares."""

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from saccade.errors import ConfigError
from saccade.preprocessing import PreprocessSpec, load_image, resize

VALID: dict[str, Any] = {"size": 8, "geometry": "squash", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
BILINEAR = Image.Resampling.BILINEAR


def spec(**changes: Any) -> PreprocessSpec:
    return PreprocessSpec(**(VALID | changes))


def noise(width: int, height: int) -> Image.Image:
    """A picture in which every neighbour differs, so that any other way to resize it shows."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


# The spec


def test_json_round_trip_keeps_every_field() -> None:
    original = spec(geometry="crop", exif_transpose=False)
    assert PreprocessSpec.from_json(json.loads(json.dumps(original.as_json()))) == original


def test_json_names_exactly_the_fields() -> None:
    assert spec().as_json() == {
        "size": 8,
        "geometry": "squash",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "exif_transpose": True,
    }


def test_unknown_and_missing_keys_are_all_reported() -> None:
    values = spec().as_json() | {"centre": True, "zoom": 2}
    del values["std"], values["exif_transpose"]
    with pytest.raises(ConfigError) as caught:
        PreprocessSpec.from_json(values)
    for problem in ("unknown key 'centre'", "unknown key 'zoom'", "missing key 'std'", "missing key 'exif_transpose'"):
        assert problem in str(caught.value)


@pytest.mark.parametrize("values", [None, 3, "squash", ["size"]])
def test_json_that_is_no_object_is_a_config_error(values: object) -> None:
    with pytest.raises(ConfigError, match="expected an object"):
        PreprocessSpec.from_json(values)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        spec(size=0, geometry="stretch", mean=(0.5, 0.5), std=(1, 0, 1), exif_transpose="yes")
    for field in ("size", "geometry", "mean", "std", "exif_transpose"):
        assert f"{field} is " in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 8.0),
        ("size", True),
        ("size", 1025),
        ("size", "8"),
        ("geometry", None),
        ("geometry", ["crop"]),
        ("mean", (0.5, 0.5, float("nan"))),
        ("mean", (0.5, 0.5, 1.5)),
        ("mean", (0.5, 0.5, -0.1)),
        ("mean", (True, False, True)),
        ("mean", "abc"),
        ("mean", None),
        ("std", (0.5, 0.5, float("inf"))),
        ("std", (0.5, 0.5, 10**400)),
        ("std", (0.5, 0.5, -0.5)),
        ("std", 0.5),
        ("exif_transpose", 1),
        ("exif_transpose", None),
    ],
)
def test_an_invalid_value_is_refused_and_shown(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} is ") as caught:
        spec(**{field: value})
    assert str(caught.value).count(" is ") == 1


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec().size = 9  # type: ignore[misc]


def test_the_fingerprint_is_fixed_across_versions_of_this_program() -> None:
    """Runs in progress are resumed by it: if this fails, results folders made before cannot be resumed."""
    assert spec().fingerprint() == "bc4da9a50985b2e98f2878f269eb152050b55f91b2d19054868e2f71caf15209"


@pytest.mark.parametrize(
    "change",
    [
        {"size": 9},
        {"geometry": "crop"},
        {"mean": (0.485, 0.456, 0.407)},
        {"std": (0.225, 0.224, 0.229)},
        {"exif_transpose": False},
    ],
)
def test_every_field_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert spec(**change).fingerprint() != spec().fingerprint()


def test_equal_numbers_have_one_fingerprint_however_they_are_written() -> None:
    assert spec(mean=[0, 0, 0], std=[1, 1, 1]).fingerprint() == spec(mean=(0.0,) * 3, std=(1.0,) * 3).fingerprint()
    assert spec(mean=[0, 0, 0]) == spec(mean=(0.0,) * 3)


def test_the_preprocess_version_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = spec().fingerprint()
    monkeypatch.setattr("saccade.preprocessing.PREPROCESS_VERSION", 2)
    assert spec().fingerprint() != before


# The resize


def triangle(length: int, size: int, part: int) -> NDArray[np.float64]:
    """Weights (size, length) of the antialiased bilinear filter for the central part, from the filter's definition."""
    scale = max(part / size, 1.0)
    centres = (length - part) // 2 + (np.arange(size) + 0.5) * part / size
    distances = np.abs(np.arange(length) + 0.5 - centres[:, None]) / scale
    weights = np.clip(1.0 - distances, 0.0, None)
    return np.asarray(weights / weights.sum(axis=1)[:, None])


def by_definition(
    picture: Image.Image, size: int, *, crop: bool = False, horizontal_first: bool = True
) -> NDArray[np.float64]:
    """The resize in floating point, each pass rounded to whole grey levels, halves up."""
    pixels = np.asarray(picture, dtype=float)
    height, width = pixels.shape[:2]
    side = min(height, width)
    down, across = triangle(height, size, side if crop else height), triangle(width, size, side if crop else width)
    passes = [("xw,hwc->hxc", across), ("yh,hwc->ywc", down)]
    for subscripts, weights in passes if horizontal_first else reversed(passes):
        pixels = np.floor(np.einsum(subscripts, weights, pixels) + 0.5)
    return pixels


SHAPES = [(50, 20), (20, 50), (9, 500), (500, 9), (21, 20), (20, 21), (5, 6), (5, 3), (8, 8), (1, 1), (1, 300)]


@pytest.mark.parametrize("geometry", ["squash", "crop"])
@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_resize_is_the_antialiased_bilinear_filter_horizontal_pass_first(
    width: int, height: int, geometry: str
) -> None:
    """Pillow computes in fixed point: a value close to a half may go the other way, by one grey level, and seldom."""
    picture = noise(width, height)
    difference = np.abs(resize(picture, spec(geometry=geometry)) - by_definition(picture, 8, crop=geometry == "crop"))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.08


def test_the_passes_round_in_one_order_whatever_pillow_does_inside_one_call() -> None:
    """A tall picture, where Pillow 13 started to do the vertical pass first: the orders differ, and ours is fixed."""
    picture = noise(301, 900)
    ours = resize(picture, spec(size=64))
    assert (ours != by_definition(picture, 64, horizontal_first=False)).mean() > 0.05
    assert (ours != by_definition(picture, 64, horizontal_first=True)).mean() < 0.01
    two_calls = picture.resize((64, 900), BILINEAR).resize((64, 64), BILINEAR)
    assert np.array_equal(ours, np.asarray(two_calls))


def test_crop_ignores_what_is_far_from_the_central_square() -> None:
    picture = noise(100, 20)
    changed = picture.copy()
    changed.paste("red", (0, 0, 35, 20))
    changed.paste("red", (65, 0, 100, 20))
    assert np.array_equal(resize(changed, spec(geometry="crop")), resize(picture, spec(geometry="crop")))
    assert not np.array_equal(resize(changed, spec()), resize(picture, spec()))


def test_crop_turns_with_the_picture() -> None:
    """A portrait and the same picture on its side agree, but for the rounding between the passes."""
    picture = noise(61, 20)
    turned = resize(picture.transpose(Image.Transpose.TRANSPOSE), spec(geometry="crop"))
    difference = resize(picture, spec(geometry="crop")).astype(int) - turned.transpose(1, 0, 2)
    assert np.abs(difference).max() <= 2


def test_crop_close_to_short_side_then_centre_crop() -> None:
    """The textbook rule rounds the long side to whole pixels; on a smooth picture that is all the difference."""
    across, down = np.meshgrid(np.linspace(0, 250, 640), np.linspace(0, 250, 425))
    picture = Image.fromarray(np.stack([across, down, (across + down) / 2], axis=-1).astype(np.uint8))
    scaled = picture.resize((round(640 * 64 / 425), 64), BILINEAR)
    left = (scaled.width - 64) // 2
    textbook = np.asarray(scaled.crop((left, 0, left + 64, 64)), dtype=int)
    assert np.abs(resize(picture, spec(size=64, geometry="crop")) - textbook).max() <= 3


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    picture = noise(8, 8)
    for geometry in ("squash", "crop"):
        assert np.array_equal(resize(picture, spec(geometry=geometry)), np.asarray(picture))


def test_load_image_returns_writable_contiguous_rgb_bytes() -> None:
    pixels = load_image(png(noise(30, 20)), spec())
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_load_image_is_load_rgb_then_resize() -> None:
    picture = noise(30, 20)
    assert np.array_equal(load_image(png(picture), spec()), resize(picture, spec()))


def test_a_jpeg_is_decoded_in_full_not_at_a_reduced_scale() -> None:
    """Pillow can decode a JPEG at 1/8 size for a small result; that is for the fast path, not for the reference."""
    buffer = io.BytesIO()
    noise(256, 640).save(buffer, "JPEG", quality=95)
    with Image.open(buffer) as full, Image.open(io.BytesIO(buffer.getvalue())) as reduced:
        reduced.draft("RGB", (16, 16))
        ours = load_image(buffer.getvalue(), spec(size=16))
        assert np.array_equal(ours, resize(full, spec(size=16)))
        assert not np.array_equal(ours, resize(reduced, spec(size=16)))


@pytest.mark.parametrize("geometry", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(60000, 1), (1, 60000)])
def test_an_extremely_long_picture_has_a_result(geometry: str, shape: tuple[int, int]) -> None:
    picture = Image.fromarray(np.full((*shape, 3), (10, 20, 30), dtype=np.uint8))
    assert np.array_equal(load_image(png(picture), spec(geometry=geometry)), np.full((8, 8, 3), (10, 20, 30)))


def test_the_spec_decides_whether_orientation_is_obeyed() -> None:
    picture = noise(8, 8)
    exif = Image.Exif()
    exif[274] = 3
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    upside_down = np.asarray(picture)[::-1, ::-1]
    assert np.array_equal(load_image(buffer.getvalue(), spec()), upside_down)
    assert np.array_equal(load_image(buffer.getvalue(), spec(exif_transpose=False)), np.asarray(picture))
