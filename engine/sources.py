"""Which images a run captions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from saccade.errors import DataError

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
"""Files with other names in a folder are passed over; a file that is named itself is always tried."""


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """Images below folders, and files as they are, each once.

    Folders are walked in sorted order, files before subfolders; hidden files and folders are passed over; links to
    folders are followed, but never into a folder that the walk is already inside of.
    Raises DataError if a folder cannot be read, and at the end if there was no image at all.
    """
    seen: set[Path] = set()
    for path in paths:
        found = _walk(path, ()) if path.is_dir() else (path,)
        for image in found:
            if image not in seen:
                seen.add(image)
                yield image
    if not seen:
        raise DataError(f"no image found in {', '.join(map(str, paths))}: expected files named .jpg, .png and the like")


def _walk(folder: Path, inside: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): leave it out, or allow it to be read") from error
    identity = (status.st_dev, status.st_ino)
    if identity in inside:
        return
    folders = [folder / entry.name for entry in visible if _is_folder(entry)]
    for entry in visible:
        if Path(entry.name).suffix.lower() in SUFFIXES and not _is_folder(entry):
            yield folder / entry.name
    for subfolder in folders:
        yield from _walk(subfolder, (*inside, identity))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; where it is named like an image, it is recorded as unreadable
        return False
