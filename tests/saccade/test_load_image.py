"""Decoding: every kind of sample has a defined result, and no file can do more harm than an `ImageError`."""

import errno
import io
import logging
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from saccade.errors import ImageError
from saccade.pixels import FORMATS, MAX_PIXELS, decoded, load_rgb
from saccade.preprocessing import PreprocessSpec, load_image

SPEC = PreprocessSpec(size=224, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RED, GREEN, WHITE, BLACK = [255, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 0]
Image.init()
HAS_AVIF = "AVIF" in Image.SAVE
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


def encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, depth: int, colour_type: int, row: bytes, **chunks: bytes) -> bytes:
    """A PNG of one row, with the given chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_header(tags: dict[int, int]) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def pixels(data: bytes) -> list[list[int]]:
    picture = load_rgb(data)
    assert picture.mode == "RGB"
    values: list[list[int]] = np.asarray(picture).reshape(-1, 3).tolist()
    return values


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def scene(width: int = 24, height: int = 16) -> Image.Image:
    """A smooth picture without any symmetry: it survives lossy coding and shows every turn and flip."""
    across, down = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 120, height))
    return Image.fromarray(np.stack([across, down, across * down / 120], axis=-1).astype(np.uint8))


def refused(source: Path | bytes, **options: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_rgb(source, **options)
    return caught.value


# Every kind of sample

EXACT = {
    "1 bit": (png(4, 1, 0, b"\x50"), grey(0, 255, 0, 255)),
    "2 bit grey": (png(4, 2, 0, b"\x1b"), grey(0, 85, 170, 255)),
    "4 bit grey": (png(2, 4, 0, b"\x2f"), grey(34, 255)),
    "8 bit grey": (png(3, 8, 0, bytes([0, 100, 255])), grey(0, 100, 255)),
    "16 bit grey keeps the high byte": (
        png(4, 16, 0, shorts(0x00FF, 0x1234, 0x8000, 0xFFFF)),
        grey(0, 0x12, 0x80, 0xFF),
    ),
    "16 bit colour keeps the high byte": (png(1, 16, 2, shorts(0x1234, 0x80FF, 0xFFFF)), [[0x12, 0x80, 0xFF]]),
    "palette": (png(2, 8, 3, b"\1\0", PLTE=bytes(RED + GREEN)), [GREEN, RED]),
    "palette with one transparent entry": (png(2, 8, 3, b"\0\1", PLTE=bytes(RED + GREEN), tRNS=b"\0"), [WHITE, GREEN]),
    "palette with alphas": (
        png(2, 8, 3, b"\0\1", PLTE=bytes(RED + GREEN), tRNS=bytes([51, 255])),
        [[255, 204, 204], GREEN],
    ),
    "grey and alpha": (png(3, 8, 4, bytes([100, 51, 100, 0, 100, 255])), grey(224, 255, 100)),
    "colour and alpha": (png(2, 8, 6, bytes([*RED, 51, *GREEN, 0])), [[255, 204, 204], WHITE]),
    "16 bit grey and alpha": (png(1, 16, 4, shorts(100 << 8, 51 << 8)), grey(224)),
    "16 bit colour and alpha": (png(1, 16, 6, shorts(0xFFFF, 0, 0, 51 << 8)), [[255, 204, 204]]),
    "transparent 1 bit": (png(2, 1, 0, b"\x40", tRNS=shorts(0)), grey(255, 255)),
    "transparent 2 bit grey": (png(4, 2, 0, b"\x1b", tRNS=shorts(1)), grey(0, 255, 170, 255)),
    "transparent 4 bit grey": (png(2, 4, 0, b"\x24", tRNS=shorts(4)), grey(34, 255)),
    "transparent 8 bit grey": (png(2, 8, 0, bytes([99, 100]), tRNS=shorts(100)), grey(99, 255)),
    "transparent 16 bit grey": (png(2, 16, 0, shorts(0x1234, 0x1235), tRNS=shorts(0x1234)), grey(255, 0x12)),
    "transparent colour": (png(2, 8, 2, bytes([1, 2, 3, 1, 2, 4]), tRNS=shorts(1, 2, 3)), [WHITE, [1, 2, 4]]),
    "transparent 16 bit colour": (
        png(2, 16, 2, shorts(0x1122, 0x3344, 0x5566, 0x1122, 0x3344, 0x7788), tRNS=shorts(0x1122, 0x3344, 0x5566)),
        [WHITE, [0x11, 0x33, 0x77]],
    ),
    "16 bit grey PGM": (b"P5 3 1 65535\n" + shorts(0x00FF, 0x1234, 0xFFFF), grey(0, 0x12, 0xFF)),
    "big-endian 16 bit TIFF": (
        encoded(Image.fromarray(np.array([[0x00FF, 0x1234, 0xFFFF]], dtype=">u2")), "TIFF"),
        grey(0, 0x12, 0xFF),
    ),
    "deflated 16 bit TIFF": (
        encoded(Image.fromarray(np.array([[0x00FF, 0x1234, 0xFFFF]], dtype=np.uint16)), "TIFF", compression="tiff_lzw"),
        grey(0, 0x12, 0xFF),
    ),
    "32 bit integers are clipped 16 bit ones": (
        encoded(Image.fromarray(np.array([[-5, 0, 0x1234, 65535, 70000, 2**31 - 1]], dtype=np.int32)), "TIFF"),
        grey(0, 0, 0x12, 255, 255, 255),
    ),
    "floats run from 0 to 1": (
        encoded(Image.fromarray(np.array([[-1, 0, 0.2, 1, 2, np.nan, np.inf, -np.inf]], dtype=np.float32)), "TIFF"),
        grey(0, 0, 51, 255, 255, 0, 255, 0),
    ),
    "PFM floats": (b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0.2, 1.0), grey(51, 255)),
    "CMYK": (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [RED]),
    "CMYK black": (encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF"), [BLACK]),
    "lossless WebP with alpha": (
        encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 51)), "WEBP", lossless=True),
        [[255, 204, 204]],
    ),
    "BMP": (encoded(Image.new("RGB", (1, 1), "red"), "BMP"), [RED]),
    "lossless JPEG 2000": (encoded(Image.new("RGB", (4, 4), "red"), "JPEG2000"), [RED] * 16),
}


@pytest.mark.parametrize("name", EXACT)
def test_every_kind_of_sample_has_its_defined_result(name: str) -> None:
    data, expected = EXACT[name]
    assert pixels(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("RGB", (16, 16), "red"), "JPEG", quality=95),
        encoded(Image.new("RGB", (16, 16), "red"), "JPEG", quality=95, progressive=True),
        encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95),  # stored inverted, as Adobe does
        encoded(Image.new("RGB", (16, 16), "red"), "TIFF", compression="jpeg", quality=95),  # stored as YCbCr
        encoded(Image.new("RGB", (16, 16), "red").convert("LAB"), "TIFF"),
        encoded(Image.new("RGB", (16, 16), "red"), "WEBP", quality=95),
        encoded(Image.new("RGB", (16, 16), "red"), "GIF"),
    ],
    ids=["JPEG", "progressive JPEG", "CMYK JPEG", "YCbCr TIFF", "Lab TIFF", "WebP", "GIF"],
)
def test_lossy_and_converted_red_is_red(data: bytes) -> None:
    assert np.abs(np.array(pixels(data)) - RED).max() <= 6


@pytest.mark.skipif(not HAS_AVIF, reason="Pillow is built without AVIF")
def test_avif_is_decoded() -> None:
    assert np.abs(np.array(pixels(encoded(Image.new("RGB", (16, 16), "red"), "AVIF"))) - RED).max() <= 4


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_several_pictures_in_a_file_give_the_first(file_format: str) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    data = encoded(first, file_format, save_all=True, append_images=[second])
    assert np.abs(np.array(pixels(data)) - RED).max() <= 4


def test_wide_samples_are_reduced_alike_in_every_band() -> None:
    """Large enough for several bands: a 16-bit ramp, every row of it different."""
    ramp = np.arange(3000 * 800, dtype=np.uint32).reshape(3000, 800).astype(np.uint16)
    picture = np.asarray(load_rgb(encoded(Image.fromarray(ramp), "PNG", compress_level=1)))
    assert np.array_equal(picture, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_a_path_and_its_bytes_give_the_same_picture(tmp_path: Path) -> None:
    for file_format in ("JPEG", "PNG", "TIFF", "WEBP"):
        path = tmp_path / "picture"
        path.write_bytes(encoded(scene(), file_format))
        assert np.array_equal(np.asarray(load_rgb(path)), np.asarray(load_rgb(path.read_bytes())))


# Orientation

TURNS = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),  # stored a quarter turn to the left, to be shown turned to the right
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_turned_upright(orientation: int, file_format: str) -> None:
    upright = np.asarray(scene(5, 3))
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    assert np.array_equal(np.asarray(load_rgb(encoded(stored, file_format, exif=exif, **lossless))), upright)


def test_orientation_can_be_ignored() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(scene(), "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_rgb(data, exif_transpose=False)), np.asarray(scene()))


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    assert np.array_equal(np.asarray(load_rgb(encoded(scene(), "PNG", exif=exif))), np.asarray(scene()))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_nobody_can_turn_an_upright_picture_again(file_format: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert 274 not in load_rgb(encoded(scene(), file_format, exif=exif)).getexif()


def test_the_orientation_in_xmp_counts() -> None:
    packet = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet)
    data = encoded(scene(), "PNG", pnginfo=text)
    assert np.array_equal(np.asarray(load_rgb(data)), np.asarray(scene())[::-1, ::-1])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"?"],
)
def test_broken_exif_leaves_the_picture_unturned(file_format: str, exif: bytes) -> None:
    size = load_rgb(encoded(scene(), file_format, exif=exif)).size
    assert size == scene().size


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate"])
@pytest.mark.parametrize("tag", [34665, 34853, 700], ids=["Exif", "GPS", "XMP"])
@pytest.mark.parametrize("kind", range(14))
def test_broken_exif_inside_a_tiff_does_not_lose_it(tag: int, kind: int, compression: str) -> None:
    """Pillow follows these tags while it loads the pixels; each is given every type, most of them wrong."""
    value: int | bytes = b"xmp packet" if tag == 700 else 0xFFFFFFF0
    data = bytearray(encoded(scene(), "TIFF", compression=compression, tiffinfo={274: 6, tag: value}))
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    (entry,) = (
        at
        for at in range(directory + 2, directory + 2 + 12 * entries, 12)
        if data[at : at + 2] == struct.pack("<H", tag)
    )
    struct.pack_into("<H", data, entry + 2, kind)
    assert load_rgb(bytes(data)).size == scene().size[::-1]


@pytest.mark.skipif(not HAS_AVIF, reason="Pillow is built without AVIF")
def test_broken_exif_inside_an_avif_does_not_lose_it() -> None:
    exif = Image.Exif()
    exif[271] = "somebody"
    data = encoded(scene(), "AVIF", exif=exif)
    block = exif.tobytes()[6:]
    assert data.count(block) == 1
    assert load_rgb(data.replace(block, b"?" * len(block))).size == scene().size


@settings(deadline=None, max_examples=150)
@given(
    file_format=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_no_damage_to_exif_loses_a_picture(file_format: str, edits: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif[274], exif[271], exif[282] = 6, "somebody", 72.0
    block = bytearray(exif.tobytes())
    for position, value in edits:
        block[6 + position % (len(block) - 6)] = value
    assert load_rgb(encoded(scene(), file_format, exif=bytes(block))).size in (scene().size, scene().size[::-1])


def test_nine_photographs_in_nine_orientations_are_the_same_picture(shared: Path) -> None:
    """Landscape_0 to 8 were encoded one by one, hence the tolerance; unturned, they differ by dozens of grey levels."""
    folder = shared / "data/nasty_images/exif-orientation"
    pictures = [load_image(folder / f"Landscape_{orientation}.jpg", SPEC).astype(int) for orientation in range(9)]
    assert [np.abs(picture - pictures[1]).mean() < 2 for picture in pictures] == [True] * 9


# Refusals


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def noise(file_format: str, **options: Any) -> bytes:
    values = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), file_format, **options)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"\0", "not_an_image"),
        (b"a letter, not a picture", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "not_an_image"),  # WMF
        (b"8BPS\0\1" + bytes(60), "not_an_image"),  # PSD
        (truncated(noise("JPEG")), "truncated"),
        (truncated(noise("PNG")), "truncated"),
        (truncated(noise("BMP")), "truncated"),
        (noise("PNG")[:20], "truncated"),
        (noise("JPEG")[:3], "corrupt"),
        (noise("PNG").replace(b"IHDR", b"IHDX"), "corrupt"),
        (noise("GIF").replace(b"GIF89a", b"GIF89b").replace(b"GIF87a", b"GIF87b"), "not_an_image"),
        (png(1, 5, 0, b"\0"), "corrupt"),
        (b"P5 8 8 255\n" + bytes(9), "truncated"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_its_kind(data: bytes, kind: str) -> None:
    error = refused(data)
    assert error.kind == kind
    assert str(error).startswith(f"image of {len(data)} bytes: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path / "nothing.jpg")
    assert error.kind == "missing"
    assert str(tmp_path / "nothing.jpg") in str(error)


def test_names_that_cannot_exist(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert refused(file / "inside").kind == "missing"
    assert refused(tmp_path / "nul\0l").kind == "missing"
    assert refused(tmp_path / ("x" * 5000)).kind == "unreadable"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert refused(tmp_path / "empty.jpg").kind == "empty"


def test_a_folder_and_a_device_are_no_files(tmp_path: Path) -> None:
    assert refused(tmp_path).kind == "not_a_file"
    assert refused(Path(os.devnull)).kind == "not_a_file"


@pytest.mark.timeout(10)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refused(tmp_path / "pipe.jpg").kind == "not_a_file"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, "permission"), (errno.EPERM, "permission"), (errno.EIO, "unreadable")]
)
def test_what_the_system_refuses_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str
) -> None:
    def denied(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.jpg").write_bytes(noise("JPEG"))
    monkeypatch.setattr(Path, "open", denied)
    error = refused(tmp_path / "a.jpg")
    assert error.kind == kind
    assert os.strerror(number) in str(error)


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        RecursionError("too deep"),
        struct.error("unpack requires 4 bytes"),
        SyntaxError("not this format"),
        KeyError(7),
        IndexError(),
        OverflowError("too large"),
        ZeroDivisionError(),
        zlib.error("bad data"),
        AssertionError(),
        Image.DecompressionBombError("bomb"),
        UserWarning("a warning made an error"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_whatever_a_decoder_raises_becomes_an_image_error(monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    fail_with(monkeypatch, raised)
    error = refused(noise("PNG"))
    expected = "too_large" if isinstance(raised, MemoryError | Image.DecompressionBombError) else "corrupt"
    assert error.kind == expected
    assert str(raised) in str(error)


def fail_with(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    def load(_: object) -> None:
        raise raised

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)


def test_an_interrupt_is_not_taken_for_a_bad_file(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        load_rgb(noise("PNG"))


def test_a_kept_error_keeps_no_picture_alive() -> None:
    error = refused(truncated(noise("PNG")))
    assert error.__context__ is None
    assert error.__cause__ is None


# Limits


def with_size(file_format: str, width: int, height: int) -> bytes:
    """A small file whose header claims another size."""
    if file_format == "TIFF":
        return tiff_header({256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 273: 8, 279: 10})
    data = bytearray(noise(file_format))
    if file_format == "PNG":
        header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    elif file_format == "JPEG":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif file_format == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif file_format == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif file_format == "JPEG2000":
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, height, width)
    return bytes(data)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "GIF", "TIFF"])
def test_a_picture_over_the_limit_is_refused_by_its_header(file_format: str) -> None:
    error = refused(with_size(file_format, 30000, 30001))
    assert error.kind == "too_large"
    assert "30000 x 30001" in str(error)
    assert str(MAX_PIXELS) in str(error)


@pytest.mark.parametrize(("file_format", "cost"), [("PNG", 1), ("JPEG", 1), ("JPEG2000", 2)])
def test_the_limit_is_exact(file_format: str, cost: int) -> None:
    data = noise(file_format)
    assert load_rgb(data, max_pixels=64 * 64 * cost).size == (64, 64)
    assert refused(data, max_pixels=64 * 64 * cost - 1).kind == "too_large"


def test_pillows_process_wide_limit_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_rgb(noise("PNG")).size == (64, 64)


def test_a_side_of_over_a_hundred_thousand_pixels_is_refused() -> None:
    """Each row costs memory beyond its pixels, and a resize makes strips as long as the picture."""
    error = refused(with_size("PNG", 1, 100_001))
    assert error.kind == "too_large"
    assert "1 x 100001" in str(error)


def test_a_tiff_tile_larger_than_the_limit_is_refused() -> None:
    """A decoder allocates whole tiles, however small the picture is."""
    tile = {322: 16384, 323: 16384, 324: 8, 325: 10}
    error = refused(tiff_header({256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1} | tile))
    assert error.kind == "too_large"
    assert "16384 x 16384" in str(error)


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    """A sparse file: some decoders would read all of it into memory first."""
    path = tmp_path / "huge.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
        file.truncate(10**10)
    error = refused(path)
    assert error.kind == "too_large"
    assert "10000000000 bytes" in str(error)


LOAD_AND_MEASURE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from saccade.errors import ImageError
from saccade.preprocessing import PreprocessSpec, load_image
spec = PreprocessSpec(size=224, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
try:
    with ThreadPoolExecutor(int(sys.argv[2])) as pool:
        print(*{pixels.shape for pixels in pool.map(load_image, *zip(*[(Path(sys.argv[1]), spec)] * int(sys.argv[2])))})
except ImageError as error:
    print(error.kind, error)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def load_elsewhere(path: Path, *, threads: int = 1) -> tuple[str, int]:
    """Load once a thread in a process of its own: what it printed, and its peak memory in bytes.

    Not from getrusage: there, a process starts with the peak of the one that started it.
    """
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    said, peak = done.stdout.splitlines()
    return said, int(peak)


@needs_proc
def test_a_bomb_of_900_megapixels_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """A real one: 110 kB that decode without error to 900 MB."""
    side = 30_000
    packer = zlib.compressobj(1)
    row = bytes(1 + side // 8)
    body = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    said, peak = load_elsewhere(path)
    assert said.startswith("too_large")
    assert "30000 x 30000" in said
    assert peak < 150_000_000


WRITE_AT_THE_LIMIT = """
import sys
import numpy as np
from PIL import Image
kind, path, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
ramp = np.add.outer(np.arange(side), np.arange(side))
grey = Image.fromarray((ramp >> 6).astype(np.uint8))
turned = Image.Exif()
turned[274] = 6
rgb = Image.merge("RGB", (grey, grey, grey))
rgba = Image.merge("RGBA", (grey, grey, grey, grey))
match kind:
    case "turned WebP with alpha":
        rgba.save(path, "WEBP", lossless=True, quality=0, method=0, exif=turned)
    case "progressive CMYK JPEG":
        Image.merge("CMYK", (grey, grey, grey, grey)).save(path, "JPEG", progressive=True, exif=turned)
    case "PNG with a transparent colour":
        rgb.save(path, "PNG", compress_level=1, transparency=(1, 2, 3), exif=turned)
    case "16-bit PNG":
        Image.fromarray(ramp.astype(np.uint16)).save(path, "PNG", compress_level=1)
    case "float TIFF":
        Image.fromarray((ramp / 16000).astype(np.float32)).save(path, "TIFF", compression="packbits")
    case "one-strip TIFF with alpha":
        rgba.save(path, "TIFF", compression="tiff_deflate", strip_size=10**9, tiffinfo={274: 6})
    case "JPEG 2000 with alpha":
        rgba.save(path, "JPEG2000")
