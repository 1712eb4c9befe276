"""What lies below a folder, found as it is asked for: memory does not grow with the number of files."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from engine.images import ScanOptions, Source, is_image, unreadable

LARGE = 10_000
"""A folder of more entries comes as the disk gives it: to sort it is to hold it in memory."""

_OPEN_FOLDERS = 64  # a large folder stays open while the walk is below it; deeper ones are read whole


class Entry(NamedTuple):
    """A file or a folder of a walk, or the error that a folder gave instead of its entries."""

    path: str
    is_folder: bool
    error: OSError | None = None


def images_below(top: str, options: ScanOptions) -> Iterator[Source]:
    """Files named like images below a folder; a folder that cannot be read is a failed image of its name.

    Raises ImageError if it is the top folder that cannot be read.
    """
    for path, is_folder, error in walk(top, options):
        if error is not None:
            failure = unreadable(str(Path(path)), error)
            if path == top:
                raise failure from error
            yield Source(str(Path(path)), failure)
        elif not is_folder and is_image(path):
            image = Path(path)
            yield Source(str(image), image)


def walk(top: str, options: ScanOptions) -> Iterator[Entry]:
    """A folder, then everything below it.

    In a folder of at most LARGE entries, files come before folders, both sorted by name; a larger one comes as the disk
    gives it, unless names are to be in order. Links to folders are followed, but never into a folder that the walk is
    already inside of.
    """
    inside = {(-1, -1): iter([Entry(top, is_folder=True)])}  # the walk's way down: folders by device and inode
    while inside:
        entry = next(inside[next(reversed(inside))], None)
        if entry is None:
            inside.popitem()
        elif not entry.is_folder:
            yield entry
        else:
            try:
                status = os.stat(entry.path)  # noqa: PTH116 - of many
            except OSError as error:
                yield Entry(entry.path, is_folder=False, error=error)
                continue
            if (identity := (status.st_dev, status.st_ino)) not in inside:
                yield entry
                whole = options.order == "name" or len(inside) > _OPEN_FOLDERS
                inside[identity] = _listing(entry.path, hidden=options.hidden, whole=whole)


def matches(pattern: str, options: ScanOptions) -> Iterator[Entry]:
    """Files and folders that a pattern of `*`, `?`, `[...]` and `**` matches, in the order of a walk.

    `**` is a folder and every folder below it. A star matches hidden names only if the options ask for them or the
    pattern's dot is written out. A folder that cannot be read stands for what would be matched in it; what is not
    known to be a file is said to be a folder.
    """
    yield from _matches(Entry("", is_folder=True), Path(pattern).parts, options)


def is_pattern(text: str) -> bool:
    """Whether a path, or a part of one, is a pattern."""
    return any(character in text for character in "*?[")


def _matches(reached: Entry, parts: tuple[str, ...], options: ScanOptions) -> Iterator[Entry]:
    folder = reached.path or "."
    if not parts or parts == ("**",):  # a folder that is matched is walked, to the same effect
        yield reached._replace(path=folder)
    elif parts[0] == "**":
        for entry in walk(folder, options):
            if entry.is_folder:
                yield from _matches(entry, parts[1:], options)
    elif not is_pattern(parts[0]):
        path = os.path.join(reached.path, parts[0])  # noqa: PTH118
        if os.path.lexists(path):
            yield from _matches(Entry(path, is_folder=True), parts[1:], options)
    elif os.path.isdir(folder):  # noqa: PTH112
        yield from _matches_of_pattern(folder, parts[0], parts[1:], options)


def _matches_of_pattern(folder: str, pattern: str, rest: tuple[str, ...], options: ScanOptions) -> Iterator[Entry]:
    match = re.compile(fnmatch.translate(pattern)).match
    hidden = options.hidden or pattern.startswith(".")
    for entry in _listing(folder, hidden=hidden, whole=options.order == "name"):
        if entry.error is not None:
            yield Entry(folder, is_folder=True)
        elif (entry.is_folder or not rest) and match(os.path.basename(entry.path)):  # noqa: PTH119
            yield from _matches(entry, rest, options)


def _listing(folder: str, *, hidden: bool, whole: bool) -> Iterator[Entry]:
    """Entries of one folder, or the error it gives; sorted if there are few of them or `whole` asks for it."""
    try:
        with os.scandir(folder) as scan:
            entries = (Entry(one.path, _is_folder(one)) for one in scan if hidden or not one.name.startswith("."))
            first = list(islice(entries, None if whole else LARGE + 1))
            if len(first) > LARGE and not whole:
                yield from chain(first, entries)
                return
    except OSError as error:
        yield Entry(folder, is_folder=False, error=error)
        return
    yield from sorted(first, key=lambda entry: (entry.is_folder, entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; where it is named like an image, it is recorded as unreadable
        return False
