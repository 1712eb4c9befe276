"""What happens to an image before the encoder sees it: `PreprocessSpec` says it, `load_image` does it.

This is the one reference: training-time evaluation, every backend and every accuracy comparison read images through it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.errors import ConfigError
from saccade.pixels import MAX_PIXELS, decoded

PREPROCESS_VERSION = 1
"""Part of every fingerprint. Raise it when `load_image` returns other pixels for the same spec."""

Geometry = Literal["squash", "crop"]

_MAX_SIZE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """From an image file to the encoder's input; part of the bundle.

    size : side S of the square result, in pixels, at most 1024
    geometry : "squash" scales both sides to S; "crop" scales the central square, as if the short side were scaled to S
        and the centre cut out
    mean, std : of red, green, blue in 0..1; subtracted and divided by inside the encoder graph, so that the host ships
        bytes
    exif_transpose : turn the image upright as its EXIF orientation says
    """

    size: int
    geometry: Geometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exif_transpose: bool = True

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError("preprocessing spec: " + "; ".join(problems))
        for name in ("mean", "std"):  # so that 0 and 0.0, list and tuple have one fingerprint
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    def _problems(self) -> list[str]:
        found = []
        upright: object = self.exif_transpose
        if type(self.size) is not int or not 1 <= self.size <= _MAX_SIZE:
            found.append(f"size is {self.size!r}, expected an integer in 1..{_MAX_SIZE}")
        if self.geometry not in get_args(Geometry):
            found.append(f"geometry is {self.geometry!r}, expected one of {', '.join(get_args(Geometry))}")
        if not (_is_triple(self.mean) and all(0 <= value <= 1 for value in self.mean)):
            found.append(f"mean is {self.mean!r}, expected three numbers in 0..1")
        if not (_is_triple(self.std) and all(0 < value <= 255 for value in self.std)):
            found.append(f"std is {self.std!r}, expected three numbers above 0, at most 255")
        if not isinstance(upright, bool):
            found.append(f"exif_transpose is {upright!r}, expected true or false")
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; `from_json` is the inverse."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: object) -> Self:
        """Read what `as_json` wrote. Raises ConfigError if a key is unknown or missing, or a value is invalid."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"preprocessing spec: got {type(values).__name__}, expected an object")
        expected = {field.name for field in fields(cls)}
        problems = [f"unknown key {key!r}" for key in sorted(values.keys() - expected)]
        problems += [f"missing key {key!r}" for key in sorted(expected - values.keys())]
        if problems:
            raise ConfigError("preprocessing spec: " + "; ".join(problems))
        return cls(**values)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the pixels and their normalisation; equal means equal input."""
        content = {"version": PREPROCESS_VERSION} | self.as_json()
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_triple(value: object) -> bool:
    return isinstance(value, tuple | list) and [type(item) in (int, float) for item in value] == [True] * 3


def load_image(
    source: Path | bytes, spec: PreprocessSpec, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read one image as the encoder wants it: uint8 (S, S, 3), RGB, not normalised.

    source : path of a file, or the file's bytes
    name : what errors call it; None is its path
    max_pixels : refuse a larger width x height before decoding
    Raises ImageError with a `kind` from `saccade.pixels`; safe in many threads at once, which wait for each other's
    large pictures.

    Decoding is `decoded`, resizing is `resize`.
    """
    with decoded(source, name=name, exif_transpose=spec.exif_transpose, max_pixels=max_pixels) as rgb:
        return resize(rgb, spec)


def resize(rgb: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Resize an upright RGB picture to uint8 (S, S, 3) by Pillow's antialiased bilinear filter.

    The horizontal pass comes before the vertical one, as two calls: inside one call the order is Pillow's choice,
    changed in Pillow 13, and each pass rounds to 8 bits. "crop" scales the largest central square, offsets rounded
    down. That is "short side to S, then centre crop" without that rule's rounding of the long side; as there, the
    filter at the square's border sees the pixels outside it.
    """
    side = min(rgb.size)
    width, height = (side, side) if spec.geometry == "crop" else rgb.size
    left, top = (rgb.width - width) // 2, (rgb.height - height) // 2
    bilinear = Image.Resampling.BILINEAR
    strip = rgb.resize((spec.size, rgb.height), bilinear, box=(left, 0, left + width, rgb.height))
    return np.array(strip.resize((spec.size, spec.size), bilinear, box=(0, top, spec.size, top + height)))
