"""One image of a run before it is read: what it is called, and where its bytes are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from saccade.errors import ConfigError, ImageError

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".jp2",
        ".j2k",
        ".avif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".mpo",
    ]
)
"""What has another name in a folder or an archive is passed over; a file that is named itself is always tried."""

Order = Literal["folder", "name"]
Content = Path | bytes | Image.Image | Callable[[], bytes] | ImageError


@dataclass(frozen=True, slots=True)
class Source:
    """One image of a run.

    name : what its record calls it, the same in every run: a path as given or found below a given folder,
        "shard.tar/member.jpg", "table.parquet#17", or a URL. Not a way to reach it, and not always unique
    content : a path whose file is read when its turn comes; the bytes; an RGB picture; a function that reads the bytes,
        safe in any thread, and raises ImageError; or the error that is the image's result
    """

    name: str
    content: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What is found in folders, archives and tables, and in which order.

    hidden : also files and folders whose names begin with a dot
    order : "folder" sorts folders of at most `engine.folders.LARGE` entries and takes larger ones as the disk gives
        them; "name" sorts them all, and holds a folder's names in memory meanwhile
    column : of Parquet tables; None finds it by its name
    """

    hidden: bool = False
    order: Order = "folder"
    column: str | None = None

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ConfigError(f"order must be one of {', '.join(get_args(Order))}, got {self.order!r}")


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - ten million times, and Path is slow


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, has a name that begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def unreadable(name: str, error: OSError | ValueError) -> ImageError:
    """The failure of an image, or of a place to find images in, that the system refuses to read."""
    if isinstance(error, ValueError):  # a null character
        return ImageError(f"{name!r} cannot be the name of a file ({error})", kind="missing")
    return ImageError(f"{name} cannot be read ({error.strerror or error})", kind=kind_of(error))


def kind_of(error: OSError) -> str:
    """The kind of failure that an error of the system means, in the words of `saccade.pixels`."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if isinstance(error, PermissionError):
        return "permission"
    return "not_a_file" if isinstance(error, IsADirectoryError) else "unreadable"
