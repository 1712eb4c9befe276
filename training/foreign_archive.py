"""Zip archives as `torch.save` and `numpy.savez` write them: members lie uncompressed, and are views of the file.

Nothing is allocated by what the archive says of itself: a size is believed after it was compared with the file's.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
from pathlib import Path

from saccade.errors import CheckpointError

SIGNATURE = b"PK\x03\x04"
_HEADER = struct.Struct("<26xHH")
"""Of a member: ends in the lengths of its name and of its extra field, which follow."""


def mapped(path: Path) -> mmap.mmap:
    """A file as memory that nobody can write to. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def members(path: Path, content: mmap.mmap) -> dict[str, memoryview]:
    """What is in an archive, by name, as views of its mapped content.

    Raises CheckpointError where the archive is cut short, damaged, compressed or encrypted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path}: is cut short or damaged ({error}): copy or download it again") from error
    view = memoryview(content)
    return {entry.filename: _member(path, entry, view) for entry in entries}


def _member(path: Path, entry: zipfile.ZipInfo, content: memoryview) -> memoryview:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
        raise CheckpointError(
            f"{path}: {entry.filename} is compressed or encrypted, which torch.save and numpy.savez never do: "
            "save the weights again with them"
        )
    header = content[entry.header_offset : entry.header_offset + _HEADER.size]
    if len(header) == _HEADER.size and header[: len(SIGNATURE)] == SIGNATURE:
        first = entry.header_offset + _HEADER.size + sum(_HEADER.unpack(header))
        if first + entry.file_size <= len(content):
            return content[first : first + entry.file_size]
    raise CheckpointError(f"{path}: {entry.filename} is cut short or damaged: copy or download the file again")
