"""Images in tar archives, read where they are: nothing is unpacked, and a member's name is never a path."""

from __future__ import annotations

import importlib
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Self

from engine.images import Content, Source, is_hidden, is_image, kind_of, unreadable
from saccade.errors import ImageError
from saccade.pixels import MAX_BYTES

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_COMPRESSIONS = {
    rb"\x1f\x8b\x08": "gzip",
    rb"BZh[1-9]1AY&SY": "bz2",
    rb"\xfd7zXZ\0": "lzma",
    rb"\x28\xb5\x2f\xfd": "compression.zstd",  # Python 3.14
}
_LONG_HEADERS = b"xgXLK"
_MAX_LONG_HEADER = 1 << 20
_MAX_PADDING = 1 << 20


def is_archive(name: str) -> bool:
    """Whether a file is named like a tar archive."""
    return name.lower().endswith(_SUFFIXES)


def images_in_archive(file: BufferedReader[Any], name: str, path: Path | None, *, hidden: bool) -> Iterator[Source]:
    """Members named like images, in the archive's order, called "name/member".

    file : the archive, compressed or not; read from front to back, and closed by the caller
    path : where the same file can be opened again; members of an uncompressed archive are then read from there when
        their turn comes. Otherwise they come with their bytes
    A member that is no regular file or too large is a failed image. Where the archive is damaged, the last source has
    the archive's name and its error. Raises ImageError if not even the beginning can be read.
    """
    try:
        plain = _decompressed(file, name)
        reopened = path if plain is file else None
        archive = _opened(plain, in_place=reopened is not None)
    except Exception as error:
        raise _failure(f"{name} cannot be read", error) from error
    with archive:
        try:
            for header in _headers(archive):
                if is_image(header.name) and not header.isdir() and (hidden or not is_hidden(header.name)):
                    member = f"{name}/{header.name}"
                    yield Source(member, _content(archive, header, member, reopened))
            plain.read(_MAX_PADDING)  # the end mark's, up to where gzip finds its checksum
        except Exception as error:  # noqa: BLE001
            yield Source(name, _failure(f"{name} cannot be read to its end", error))


class _Header(tarfile.TarInfo):
    """A header whose damage is an error wherever it is: tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data: there is no end mark")
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf):  # the end mark
                raise
            raise tarfile.ReadError(str(error)) from None
        if header.type in _LONG_HEADERS and header.size > _MAX_LONG_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes, the limit is {_MAX_LONG_HEADER}")
        return header


def _opened(file: IO[bytes], *, in_place: bool) -> tarfile.TarFile:
    if in_place:
        return tarfile.open(fileobj=file, mode="r:", tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
    return tarfile.open(fileobj=file, mode="r|", tarinfo=_Header, encoding="utf-8", errors="surrogateescape")


def _headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    position = -1
    while (header := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined] # kept for random access; a million of them is 1 GB
        if header.size < 0 or header.offset <= position:
            raise tarfile.ReadError("a header that leads back")
        position = header.offset
        yield header


def _content(archive: tarfile.TarFile, header: tarfile.TarInfo, name: str, path: Path | None) -> Content:
    if not header.isreg():
        return ImageError(f"{name} is a link or device; expected a file", kind="not_a_file")
    if header.issparse():
        return ImageError(f"{name} is stored with holes; expected a plain file", kind="unsupported")
    if header.size > MAX_BYTES:
        return ImageError(f"{name} has {header.size} bytes, the limit is {MAX_BYTES}", kind="too_large")
    if path is not None:
        return partial(_read_slice, path, header.offset_data, header.size, name)
    member = archive.extractfile(header)
    return member.read() if member else b""


def _read_slice(path: Path, offset: int, size: int, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise unreadable(name, error) from error
    if len(content) < size:
        raise ImageError(f"{name} ends after {len(content)} of {size} bytes", kind="truncated")
    return content


def _decompressed(file: BufferedReader[Any], name: str) -> IO[bytes]:
    """The archive's plain bytes, whatever its name says; the same file if it is not compressed."""
    start = file.peek(10)
    for magic, module in _COMPRESSIONS.items():
        if re.match(magic, start):
            try:
                opened: IO[bytes] = importlib.import_module(module).open(file)
            except ImportError as error:
                raise ImageError(f"{name} cannot be read (this Python has no {module})", kind="unsupported") from error
            return opened
    return file


def _failure(message: str, error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        kind = kind_of(error)
    else:
        kind = "truncated" if isinstance(error, EOFError) or "unexpected end" in reason else "corrupt"
    return ImageError(f"{message} ({reason})", kind=kind)
