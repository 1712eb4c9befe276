"""Image files to RGB pictures: `load_rgb` returns every pixel, upright, or an `ImageError` that says why not.

`decoded` is the same as a block, and keeps the large pictures of several threads from adding up.

A file is hostile until it is decoded. Its header is read first, and a picture over the pixel limit is refused before
any decode. Nothing a file contains makes this module raise anything but `ImageError`, warn or write to stderr, and no
setting of Pillow that other code in the process relies on is changed.

Kinds of `ImageError`, stable, for programs to count and branch on:

    missing        no such file                      empty          no bytes
    permission     may not be read                   not_an_image   none of FORMATS begins like this
    not_a_file     a folder, pipe, socket, device    unsupported    a variant this Pillow does not decode
    unreadable     the disk or network failed        truncated      data end too early
    too_large      over a limit, or out of memory    corrupt        any other damage

`unsupported`, `truncated` and `corrupt` are told apart by Pillow's own words, so for rare files they vary with its
version; whether a file is refused does not.
"""

import ctypes
import errno
import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, _imaging

from saccade.errors import ImageError
from saccade.memory import Budget

MAX_PIXELS = 56_000_000
"""Default limit on width x height. One load of the most expensive kind of file of this size peaks below 1 GB."""
MAX_BYTES = 4 * MAX_PIXELS + (1 << 23)
"""Default limit on the size of a file."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""What is decoded; MPO counts as JPEG. Left out is whatever starts an external program (EPS, WMF), has no signature, so
that any file might be one (TGA), hides pictures of other sizes than the header says (ICO, ICNS), is decoded by a Python
loop at a minute a picture (QOI), or holds no photographs (textures, brushes, icons)."""

_PIXEL_COST = {"JPEG2000": 2, "AVIF": 2}  # 32 bits a sample; 16 bits a sample and a second copy for film grain
_MAX_BYTES_PER_PIXEL = 4
_MAX_METADATA_BYTES = 1 << 23
_MAX_SIDE = 100_000  # Pillow adds 8 bytes a row, and `resize` makes strips as long as the picture
_BAND_PIXELS = 1 << 20

LARGE_PIXELS = 8_000_000
"""Pictures of more pixels share a budget: threads decode so many at once as are MAX_PIXELS together."""
_large_pixels = Budget(MAX_PIXELS)

_KIND_OF_ERRNO = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}
_UNSUPPORTED = re.compile(r"unsupported|not supported|not installed|unknown .*(mode|format|compression)", re.IGNORECASE)
_TRUNCATED = re.compile(r"truncat|not enough|unexpected end|end of (file|data)|buffer is not large", re.IGNORECASE)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 274


