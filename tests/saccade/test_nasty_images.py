"""Files that were made to do harm, and thousands of damaged ones: each gives pixels or a failure with a name."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL import __version__ as pillow_version

from saccade import pixels

PAGE = Path(__file__).parent.parent.parent / "docs/pixels.md"
KINDS = {
    "missing", "permission", "not_a_file", "unreadable", "too_large",
    "empty", "not_an_image", "unsupported", "truncated", "corrupt",
}  # fmt: skip

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")

LOAD_ALL = """
import json, sys, time
from pathlib import Path
import numpy as np
from saccade.errors import ImageError
from saccade.preprocessing import PreprocessSpec, load_image
spec = PreprocessSpec(size=224, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
for line in sys.stdin:
    started = time.monotonic()
    try:
        pixels = load_image(Path(line.rstrip("\\n")), spec)
        outcome = "ok" if pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8 else "wrong pixels"
    except ImageError as error:
        outcome = error.kind
    print(json.dumps([outcome, time.monotonic() - started]), flush=True)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@dataclass(frozen=True)
class Loads:
    """Outcomes of files that one process loaded one after the other: "ok", or the kind of failure."""

    outcomes: tuple[str, ...]
    slowest_s: float
    peak_bytes: int


def load_all(paths: Sequence[Path]) -> Loads:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOAD_ALL],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, ""), f"ended at {paths[len(lines) :][:1]}"
    outcomes, seconds = zip(*map(json.loads, lines[:-1]), strict=True)
    return Loads(outcomes, max(seconds), int(lines[-1]) * 1024)


def check_harmless(loads: Loads, paths: Sequence[Path]) -> None:
    assert len(loads.outcomes) == len(paths)
    assert set(loads.outcomes) <= KINDS | {"ok"}
    assert loads.slowest_s < 30
    assert loads.peak_bytes < 1_500_000_000


# A thousand hostile files


@pytest.fixture(scope="module")
def manifest(shared: Path) -> list[dict[str, Any]]:
    """What Pillow 13 makes of each file."""
    files: list[dict[str, Any]] = json.loads((shared / "data/nasty_images/manifest.json").read_text(encoding="utf-8"))
    return files


@pytest.fixture(scope="module")
def hostile_paths(shared: Path, manifest: list[dict[str, Any]]) -> list[Path]:
    return [shared / "data/nasty_images" / file["file"] for file in manifest]


@pytest.fixture(scope="module")
def hostile_loads(hostile_paths: list[Path]) -> Loads:
    return load_all(hostile_paths)


def test_a_thousand_hostile_files_do_no_harm(hostile_paths: list[Path], hostile_loads: Loads) -> None:
    assert len(hostile_paths) == 1038
    check_harmless(hostile_loads, hostile_paths)


def documented_differences() -> dict[str, int]:
    """From the page, where each has its reason: files of a format that only Pillow decodes, by format."""
    _, section = PAGE.read_text(encoding="utf-8").split("## Hostile files")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| \S.* \|$", section, re.MULTILINE)
    return {name: int(count) for name, count in rows}


@pytest.mark.skipif(not pillow_version.startswith("13."), reason="the manifest tells what Pillow 13 decodes")
def test_every_difference_from_the_manifest_is_explained(manifest: list[dict[str, Any]], hostile_loads: Loads) -> None:
    lost: Counter[str] = Counter()
    for file, outcome in zip(manifest, hostile_loads.outcomes, strict=True):
        if (file["status"] == "ok") != (outcome == "ok"):
            assert outcome == "not_an_image", file["file"]
            lost[file["format"]] += 1
    assert lost == documented_differences()


def test_bombs_are_refused_by_their_size(manifest: list[dict[str, Any]], hostile_loads: Loads) -> None:
    """But for an icon, whose format is left out."""
    bombs = {
        (file["format"], outcome)
        for file, outcome in zip(manifest, hostile_loads.outcomes, strict=True)
        if file["status"] == "DecompressionBombError"
    }
    assert {outcome for name, outcome in bombs if name != "ICNS"} == {"too_large"}


