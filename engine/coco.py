"""COCO results: a JSON list of `{"image_id", "caption"}`, and how an image gets its id."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from engine.names import Names
from engine.records import Record
from saccade.errors import DataError, OutputError

ImageId = int | str
ImageIds = Callable[[str], ImageId]
"""The id of an image, by its path. Raises OutputError if it has none."""


def image_ids(rule: str) -> ImageIds:
    """How images get their ids.

    rule : "number", the last run of digits in the file's stem; "stem", the stem itself; or a COCO annotations file,
        where the longest end of an image's path that is the `file_name` of an image gives its `id`
    Raises DataError if the annotations file cannot be used.
    """
    rules: dict[str, ImageIds] = {"number": _number, "stem": _stem}
    return rules.get(rule) or _annotated(Path(rule))


def write_coco(file: BinaryIO, read: Callable[[], Iterable[Record]], image_id: ImageIds) -> None:
    """Write one entry a line. Raises OutputError naming the images if two have one id."""
    with Names() as taken:
        file.write(b"[")
        separator = b"\n"
        for record in read():
            identity = image_id(record.path)
            if taken.meet(json.dumps(identity)) == "again":
                first = next(other.path for other in read() if image_id(other.path) == identity)
                raise OutputError(f"{first} and {record.path} both have the image id {identity!r}: choose other --ids")
            file.write(separator + json.dumps({"image_id": identity, "caption": record.caption}).encode())
            separator = b",\n"
        file.write(b"\n]\n")


def read_coco(path: Path) -> Iterator[dict[str, Any]]:
    """Yield path and caption of each entry; the path is the image's id. The whole file is held in memory."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError(f"expected a COCO results list, got {type(content).__name__}")  # noqa: TRY004 - of a file
    for entry in content:
        if not isinstance(entry, dict) or not entry.keys() >= {"image_id", "caption"}:
            raise ValueError(f"expected an object with image_id and caption, got {entry!r:.60}")
        yield {"path": str(entry["image_id"]), "caption": entry["caption"]}


def _number(path: str) -> int:
    runs = re.findall("[0-9]+", _stem(path))
    if not runs:
        raise OutputError(f"{path} has no digits to be its image id: choose --ids stem, or a COCO annotations file")
    return int(runs[-1])


def _stem(path: str) -> str:
    return PurePosixPath(re.split(r"(?i)\.parquet#", path)[-1]).stem  # of a row in a table, its number


def _annotated(annotations: Path) -> ImageIds:
    try:
        images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
        ids: dict[str, ImageId] = {image["file_name"]: image["id"] for image in images}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{annotations}: expected number, stem, or a COCO annotations file with images ({error!r})"
        ) from error
    if len(ids) < len(images):
        raise DataError(f"{annotations} has {len(images)} images of {len(ids)} file names: expected one for each")

    def image_id(path: str) -> ImageId:
        parts = path.split("/")
        for start in range(len(parts)):
            identity = ids.get("/".join(parts[start:]))
            if identity is not None:
                return identity
        raise OutputError(f"{path} is no image of {annotations}: give the file that lists it, or choose other --ids")

    return image_id
