"""Which images a run captions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

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


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Images below folders, and files as they are, each once.

    Folders are walked in sorted order, files before subfolders; hidden files and folders are passed over; links to
    folders are followed, but never into a folder that the walk is already inside of.
    """
    seen: set[Path] = set()
    for path in paths:
        found = _walk(path, ()) if path.is_dir() else (path,)
        for image in found:
            if image not in seen:
                seen.add(image)
                yield image


def _walk(folder: Path, inside: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in inside:
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders = [entry for entry in visible if entry.is_dir()]
    for entry in visible:
        if not entry.is_dir() and Path(entry.name).suffix.lower() in SUFFIXES:
            yield folder / entry.name
    for entry in folders:
        yield from _walk(folder / entry.name, (*inside, identity))
