"""Files of records: JSONL, CSV and Parquet. Each is written and read record by record, or group by group.

A reader yields the JSON values of each record, unchecked: some may be missing, or None. It raises OSError or ValueError
where the file is damaged.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from engine.records import Record, json_line
from saccade.errors import ConfigError, OutputError

_GROUP = 1_000_000
"""Numbers in a row group of Parquet, where a record counts as a hundred and an alpha as one: some 10 MB."""

_BATCH = 256
"""Rows of Parquet that become Python objects at a time."""


def write_jsonl(file: BinaryIO, records: Iterable[Record]) -> None:
    """Write the lines that the parts of a results folder hold."""
    for record in records:
        try:
            line = json_line(record.as_json())
        except ValueError as error:
            raise _cannot_hold("JSON", record.path, error) from error
        file.write(line.encode())


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the value of each line."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_csv(file: BinaryIO, records: Iterable[Record]) -> None:
    """Write one row a record, as RFC 4180 has it; alternatives and attention have no place in it.

    Text is UTF-8; of a name that is not UTF-8 the row holds the very bytes.
    """
    rows = csv.writer(codecs.getwriter("utf-8")(file, "surrogateescape"))
    rows.writerow(_FROM_CELL)
    for record in records:
        try:
            words, tokens = _joined(record.words), _joined(map(str, record.tokens))
            rows.writerow(
                (record.path, record.caption, record.score, words, tokens, "true" if record.truncated else "false")
            )
        except ValueError as error:
            raise _cannot_hold("CSV", record.path, error) from error


def read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the known columns of each row."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            if not {"path", "caption"} <= {*(rows.fieldnames or ())}:
                raise ValueError(f"expected the columns path and caption, got {rows.fieldnames}")
            for row in rows:
                if None in row:
                    raise ValueError(f"line {rows.line_num} has more cells than the first")
                yield {name: value(row[name]) for name, value in _FROM_CELL.items() if row.get(name) is not None}
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num}: {error}") from error


def _split(cell: str) -> list[str]:
    return cell.split(" ") if cell else []


def _joined(words: Iterable[str]) -> str:
    words = list(words)
    cell = " ".join(words)
    if _split(cell) != words:
        raise ValueError(f"one of the words {words} is empty or holds a blank")
    return cell


def _truth(cell: str) -> bool:
    if cell.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, got {cell!r}")
    return cell.lower() == "true"


_FROM_CELL: dict[str, Callable[[str], Any]] = {
    "path": str,
    "caption": str,
    "score": float,
    "words": _split,
    "tokens": lambda cell: [int(token) for token in _split(cell)],
    "truncated": _truth,
}
"""The columns of CSV, and what a cell of each means."""


def write_parquet(file: BinaryIO, records: Iterable[Record]) -> None:
    """Write everything a record holds, in row groups of bounded size, compressed.

    Of a name that is not UTF-8, `path` is readable and `path_bytes` is exact; it is null for other names.
    """
    arrow, parquet = _arrow()
    schema = _schema(arrow)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(records):
            try:
                table = arrow.Table.from_pylist([_row(record) for record in group], schema)
            except (ValueError, OverflowError, arrow.ArrowException) as error:
                raise _cannot_hold("Parquet", f"a record from {group[0].path} to {group[-1].path}", error) from error
            writer.write_table(table)


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the known columns of each row."""
    arrow, parquet = _arrow()
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in _schema(arrow).names if name in file.schema_arrow.names]
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    exact = row.pop("path_bytes", None)
                    yield row if exact is None else row | {"path": exact.decode("utf-8", "surrogateescape")}
    except arrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group, size = list[Record](), 0
    for record in records:
        group.append(record)
        size += 100 + (sum(map(len, record.attention.alphas)) if record.attention else 0)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _row(record: Record) -> dict[str, Any]:
    exact = record.path.encode("utf-8", "surrogateescape")
    readable = exact.decode("utf-8", "replace")
    return record.as_json() | {"path": readable, "path_bytes": None if readable == record.path else exact}


def _schema(arrow: Any) -> Any:
    text, number, tokens = arrow.string(), arrow.float64(), arrow.list_(arrow.int32())
    hypothesis = {"caption": text, "score": number, "tokens": tokens, "truncated": arrow.bool_()}
    attention = {"rows": arrow.int32(), "columns": arrow.int32(), "alphas": arrow.list_(arrow.list_(number))}
    return arrow.schema(
        {
            "path": text,
            "path_bytes": arrow.binary(),
            **hypothesis,
            "words": arrow.list_(text),
            "alternatives": arrow.list_(arrow.struct(hypothesis)),
            "attention": arrow.struct(attention),
        }
    )


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow, which is not installed: pip install 'saccade[tables]'") from error
    return pa, parquet


def _cannot_hold(form: str, what: str, error: Exception) -> OutputError:
    return OutputError(f"{form} cannot hold {what}: {error}; choose another format")