def test_every_picture_has_the_size_that_the_manifest_says(
    manifest: list[dict[str, Any]], hostile_paths: list[Path], hostile_loads: Loads
) -> None:
    for file, path, outcome in zip(manifest, hostile_paths, hostile_loads.outcomes, strict=True):
        if outcome == "ok":
            width, height = file["size"]
            size = (height, width) if (file["orientation"] or 1) in (5, 6, 7, 8) else (width, height)
            assert pixels.load_rgb(path).size == size, path


# Ten thousand damaged ones


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    """Valid small files: of every format, and of every way to store samples that has code of its own."""
    picture, photo = noise(24, 16), noise(8, 6).resize((64, 48), Image.Resampling.BILINEAR)
    turned = Image.Exif()
    turned[274], turned[271] = 6, "somebody"
    wide = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 170)
    animation = {"save_all": True, "append_images": [picture.rotate(90)]}
    Image.init()
    names = [name for name in pixels.FORMATS if name in Image.SAVE]
    assert set(pixels.FORMATS) - set(names) <= {"AVIF"}  # before Pillow 11.3
    return [
        *(encoded(picture, name) for name in names),
        encoded(photo, "JPEG", exif=turned),
        encoded(photo, "JPEG", progressive=True, subsampling=0),
        encoded(photo.convert("L"), "JPEG", optimize=True, restart_marker_blocks=3),
        encoded(photo.convert("CMYK"), "JPEG"),
        encoded(photo, "MPO", save_all=True, append_images=[photo.rotate(90)]),
        encoded(picture.convert("P"), "PNG", transparency=bytes(range(256)), exif=turned),
        encoded(wide, "PNG"),
        encoded(picture, "PNG", **animation),
        encoded(picture.convert("RGBA"), "WEBP", lossless=True, exif=turned),
        encoded(picture, "WEBP", **animation),
        encoded(picture, "GIF", interlace=True, **animation),
        encoded(picture.convert("P"), "BMP"),
        encoded(picture, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
        encoded(picture.convert("YCbCr"), "TIFF", compression="jpeg"),
        encoded(picture.convert("1"), "TIFF", compression="group4"),
        encoded(wide, "TIFF", compression="tiff_deflate", tiffinfo={317: 2}),
        encoded(picture, "JPEG2000", irreversible=True, num_resolutions=2),
        encoded(picture.convert("L"), "PPM"),
    ]


def mutated(data: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    """The file after an accident or two, half of them in its first 200 bytes."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(min(len(result), 200) if rng.random() < 0.5 else len(result) + 1))
        size = int(rng.geometric(0.02))
        match rng.integers(5):
            case 0:  # flipped bits
                for position in rng.integers(at, at + size, rng.integers(1, 9)):
                    result[position % len(result)] ^= 1 << rng.integers(8)
            case 1:  # an extreme value
                value, width = rng.choice([0, 1, 127, 128, 255]), rng.choice([1, 2, 4])
                result[at : at + width] = bytes([value] * width)
            case 2:  # the rest lost
                del result[max(at, 1) :]
            case 3:  # a part lost
                del result[max(at, 1) : max(at, 1) + size]
            case 4:  # a part of another file, put in between or in the place of what was there
                part = donor[rng.integers(len(donor)) :][:size]
                result[at : at + int(rng.integers(2)) * len(part)] = part
    return bytes(result) if rng.random() < 0.5 else with_valid_sums(bytes(result))


def with_valid_sums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums whatever is in them, as an attacker would write it; else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    result, at = bytearray(data), 8
    while at + 12 <= len(result):
        end = at + 8 + int.from_bytes(result[at : at + 4])
        if end + 4 > len(result):
            break
        result[end : end + 4] = zlib.crc32(result[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(result)


@pytest.mark.slow
def test_ten_thousand_damaged_files_do_no_harm(tmp_path: Path) -> None:
    valid, paths = seeds(), []
    for number in range(10_000):
        rng = np.random.default_rng([8, number])
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(mutated(valid[number % len(valid)], valid[rng.integers(len(valid))], rng))
    loads = load_all(paths)
    check_harmless(loads, paths)
    assert 0.2 < loads.outcomes.count("ok") / len(paths) < 0.9
    assert {"too_large", "not_an_image", "truncated", "corrupt"} <= set(loads.outcomes)
