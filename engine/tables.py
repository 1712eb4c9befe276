"""Images in Parquet tables: their bytes in a column, or where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

from engine.images import Content, Source
from saccade.errors import ConfigError, ImageError

COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "path", "image_path", "file_name", "url")
"""Names of which a table has exactly one, unless the options choose a column."""

_BATCH_BYTES = 8 << 20  # Arrow holds several times as much on the way
_BATCH_ROWS = 256  # where equal images are stored once, a group's size says little
_BUFFER_BYTES = 1 << 20


def is_table(name: str) -> bool:
    """Whether a file is named like a Parquet table."""
    return name.lower().endswith(".parquet")


def images_in_table(
    file: IO[bytes], name: str, column: str | None, locate: Callable[[str], Content]
) -> Iterator[Source]:
    """One source per row, called "name#row", counted from 0 through the whole table.

    file : seekable; closed by the caller. Its column is read some 8 MB at a time, or a page, often 1,024 rows, where
        that is more
    column : of image bytes, of paths or URLs, or of structs of `bytes` and `path`; None finds it by its name
    locate : what is found at a path or URL of the table
    An empty cell is a failed image; so is the first of the rows of a group that is damaged, for all that follow in it.
    Raises ImageError if there is no table or no such column, ConfigError without pyarrow.
    """
    table = _opened(file, name)
    column = _column(table.schema_arrow, name, column)
    row = 0
    for group in range(table.num_row_groups):
        end = row + table.metadata.row_group(group).num_rows
        try:
            for cell in _cells(table, group, column):
                yield Source(f"{name}#{row}", _content(cell, f"{name}#{row}", locate))
                row += 1
        except ImageError as error:
            yield Source(f"{name}#{row}", error)
        except Exception as error:  # noqa: BLE001 - Arrow has an exception for each kind of damage
            message = f"rows {row} to {end - 1} of {name} cannot be read ({error})"
            yield Source(f"{name}#{row}", ImageError(message, kind="corrupt"))
        row = end


def count_rows(file: IO[bytes], name: str) -> int:
    """Rows of a table, from its footer. Raises what `images_in_table` raises."""
    rows: int = _opened(file, name).metadata.num_rows
    return rows


def _opened(file: IO[bytes], name: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{name} needs pyarrow: pip install 'saccade[tables]'") from error
    try:
        return parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name} cannot be read as a Parquet table ({error})", kind="corrupt") from error


def _column(schema: Any, name: str, chosen: str | None) -> str:
    found: list[str] = [column for column in schema.names if column == chosen or (chosen is None and column in COLUMNS)]
    if len(found) != 1:
        expected = f'one column "{chosen}"' if chosen else f"exactly one of {', '.join(COLUMNS)}"
        raise ImageError(
            f"{name} has the columns {', '.join(schema.names)}; expected {expected}, or another chosen with --column",
            kind="unsupported",
        )
    type_ = schema.field(found[0]).type
    if not _may_hold_images(type_):
        raise ImageError(
            f'column "{found[0]}" of {name} holds {type_}; expected binary, string, or a struct of bytes and path',
            kind="unsupported",
        )
    return found[0]


def _may_hold_images(type_: Any) -> bool:
    from pyarrow import types

    if types.is_struct(type_):
        return any(field.name in ("bytes", "path") for field in type_)
    if types.is_dictionary(type_):
        type_ = type_.value_type
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    text = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_one(type_) for is_one in binary + text)


def _cells(table: Any, group: int, column: str) -> Iterator[Any]:
    metadata = table.metadata.row_group(group)
    parts = (metadata.column(index) for index in range(metadata.num_columns))
    size = sum(part.total_uncompressed_size for part in parts if f"{part.path_in_schema}.".startswith(f"{column}."))
    rows = metadata.num_rows * _BATCH_BYTES // max(size, 1)
    for batch in table.iter_batches(
        max(1, min(rows, _BATCH_ROWS)), row_groups=[group], columns=[column], use_threads=False
    ):
        yield from batch.column(0)


def _content(cell: Any, name: str, locate: Callable[[str], Content]) -> Content:
    try:
        value = cell.as_py()
    except UnicodeDecodeError:
        return ImageError(f"{name} is text that is not UTF-8; expected a path or a URL", kind="corrupt")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        return ImageError(f"{name} is empty", kind="missing")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return locate(value)
    return ImageError(f"{name} is of type {cell.type}; expected bytes or a path", kind="unsupported")