"""


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("turned WebP with alpha", 1),
        ("progressive CMYK JPEG", 1),
        ("PNG with a transparent colour", 1),
        ("16-bit PNG", 1),
        ("float TIFF", 1),
        ("one-strip TIFF with alpha", 1),
        ("JPEG 2000 with alpha", 2),
    ],
)
def test_the_largest_picture_allowed_takes_less_than_a_gigabyte(tmp_path: Path, kind: str, share: int) -> None:
    side = int((MAX_PIXELS / share) ** 0.5)
    path = tmp_path / "large"
    command = [sys.executable, "-c", WRITE_AT_THE_LIMIT, kind, str(path), str(side)]
    subprocess.run(command, check=True, timeout=120)
    said, peak = load_elsewhere(path)
    assert said == "(224, 224, 3)"
    assert peak < 1_000_000_000


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["progressive CMYK JPEG", "turned WebP with alpha"])
def test_large_pictures_in_several_threads_take_the_memory_of_one(tmp_path: Path, kind: str) -> None:
    """Fifty megapixels in each of four threads; two at a time would take over 1.2 GB."""
    path = tmp_path / "large"
    command = [sys.executable, "-c", WRITE_AT_THE_LIMIT, kind, str(path), str(int(50e6**0.5))]
    subprocess.run(command, check=True, timeout=120)
    said, peak = load_elsewhere(path, threads=4)
    assert said == "(224, 224, 3)"
    assert peak < 1_200_000_000


def plain_tiff(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 122, 277: 1, 278: height, 279: width * height}
    return tiff_header(tags) + bytes(width * height)


def test_a_large_picture_waits_for_those_of_other_threads_and_a_small_one_does_not() -> None:
    """Of 56 million pixels 52 are lent, and more than 8 million are large."""
    small, medium, large = plain_tiff(4000, 2000), plain_tiff(4000, 2001), plain_tiff(8000, 6500)
    with ThreadPoolExecutor(2) as pool:
        with decoded(large):
            waiting = pool.submit(load_image, medium, SPEC)
            assert pool.submit(load_image, small, SPEC).result(timeout=30).shape == (224, 224, 3)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result(timeout=30).shape == (224, 224, 3)


TILE_OF_52_MEGAPIXELS = tiff_header(
    {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 8000, 323: 6500, 324: 8, 325: 10}
)


@pytest.mark.parametrize("data", [with_size("JPEG2000", 5000, 5000), TILE_OF_52_MEGAPIXELS], ids=["JPEG2000", "TIFF"])
def test_what_takes_more_memory_than_its_pixels_counts_for_more(data: bytes) -> None:
    """Damaged files, whose headers say what they would take: more than the 48 million pixels that are left."""
    with ThreadPoolExecutor(1) as pool:
        with decoded(plain_tiff(4000, 2001)):
            waiting = pool.submit(refused, data)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result(timeout=30).kind in ("corrupt", "truncated")


def test_a_large_picture_that_fails_makes_room_for_the_next() -> None:
    large = plain_tiff(8000, 6000)
    refused(large[:1000])
    with pytest.raises(ZeroDivisionError), decoded(large):
        raise ZeroDivisionError
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(load_rgb, large).result(timeout=30).size == (8000, 6000)


def test_a_block_closes_its_picture() -> None:
    with decoded(noise("PNG")) as picture:
        assert picture.getpixel((0, 0)) == load_rgb(noise("PNG")).getpixel((0, 0))
    with pytest.raises(ValueError, match="closed"):
        picture.getpixel((0, 0))


# Quiet, and alone

UNSOUND_ANIMATION = png(1, 8, 0, b"\0", acTL=bytes(8))
TOO_MANY_SAMPLES = tiff_header({256: 8, 257: 8, 262: 2, 277: 1000})


def test_a_file_that_makes_pillow_warn_is_loaded_without_a_warning() -> None:
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(UNSOUND_ANIMATION)).close()
    with warnings.catch_warnings(record=True, action="always") as seen:
        load_rgb(UNSOUND_ANIMATION)
    assert seen == []
    assert pixels(UNSOUND_ANIMATION) == [BLACK]  # here warnings are errors


def test_warnings_outside_a_load_are_as_before() -> None:
    load_rgb(UNSOUND_ANIMATION)
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", UserWarning, stacklevel=1)
    with pytest.raises(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(UNSOUND_ANIMATION))


def test_threads_load_in_silence_while_another_still_sees_its_warnings() -> None:
    stop = threading.Event()

    def load_on() -> int:
        count = 0
        while not stop.is_set():
            assert pixels(UNSOUND_ANIMATION) == [BLACK]
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load_on) for _ in range(4)]
        try:
            for _ in range(2000):
                with pytest.raises(UserWarning):
                    warnings.warn("ours", UserWarning, stacklevel=1)
        finally:
            stop.set()
        assert all(load.result() > 0 for load in loads)


def test_threads_get_the_pictures_that_one_thread_gets() -> None:
    sources = [noise(file_format) for file_format in ("JPEG", "PNG", "TIFF", "WEBP", "GIF")] * 8
    alone = [load_image(source, SPEC) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda source: load_image(source, SPEC), sources))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_nothing_is_logged_or_written_to_stderr(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    damaged = bytearray(noise("TIFF", compression="tiff_deflate"))
    damaged[40:60] = bytes(20)
    for data in (TOO_MANY_SAMPLES, bytes(damaged), UNSOUND_ANIMATION, truncated(noise("JPEG"))):
        try:
            load_rgb(data)
        except ImageError:
            continue
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_pillows_settings_stay_as_they_are() -> None:
    def state() -> tuple[object, ...]:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, Image.WARN_POSSIBLE_FORMATS

    before = state()
    load_rgb(noise("JPEG"))
    refused(truncated(noise("JPEG")))
    assert state() == before


def test_no_format_is_decoded_by_another_program() -> None:
    assert not {"EPS", "WMF", "PSD", "PDF"} & set(FORMATS)
