"""Images at URLs, through fsspec: S3, Google Cloud Storage, HTTP and whatever else it knows."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from io import BufferedReader
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

from engine.images import Content, Source, is_hidden, is_image, kind_of
from saccade.errors import ConfigError, ImageError
from saccade.pixels import MAX_BYTES

P = ParamSpec("P")
T = TypeVar("T")

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_CREDENTIALS = re.compile(r"(https?://)[^/?#\s]*@|([a-z][a-z0-9+.-]*://)[^/?#@:\s]*:[^/?#\s]*@")
_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;="
_WAITS_S = (0.5, 1.0)
_CHUNK_BYTES = 1 << 20
_KIND_OF_STATUS = {401: "permission", 403: "permission", 404: "missing", 410: "missing"}


def is_url(text: str) -> bool:
    """Whether a text begins like a URL."""
    return _URL.match(text) is not None


def public_name(text: str) -> str:
    """A URL, or a text with URLs in it, without the user and password of `scheme://user:password@host`."""
    return _CREDENTIALS.sub(r"\1\2", text)


def file_name(url: str) -> str:
    """What a URL's suffix is to be looked for in: of an HTTP address, all before the query."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if _is_http(url) else url


def content_at(url: str) -> Content:
    """A function that reads the file at a URL, trying three times, or the error that no try can change.

    Raises ConfigError if the scheme needs a package that is not installed.
    """
    try:
        _filesystem_class(_scheme(url))
    except ImageError as error:
        return error
    return partial(read_url, url)


def images_at(url: str, *, hidden: bool) -> Iterator[Source]:
    """The file at a URL, or files named like images below it, as in a walk; an HTTP address is always a file.

    A folder's listing is held in memory, sorted by name; a folder that cannot be listed is a failed image of its name.
    Raises ImageError if there is nothing at the URL or it may not be read, ConfigError as `content_at`.
    """
    name = public_name(url)
    if _is_http(url):
        yield Source(name, content_at(url))
        return
    system, root = _patiently(name, _located, url)
    if _patiently(name, system.info, root)["type"] == "directory":
        yield from _images_below(system, root, name, hidden=hidden)
    else:
        yield Source(name, partial(_patiently, name, _read, system, root))


def read_url(url: str) -> bytes:
    """The bytes of the file at a URL. Raises ImageError."""
    name = public_name(url)
    system, path = _patiently(name, _located, url)
    return _patiently(name, _read, system, path)


@contextmanager
def opened(url: str, *, seekable: bool) -> Iterator[BufferedReader[Any]]:
    """The file at a URL, read as it is needed; every error of it is an ImageError.

    seekable : an HTTP server must then answer range requests; otherwise one answer is read from front to back
    """
    name = public_name(url)
    system, path = _patiently(name, _located, url)
    with (
        _patiently(name, _open, system, path, seekable) as file,
        BufferedReader(_Named(file, name), _CHUNK_BYTES) as reader,
    ):
        yield reader


class _Named(io.RawIOBase):
    """A file of fsspec whose errors are those of its name."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, unless the file ends or an error waits behind what has come."""
        view, filled = memoryview(buffer).cast("B"), 0
        try:
            while filled < len(view) and (chunk := self._file.read(len(view) - filled)):
                view[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
        except Exception as error:
            if filled == 0:
                raise _failure(self._name, error) from error
        return filled

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position: int = self._file.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._file.tell()
        return position


def _images_below(system: Any, root: str, name: str, *, hidden: bool) -> Iterator[Source]:
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        named = partial(_name_below, name, root)
        try:
            files, folders = _patiently(named(folder), _listing, system, folder, hidden)
        except ImageError as error:
            if folder == root:
                raise
            yield Source(named(folder), error)
            continue
        for path in files:
            yield Source(named(path), partial(_patiently, named(path), _read, system, path))
        waiting.extend(reversed(folders))


def _name_below(name: str, root: str, path: str) -> str:
    return f"{name.removesuffix('/')}/{path[len(root) :].lstrip('/')}" if path != root else name


def _listing(system: Any, folder: str, hidden: bool) -> tuple[list[str], list[str]]:
    """Images of a folder, and the folders in it."""
    entries = system.ls(folder, detail=True)
    system.invalidate_cache(folder)  # or the listings of all folders stay in memory
    is_folder = {entry["name"].rstrip("/"): entry["type"] == "directory" for entry in entries}
    is_folder.pop(folder, None)  # object stores may list a folder's mark in the folder
    names = sorted(name for name in is_folder if hidden or not is_hidden(name[len(folder) :]))
    return [n for n in names if not is_folder[n] and is_image(n)], [n for n in names if is_folder[n]]


def _located(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    filesystem = _filesystem_class(_scheme(url))
    if _is_http(url):
        return filesystem(**_http_options()), quote(os.fsencode(url), safe=_URL_CHARACTERS)
    return filesystem(**filesystem._get_kwargs_from_urls(url)), filesystem._strip_protocol(url)


def _http_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    # A whole answer may take as long as it takes to caption a shard; proxies are those of the environment.
    timeout = ClientTimeout(total=None, sock_connect=30, sock_read=60)
    # Escapes are sent as they are written: some signatures of addresses depend on them.
    return {"encoded": True, "client_kwargs": {"timeout": timeout, "trust_env": True}}


@lru_cache
def _filesystem_class(scheme: str) -> Any:
    try:
        from fsspec import get_filesystem_class

        return get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(f"{scheme}:// cannot be read here ({error}): pip install 'saccade[cloud]'") from error
    except ValueError as error:
        raise ImageError(f"{scheme}:// is no kind of URL that fsspec knows", kind="unsupported") from error


def _open(system: Any, path: str, seekable: bool) -> Any:
    if _is_http(path) and not seekable:
        return system.open(path, "rb", block_size=0, size=1)  # one request; any size saves asking for it
    return system.open(path, "rb")


def _read(system: Any, path: str) -> bytes:
    content = bytearray()
    with _open(system, path, seekable=False) as file:
        size = getattr(file, "size", None) or 0
        while size <= MAX_BYTES and (chunk := file.read(_CHUNK_BYTES)):
            content += chunk
            size = max(size, len(content))
    if size > MAX_BYTES:
        raise ImageError(f"more than {MAX_BYTES} bytes, which is the limit", kind="too_large")
    return bytes(content)


def _patiently(name: str, ask: Callable[P, T], /, *arguments: P.args, **options: P.kwargs) -> T:
    """The answer, asked for up to three times where another try may help. Raises ImageError."""
    waits_s = iter(_WAITS_S)
    while True:
        try:
            return ask(*arguments, **options)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - every file system has its own
            failure = _failure(name, error)
        wait_s = next(waits_s, None)
        if failure.kind != "unreadable" or wait_s is None:
            raise failure  # out here, so that a kept error does not keep what was read until then
        time.sleep(wait_s)


def _failure(name: str, error: Exception) -> ImageError:
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None  # so fsspec calls whatever a HEAD meets
    status = getattr(cause or error, "status", None)
    if isinstance(error, ImageError):
        return ImageError(f"{name}: {error}", kind=error.kind)
    if status is not None:
        return ImageError(f"{name} cannot be read (HTTP {status})", kind=_KIND_OF_STATUS.get(status, "unreadable"))
    kind = kind_of(error) if isinstance(error, OSError) else "unreadable"
    reason = "no such file" if kind == "missing" else f"{type(error).__name__}: {public_name(str(error))}"
    return ImageError(f"{name} cannot be read ({reason})", kind=kind)


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _is_http(url: str) -> bool:
    return _scheme(url) in ("http", "https")
