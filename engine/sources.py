"""Which images a run captions: files, folders, patterns, lists, archives, tables and URLs, read as they are needed."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, NamedTuple, cast

from engine.archives import images_in_archive, is_archive
from engine.folders import images_below, is_pattern, matches
from engine.images import Content, ScanOptions, Source, is_image, unreadable
from engine.remote import content_at, file_name, images_at, is_url, opened, public_name
from engine.tables import count_rows, images_in_table, is_table
from saccade.errors import DataError, ImageError

_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
_BLOCK_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 16


class _Place(NamedTuple):
    """A path or URL to find images at.

    given : as an input, so that its errors are the run's; otherwise they are failed images
    by_name : taken for an image without a look if it is called like one: on a network disk a look takes a millisecond
    """

    text: str
    given: bool = False
    by_name: bool = False

    @property
    def name(self) -> str:
        return public_name(self.text) if is_url(self.text) else str(Path(self.text))


def find_images(inputs: Sequence[str], options: ScanOptions | None = None) -> Iterator[Source]:
    """Images at the inputs, one after another, found while they are asked for; a name may come more than once.

    inputs : read as the first that fits of: "-", a list from standard input; "@" and the path of a list; a path that
        exists; several inputs in braces, `{0..9}` or `{a,b}`; a URL; a pattern of `*`, `?`, `[...]` and `**`. A path is
        that of a folder, a tar archive, a Parquet table or an image. A list has one path or URL a line, or one after
        each null character
    Memory does not grow with the number of images.
    Raises DataError if an input is missing or cannot be opened, and at the end if there was no image at all;
    ConfigError if a package is missing.
    """
    options = options or ScanOptions()
    found = False
    for given in inputs:
        for place in _places(given, options):
            for source in _images_at(place, options):
                found = True
                yield source
    if not found:
        names = ", ".join(map(public_name, inputs))
        raise DataError(f"no image found in {names}: expected files named .jpg, .png and the like")


def count_images(inputs: Sequence[str], options: ScanOptions | None = None) -> int | None:
    """How many sources `find_images` gives, or None where an input cannot be read, or not twice, or not cheaply.

    Cheap are folders, files, patterns, lists that are files, tables and uncompressed archives, all of them local.
    """
    options = options or ScanOptions()
    total = 0
    try:
        for given in inputs:
            if given == "-" or (given.startswith("@") and not Path(given[1:]).is_file()):
                return None
            for place in _places(given, options):
                if (count := _count(place, options)) is None:
                    return None
                total += count
    except (DataError, ImageError, OSError):  # for find_images to report
        return None
    return total


def _count(place: _Place, options: ScanOptions) -> int | None:
    path = Path(place.text)
    if is_url(place.text) or (is_archive(place.text) and path.suffix.lower() != ".tar"):
        return None
    if is_table(place.text) and path.is_file():
        with path.open("rb") as file:
            return count_rows(file, place.name)
    return sum(1 for _ in _images_at(place, options))


def _places(given: str, options: ScanOptions) -> Iterator[_Place]:
    if given == "-" or (given.startswith("@") and _exists(given[1:])):
        yield from _listed(given)
    elif not _exists(given) and (braces := _BRACES.search(given)):
        for text in _alternatives(braces):
            yield from _places(given[: braces.start()] + text + given[braces.end() :], options)
    elif not _exists(given) and is_pattern(given) and not is_url(given):
        yield from _matched(given, options)
    else:
        yield _Place(given, given=True)


def _exists(path: str) -> bool:
    """Whether there is something at a path, readable or not."""
    try:
        return not is_url(path) and bool(os.stat(path))  # noqa: PTH116 - Path("") is the working directory
    except ValueError:  # a null character
        return False
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def _alternatives(braces: re.Match[str]) -> Iterator[str]:
    """What braces stand for, as in a shell: `{08..10}` for 08, 09 and 10, `{a,b}` for a and b."""
    first, last, words = braces.groups()
    if words is not None:
        yield from words.split(",")
        return
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        yield str(number).zfill(width)


def _matched(pattern: str, options: ScanOptions) -> Iterator[_Place]:
    found = False
    for entry in matches(pattern, options):
        found = True
        yield _Place(entry.path, by_name=not entry.is_folder)
    if not found:
        raise DataError(f"nothing matches {pattern}: expected a pattern of files or folders that exist")


def _listed(given: str) -> Iterator[_Place]:
    name = "standard input" if given == "-" else given.removeprefix("@")
    try:
        # Past the buffer, whose lock a thread that waits for input would hold when the process ends.
        standard_input = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        with nullcontext(standard_input) if given == "-" else Path(name).open("rb", buffering=0) as file:
            for line in _lines(cast("RawIOBase", file), name):
                yield _Place(os.fsdecode(line), by_name=True)
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}): expected a list of paths or URLs") from error


def _lines(file: RawIOBase, name: str) -> Iterator[bytes]:
    """Lines that are not empty, as they arrive; what is between null characters if the first block has one."""
    rest = separator = b""
    while block := file.read(_BLOCK_BYTES):
        rest += block
        if not separator:
            rest = rest.removeprefix(codecs.BOM_UTF8)
            separator = next((end for end in (b"\0", b"\n") if end in rest), b"")
        if separator:
            *lines, rest = rest.split(separator)
            yield from filter(None, lines if separator == b"\0" else (line.removesuffix(b"\r") for line in lines))
        if len(rest) > _MAX_LINE_BYTES:
            raise DataError(f"{name} has a line of over {_MAX_LINE_BYTES} bytes: expected a path or URL in each")
    if rest := rest if separator == b"\0" else rest.removesuffix(b"\r"):
        yield rest


def _images_at(place: _Place, options: ScanOptions) -> Iterator[Source]:
    try:
        if is_url(place.text):
            yield from _images_at_url(place, options)
        elif place.by_name and is_image(place.text):
            path = Path(place.text)
            yield Source(str(path), path)
        else:
            yield from _images_at_path(place, options)
    except ImageError as error:
        if place.given:
            raise DataError(f"{error}: leave it out, or repair it") from error
        yield Source(place.name, error)


def _images_at_path(place: _Place, options: ScanOptions) -> Iterator[Source]:
    path = Path(place.text)
    try:
        mode = os.stat(place.text).st_mode  # noqa: PTH116
    except (OSError, ValueError) as error:
        raise unreadable(place.name, error) from error
    if stat.S_ISDIR(mode):
        yield from images_below(place.text, options)
    elif stat.S_ISREG(mode) and (is_archive(place.text) or is_table(place.text)):
        with _open(path) as file:
            yield from _images_in(file, place, options)
    else:
        yield Source(place.name, path)


def _images_at_url(place: _Place, options: ScanOptions) -> Iterator[Source]:
    url, file_path = place.text, file_name(place.text)
    if is_archive(file_path) or is_table(file_path):
        with opened(url, seekable=is_table(file_path)) as file:
            yield from _images_in(file, place, options)
    elif place.by_name and is_image(file_path):
        yield Source(place.name, content_at(url))
    else:
        yield from images_at(url, hidden=options.hidden)


def _images_in(file: BufferedReader[Any], place: _Place, options: ScanOptions) -> Iterator[Source]:
    """Images in an archive or a table."""
    path = file_name(place.text)
    if is_archive(path):
        reopened = None if is_url(path) else Path(path)
        yield from images_in_archive(file, place.name, reopened, hidden=options.hidden)
    else:
        locate = partial(_content_beside, path)
        yield from images_in_table(file, place.name, options.column, locate)


def _content_beside(table: str, name: str) -> Content:
    """What a table means by a path or URL in it: a relative path is one from the table's folder."""
    if is_url(name):
        return content_at(name)
    if is_url(table):
        return content_at(f"{table.rpartition('/')[0]}/{name}")
    return Path(table).parent / name


def _open(path: Path) -> BufferedReader[Any]:
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(str(path), error) from error
