"""Sidecars: one text file an image, beside it or below another folder, as tools for fine-tuning read captions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from engine.images import SUFFIXES
from engine.names import Names
from engine.records import Record
from saccade.errors import ConfigError, OutputError
from saccade.files import write_atomically

Existing = Literal["skip", "overwrite", "append", "error"]
Entry = tuple[Path, Record]
"""The folder that the record's path is relative to, and the record."""

_THREADS = 8
"""Each waits for the disk most of the time; more did not make it faster."""
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarOptions:
    """Where sidecars are, and what is in them.

    existing : what becomes of a sidecar that is there already; `append` adds a line unless it is the last one
    prefix, suffix : text before and after each caption
    extension : takes the place of the image's own, or with `keep_suffix` comes after it
    root : the folder they are written below, in the images' folders; None for beside the images
    """

    existing: Existing = "skip"
    prefix: str = ""
    suffix: str = ""
    extension: str = ".txt"
    keep_suffix: bool = False
    root: Path | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.existing not in get_args(Existing):
            problems.append(f"existing must be one of {', '.join(get_args(Existing))}, got {self.existing!r}")
        if not re.fullmatch(r"\.[^/\0]*[^./\0]", self.extension):
            problems.append(f"the extension must be a dot and a name, got {self.extension!r}")
        if self.extension.lower() in SUFFIXES:
            problems.append(f"the extension {self.extension} is one of images, which sidecars would replace")
        if problems:
            raise ConfigError("invalid sidecar options: " + "; ".join(problems))


def check_sidecars(read: Callable[[], Iterable[Entry]], options: SidecarOptions) -> None:
    """Raise OutputError where a sidecar has no place, would be that of two images, or exists and must not."""

    def name(base: Path, record: Record) -> str:
        return os.path.normpath(_place(record.path, base, options))

    with Names() as taken:
        for entry in read():
            sidecar = name(*entry)
            if taken.meet(sidecar) == "again":
                first = next(other for other in read() if name(*other) == sidecar)
                raise OutputError(
                    f"{first[1].path} and {entry[1].path} would share the sidecar {sidecar}: tell the files apart with "
                    "--keep-suffix, or give each image one record"
                )
            if options.existing == "error" and os.path.lexists(sidecar):
                raise OutputError(f"{sidecar} exists already: choose --existing skip, overwrite or append")


def write_sidecars(entries: Iterator[Entry], options: SidecarOptions) -> Iterator[bool]:
    """Write the sidecar of each entry, several at a time, each whole or not at all; yield whether it was changed."""
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(entries, _BATCH)):
            yield from pool.map(partial(_write, options), batch)


def _write(options: SidecarOptions, entry: Entry) -> bool:
    base, record = entry
    sidecar = _place(record.path, base, options)
    line = f"{options.prefix}{record.caption}{options.suffix}"
    try:
        content = _content(sidecar, line.encode("utf-8", "surrogateescape"), options.existing)
        if content is not None:
            if options.root is not None:
                sidecar.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(sidecar, content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {sidecar}: {reason}; free some space or choose another --root") from error
    return content is not None


def _content(sidecar: Path, line: bytes, existing: Existing) -> bytes | None:
    """What is to be in the sidecar; None for what is there."""
    if existing in ("overwrite", "error") or not os.path.lexists(sidecar):
        return line + b"\n"
    return _appended(sidecar.read_bytes(), line) if existing == "append" else None


def _appended(before: bytes, line: bytes) -> bytes | None:
    """The text with the line behind it; None if it is there already."""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    if (b"\n" + before.replace(b"\r\n", b"\n")).endswith(b"\n" + line + b"\n"):
        return None
    return before + line + b"\n"


def _place(path: str, base: Path, options: SidecarOptions) -> Path:
    """Where the image's sidecar is. Raises OutputError if it can be nowhere."""
    image, inside = base / path, _below(path, base)
    if not inside:
        raise OutputError(f"{path!r} names no image, so it can have no sidecar")
    if options.root is not None:
        place = options.root.absolute() / inside
    elif re.search(r"(?i)\.parquet#", path) or not image.parent.is_dir():
        raise OutputError(f"{path} is no file on disk to have a sidecar beside it: give a folder with --root")
    else:
        place = image
    sidecar = place.with_name((place.name if options.keep_suffix else place.stem) + options.extension)
    if os.path.normpath(sidecar) == os.path.normpath(image):
        raise OutputError(f"{path} would be replaced by its own sidecar: choose another --extension")
    return sidecar


def _below(path: str, base: Path) -> str:
    """The image's place relative to the base, or in its archive, table or host; never above or absolute."""
    name = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", re.sub(r"(?i)(\.parquet)#", r"\1/", path))
    if Path(name).is_relative_to(base):
        name = str(Path(name).relative_to(base))
    return os.path.normpath(f"/{name}").lstrip("/")
