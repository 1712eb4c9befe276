"""One record an image: what a run writes, and what the gallery and every converter read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


def json_line(values: Mapping[str, Any]) -> str:
    """A line of a part, of failures, or of a file of records. Raises ValueError for what JSON cannot hold.

    ASCII only: names that are not UTF-8 travel as escaped surrogates, and every line stays valid JSON.
    """
    return json.dumps(values, ensure_ascii=True, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A further hypothesis of the n-best list, best first."""

    caption: str
    score: float
    tokens: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Where the model looked: `alphas[word][location]`, each row sums to 1, over the grid row by row."""

    rows: int
    columns: int
    alphas: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An image that could not be read. `kind` is one of the kinds of `saccade.pixels`, or "too_slow"."""

    path: str
    kind: str
    error: str

    def as_json(self) -> dict[str, Any]:
        """The failure as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The caption of one image.

    path : the image, as it was given or found below a given folder
    score : what the hypothesis was ranked by: total log-probability, divided by length^penalty where asked for
    tokens : ids without `<start>` and `<end>`; `words` are the same as text, one each
    truncated : the maximum length was reached before `<end>`
    attention : one row of alphas per word, where asked for
    """

    path: str
    caption: str
    score: float
    tokens: tuple[int, ...]
    words: tuple[str, ...]
    truncated: bool
    alternatives: tuple[Alternative, ...] = ()
    attention: Attention | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values; what is empty is left out."""
        record: dict[str, Any] = {
            "path": self.path,
            "caption": self.caption,
            "score": round(self.score, 6),
            "tokens": list(self.tokens),
            "words": list(self.words),
            "truncated": self.truncated,
        }
        if self.alternatives:
            record["alternatives"] = [
                {
                    "caption": other.caption,
                    "score": round(other.score, 6),
                    "tokens": list(other.tokens),
                    "truncated": other.truncated,
                }
                for other in self.alternatives
            ]
        if self.attention is not None:
            record["attention"] = {
                "rows": self.attention.rows,
                "columns": self.attention.columns,
                "alphas": [[round(alpha, 5) for alpha in row] for row in self.attention.alphas],
            }
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Record:
        """Read one line of a part file."""
        attention = record.get("attention")
        return cls(
            path=record["path"],
            caption=record["caption"],
            score=record["score"],
            tokens=tuple(record["tokens"]),
            words=tuple(record["words"]),
            truncated=record["truncated"],
            alternatives=tuple(
                Alternative(
                    caption=other["caption"],
                    score=other["score"],
                    tokens=tuple(other["tokens"]),
                    truncated=other["truncated"],
                )
                for other in record.get("alternatives", ())
            ),
            attention=attention
            and Attention(
                rows=attention["rows"],
                columns=attention["columns"],
                alphas=tuple(tuple(row) for row in attention["alphas"]),
            ),
        )
