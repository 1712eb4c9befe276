"""Files, folders and pictures that tests find images in."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from engine.images import Source
from saccade.errors import ImageError


def touch(folder: Path, *names: str) -> None:
    """Empty files, with the folders they are in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def picture(shade: int) -> bytes:
    """A small PNG; another one for every shade."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def content(source: Source) -> bytes | str:
    """The bytes of a source, or the kind of its failure."""
    found = source.content
    try:
        if isinstance(found, ImageError):
            raise found
        if isinstance(found, Path):
            return found.read_bytes()
        assert not isinstance(found, Image.Image)
        return found if isinstance(found, bytes) else found()
    except ImageError as error:
        return error.kind
