"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, BinaryIO

from saccade.errors import OutputError

_CACHE_WAIT_S = 60.0


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file whole, text as UTF-8. Raises OSError, and then what was there before is still there."""
    with _replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well, and vanishes otherwise.

    Folders above it are made. Raises OutputError if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write {path}: {reason}; free some space or choose another place") from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    # A name may be as long as the file system allows: what is added to it needs room.
    temporary = path.with_name(f".{path.name[:32]}.{token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in their own order."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    # A file name that is not UTF-8 holds lone surrogates; the backslash escape of one is its escape in JSON, too.
    write_atomically(path, text.encode("utf-8", "backslashreplace").decode() + "\n")


@contextmanager
def staged_directory(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its name when the block ends well, and vanishes otherwise.

    Raises OutputError if the destination exists and is not to be overwritten, or cannot be there.
    """
    if destination.exists() and not overwrite:
        raise OutputError(f"{destination} exists already: choose another place, or overwrite it with --overwrite")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"{destination} cannot be written ({error.strerror}): choose another place") from error
    replaced = staging.with_name(staging.name + ".replaced")
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())
            _sync(file)
        _sync(staging)
        staging.chmod(0o777 & ~_umask())
        if destination.exists():
            destination.rename(replaced)
        staging.rename(destination)
        _sync(destination.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        shutil.rmtree(staging, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What is not equal in two nested objects, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        places = {f"{name}.{key}".lstrip("."): key for key in sorted(before.keys() | now.keys())}
        return [text for place, key in places.items() for text in differences(before.get(key), now.get(key), place)]
    return [] if before == now else [f"{name} was {_short(before)}, is {_short(now)}"]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


def cache_directory(name: str) -> Path | None:
    """A folder of this user for what can be made again; None where none can be made."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saccade" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextmanager
def held_cache(name: str) -> Iterator[Path | None]:
    """The folder of `cache_directory`, held until the block ends, for others to wait.

    None where there is none, or it cannot be held within a minute: a cache is no reason to wait for ever.
    """
    folder = cache_directory(name)
    with ExitStack() as held:
        if folder:
            try:
                file = held.enter_context((folder / ".lock").open("a"))
                _lock(file, seconds=_CACHE_WAIT_S)
                held.callback(fcntl.flock, file, fcntl.LOCK_UN)  # a child that was forked has the file open as well
            except OSError:  # some file systems have no locks
                folder = None
        yield folder


def _lock(file: IO[str], *, seconds: float) -> None:
    """Raises BlockingIOError where another process holds the file all the time, OSError where none can."""
    end = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.02)
