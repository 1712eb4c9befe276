"""The gallery: one self-contained HTML page that shows each image, its caption and where each word looked.

The page loads nothing. What comes from a run is data, never markup: JSON in inert script blocks, drawn by the script of
`gallery.html`, and that script's hash is the only one the page's content security policy lets run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.records import Attention, Failure, Record
from saccade.errors import ImageError, OutputError
from saccade.files import replaced
from saccade.pixels import load_rgb

_JPEG_QUALITY = 80

_MAX_WORKERS = 8
"""Bounds memory as much as threads: each may hold one image at its native size."""


def write_gallery(
    records: Iterable[Record],
    destination: Path,
    *,
    title: str,
    crop: bool = False,
    failures: Sequence[Failure] = (),
    root: Path = Path(),
    thumbnail_px: int = 448,
    limit: int | None = None,
) -> int:
    """Write the page for these records, in their order, and return how many images it shows.

    Records are read as they are written, a few ahead, so memory does not grow with their number. The page appears whole
    or not at all. An image that cannot be read any more is shown as a placeholder above its caption.

    crop : the attention grid covers the central square of the image; otherwise the whole image
    failures : listed below the images
    root : what relative paths of records are relative to
    thumbnail_px : longest side of an embedded image
    limit : show at most so many records; the page says so if there are more
    Raises OutputError if the page cannot be written or a record's alphas do not fit its grid.
    """
    remaining = iter(records)
    shown = 0
    with replaced(destination) as page, ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as pool:
        head, foot = _page(title)
        page.write(head)
        for blocks in _in_order(pool, islice(remaining, limit), root, thumbnail_px):
            page.write(blocks)
            shown += 1
        run = {
            "crop": crop,
            "more": next(remaining, None) is not None,
            "failures": [[failure.path, failure.kind, failure.error] for failure in failures],
        }
        page.write(b'</div>\n<script type="application/json" id="run">%b</script>' % _inert_json(run))
        page.write(foot)
    return shown


def levels_from_alphas(attention: Attention) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Each word's alphas in 255 steps of the word's own maximum: alpha = level / 255 x maximum, within half a step.

    Returns levels (words, rows x columns) and maxima (words,). What is no number counts as zero.
    Raises OutputError if a word has more or fewer alphas than the grid has cells.
    """
    cells = attention.rows * attention.columns
    lengths = {len(row) for row in attention.alphas}
    if not cells or lengths - {cells}:
        raise OutputError(
            f"attention over {attention.rows} x {attention.columns} cells comes with {sorted(lengths)} alphas a word, "
            f"expected {cells}: the results are damaged, caption these images again"
        )
    alphas = np.array(attention.alphas, dtype=np.float64).reshape(-1, cells)
    alphas = np.where(np.isfinite(alphas), alphas, 0.0).clip(min=0.0)
    maxima = alphas.max(axis=1)
    levels = np.rint(255.0 * alphas / np.where(maxima > 0.0, maxima, 1.0)[:, None])
    return levels.astype(np.uint8), maxima


def _page(title: str) -> tuple[bytes, bytes]:
    """Read the template: what stands before the records and what stands after them."""
    head, foot = resources.files(__package__).joinpath("gallery.html").read_text("utf-8").split("{{records}}")
    script = head.partition("<script>")[2].partition("</script>")[0]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The title goes in last: whatever it says, nothing is substituted inside it.
    head = head.replace("{{script-hash}}", script_hash).replace("{{title}}", html.escape(title))
    # A character reference can carry what UTF-8 cannot: the undecodable byte of a folder's name.
    return head.encode("utf-8", "xmlcharrefreplace"), foot.encode()


def _in_order(pool: ThreadPoolExecutor, records: Iterable[Record], root: Path, thumbnail_px: int) -> Iterator[bytes]:
    """Yield the blocks of each record, made in parallel, with only a few records under way at any time."""
    under_way: deque[Future[bytes]] = deque()
    for record in records:
        under_way.append(pool.submit(_record_blocks, record, root, thumbnail_px))
        if len(under_way) > 2 * _MAX_WORKERS:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _record_blocks(record: Record, root: Path, thumbnail_px: int) -> bytes:
    """Write the record as two inert script blocks: its facts, and its picture as base64 JPEG (empty if it is gone)."""
    facts: dict[str, Any] = {
        "path": record.path,
        "caption": record.caption,
        "score": _finite(record.score),
        "words": record.words,
        "truncated": record.truncated,
    }
    if record.alternatives:
        others = record.alternatives
        facts["alternatives"] = [[other.caption, _finite(other.score), other.truncated] for other in others]
    if record.attention is not None:
        levels, maxima = levels_from_alphas(record.attention)
        facts["grid"] = (record.attention.rows, record.attention.columns)
        facts["peaks"] = [float(f"{maximum:.4g}") for maximum in maxima]
        facts["alphas"] = base64.b64encode(levels.tobytes()).decode()
    try:
        picture, facts["size"] = _thumbnail(root / record.path, thumbnail_px)
    except ImageError as error:
        picture, facts["size"] = b"", (4, 3)
        reason = "is gone" if error.kind == "missing" else f"cannot be read ({error.kind.replace('_', ' ')})"
        facts["missing"] = f"The image {reason}"
    return b'<script type="application/json">%b</script>\n<script type="text/plain">%b</script>\n' % (
        _inert_json(facts),
        base64.b64encode(picture),
    )


def _thumbnail(path: Path, longest_px: int) -> tuple[bytes, tuple[int, int]]:
    """Make a JPEG of at most so many pixels a side; return it with its width and height. Raises ImageError."""
    image = load_rgb(path)
    image.thumbnail((longest_px, longest_px))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return jpeg.getvalue(), image.size


def _inert_json(value: object) -> bytes:
    """Write ASCII JSON without `<`, `>` and `&`, so that no HTML parser finds a way out of it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode("ascii")


def _finite(score: float) -> float | None:
    """Round the score; None if JSON has no number for it."""
    return round(score, 4) if math.isfinite(score) else None