def load_rgb(source: Path | bytes, *, exif_transpose: bool = True, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first picture of a file at its native size: mode RGB, 8 bits, turned upright.

    source : path of a regular file, or the file's bytes
    exif_transpose : obey the orientation in EXIF or XMP; damaged EXIF counts as upright. A TIFF's orientation is part
        of the format and always obeyed
    max_pixels : refuse a larger width x height (JPEG 2000 and AVIF: half of it), and a file of more than 4 bytes per
        pixel of this limit plus 8 MiB. A side over 100,000 is always refused
    Raises ImageError; safe in many threads at once.

    What has no 8-bit RGB form of its own gets a fixed one, never one that depends on the rest of the picture:

    - transparency of any sort is composited on white
    - 16-bit samples keep their high byte; 32-bit integers count as 16-bit samples in a wider box, which is what a PGM
      gives, clipped to 0..65535
    - floats run from 0 (black) to 1 (white), clipped; NaN is black
    - animations and files of several pictures give the first one
    - CMYK, YCbCr and Lab are converted by Pillow; colour profiles are ignored
    """
    with ExitStack() as lent:
        return _decode(source, None, lent, exif_transpose, max_pixels)


@contextmanager
def decoded(
    source: Path | bytes, *, name: str | None = None, exif_transpose: bool = True, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Lend the picture that `load_rgb` returns for the length of a block; then it is closed.

    name : what errors call it; None is its path

    The block waits until all large pictures of other threads and this one are MAX_PIXELS together, or there is no
    other, so that never more memory is taken than for the largest picture allowed. Pictures of up to LARGE_PIXELS do
    not count and do not wait. Inside a block, no second one may be entered.
    """
    with ExitStack() as lent, closing(_decode(source, name, lent, exif_transpose, max_pixels)) as rgb:
        yield rgb


def _decode(
    source: Path | bytes, name: str | None, lent: ExitStack, exif_transpose: bool, max_pixels: int
) -> Image.Image:
    name = name or (str(source) if isinstance(source, Path) else f"image of {len(source)} bytes")
    try:
        with _silence(), _opened(source) as file:
            return _picture(file, lent, exif_transpose, max_pixels)
    except ImageError as error:
        failure = ImageError(f"{name}: {error}", kind=error.kind)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a hostile file makes them raise
        failure = ImageError(f"{name}: {_reason(error)}", kind=_kind(error))
    # Raised out here so that a kept error does not keep the frames, and with them the picture, alive.
    raise failure


@contextmanager
def _opened(source: Path | bytes) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if "\0" in str(source):
        raise ImageError("no file has a name with a null character", kind="missing")
    if not stat.S_ISREG(source.stat().st_mode):
        raise ImageError("is a folder, pipe, socket or device; expected a file", kind="not_a_file")
    with source.open("rb") as file:
        yield file


def _picture(file: IO[bytes], lent: ExitStack, exif_transpose: bool, max_pixels: int) -> Image.Image:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ImageError("the file is empty", kind="empty")
    limit = _MAX_BYTES_PER_PIXEL * max_pixels + _MAX_METADATA_BYTES
    if size > limit:
        raise ImageError(f"{size} bytes, the limit is {limit}; raise max_pixels or convert the file", kind="too_large")
    image = _identified(file)
    if (pixels := _checked_pixels(image, max_pixels)) > LARGE_PIXELS:
        lent.enter_context(_large_pixels.lend(pixels))
    _scale_transparent_colour(image, file)
    if image.format == "TIFF":
        _drop_all_exif_but_orientation(image)
    image.load()
    method = _upright_transpose(image) if exif_transpose else None
    rgb = _rgb(image)
    del image  # with its decoder, before there is one more copy
    if method is not None:
        rgb = rgb.transpose(method)
    rgb.info.clear()  # or whoever gets the picture could obey its orientation again
    return rgb


def _identified(file: IO[bytes]) -> ImageFile.ImageFile:
    """Read the header, decode nothing.

    Not by `Image.open`, which compares with the process-wide `Image.MAX_IMAGE_PIXELS` and does not say what it refuses.
    """
    Image.preinit()
    Image.init()
    file.seek(0)
    prefix = file.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:  # AVIF before Pillow 11.3
            continue
        factory, accept = Image.OPEN[name]
        accepted = accept is not None and accept(prefix)
        if isinstance(accepted, str):
            raise ImageError(f"this Pillow was built without {name}", kind="unsupported")
        if accepted:
            file.seek(0)
            return factory(file, "") if name != "AVIF" else _avif(factory, file)
    raise ImageError(f"not an image, or not one of {', '.join(FORMATS)}", kind="not_an_image")


def _avif(factory: Callable[[IO[bytes], str], ImageFile.ImageFile], file: IO[bytes]) -> ImageFile.ImageFile:
    """Read an AVIF header; where it is refused, once more with the EXIF item renamed: damaged EXIF loses no picture."""
    try:
        return factory(file, "")
    except Exception:
        file.seek(0)
        renamed, count = re.subn(rb"(infe.{8})Exif", rb"\1skip", file.read(), flags=re.DOTALL)
        if not count:
            raise
        return factory(io.BytesIO(renamed), "")


def _checked_pixels(image: ImageFile.ImageFile, max_pixels: int) -> int:
    """Pixels that decoding needs memory for: of the picture, or of a TIFF's tile, which may be larger than it.

    Those of formats that take twice the memory count twice. Raises ImageError where they are too many.
    """
    sizes = [image.size]
    tags: Any = getattr(image, "tag_v2", {})
    if 322 in tags and 323 in tags:  # TileWidth, TileLength
        sizes.append((int(tags[322]), int(tags[323])))
    cost = _PIXEL_COST.get(image.format or "", 1)
    limit = max_pixels // cost
    for width, height in sizes:
        if max(width, height) > _MAX_SIDE:
            raise ImageError(f"{width} x {height} pixels, the longest side allowed is {_MAX_SIDE}", kind="too_large")
        if width * height > limit:
            raise ImageError(
                f"{width} x {height} pixels, the limit for {image.format} is {limit} pixels; "
                "raise max_pixels or shrink the picture",
                kind="too_large",
            )
    return cost * max(width * height for width, height in sizes)


def _scale_transparent_colour(image: ImageFile.ImageFile, file: IO[bytes]) -> None:
    """Bring a PNG's transparent colour, stored at the file's bit depth, to the 8 bits that Pillow compares it with."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None:
        return
    position = file.tell()
    file.seek(24)
    depth = file.read(1)[0]
    file.seek(position)
    if image.mode == "L" and depth < 8:
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _drop_all_exif_but_orientation(image: ImageFile.ImageFile) -> None:
    """Keep damaged EXIF from losing a TIFF: Pillow reads all of it inside `load` and lets any error there escape."""
    with suppress(Exception):
        image.getexif()
    exif = image.getexif()  # what the first call, which alone can fail, has understood
    for tag in list(exif):
        if tag != _EXIF_ORIENTATION or _upright_transpose(image) is None:
            del exif[tag]
    image.info.pop("xmp", None)  # its orientation, if any, is in `exif` by now


def _upright_transpose(image: Image.Image) -> Image.Transpose | None:
    with suppress(Exception):
        return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return None


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB on white; the same object if it already is."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_from_wide(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode not in ("RGBA", "LA"):
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _grey_from_wide(image: Image.Image) -> Image.Image:
    """One 16- or 32-bit channel to 8 bits, band by band: whole-picture arrays would double the peak memory."""
    grey = Image.new("L", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        eight = _eight_bits(band)
        if "transparency" in image.info:
            eight[band == image.info["transparency"]] = 255
        grey.paste(Image.fromarray(eight), (0, top))
    return grey


def _eight_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    if samples.dtype.kind == "f":
        samples = np.rint(np.clip(np.nan_to_num(samples, nan=0.0), 0.0, 1.0) * 255.0)
    else:
        samples = np.clip(samples, 0, 65535) >> 8
    return samples.astype(np.uint8)


class _Quiet(threading.local):
    on = False


_quiet = _Quiet()


class _InQuietThreads(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _quiet.on


class _AnyWarning(Warning, metaclass=_InQuietThreads):
    """Stands for every warning category in a thread that is decoding, and for none elsewhere."""


@contextmanager
def _silence() -> Iterator[None]:
    """Drop this thread's warnings and log records from Pillow.

    `warnings.catch_warnings` swaps process-wide state and races with other threads; the filter set here stays, and
    matches only in a thread that is inside this block.
    """
    if not warnings.filters or warnings.filters[0][2] is not _AnyWarning:
        warnings.simplefilter("ignore", _AnyWarning)
    _quiet.on = True
    try:
        yield
    finally:
        _quiet.on = False


def _not_quiet(_record: logging.LogRecord) -> bool:
    return not _quiet.on


logging.getLogger("PIL.TiffImagePlugin").addFilter(_not_quiet)
# libtiff prints to stderr, past Python. Pillow switches its warnings off in this way, once for the process, but leaves
# its errors on; they say nothing that the exception does not.
with suppress(OSError, AttributeError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _kind(error: Exception) -> str:
    text = str(error)
    if isinstance(error, MemoryError | Image.DecompressionBombError):
        return "too_large"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek to where a file says
        return _KIND_OF_ERRNO.get(error.errno or 0, "unreadable")
    if isinstance(error, NotImplementedError | ImportError) or _UNSUPPORTED.search(text):
        return "unsupported"
    return "truncated" if isinstance(error, EOFError) or _TRUNCATED.search(text) else "corrupt"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"cannot be decoded: {error}" if str(error) else f"cannot be decoded: {type(error).__name__}"
