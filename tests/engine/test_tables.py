"""Images in Parquet tables: every row one result, whatever kind of column holds them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from engine import tables
from engine.images import Content, ScanOptions, Source
from engine.sources import count_images, find_images
from engine.tables import count_rows, images_in_table
from saccade.errors import ConfigError, DataError, ImageError
from tests.engine.places import content, picture

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def stored(row_group_size: int | None = None, /, **columns: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def nowhere(name: str) -> Content:
    raise AssertionError(f"{name} is not to be looked for")


def found_in(data: bytes, column: str | None = None, locate: Any = nowhere) -> dict[str, bytes | str]:
    sources = list(images_in_table(io.BytesIO(data), "t.parquet", column, locate))
    assert len({source.name for source in sources}) == len(sources)
    return {source.name.removeprefix("t.parquet"): content(source) for source in sources}


IMAGES = [picture(shade) for shade in range(5)]


@pytest.mark.parametrize("row_group_size", [None, 2, 1])
@pytest.mark.parametrize(
    "type_", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())]
)
def test_bytes_come_with_the_number_of_their_row(type_: Any, row_group_size: int | None) -> None:
    column = pa.array(IMAGES, pa.binary()).cast(type_)
    found = found_in(stored(row_group_size, image=column, caption=list("abcde")))
    assert found == {f"#{row}": image for row, image in enumerate(IMAGES)}


class Counted(io.BytesIO):
    """A file that remembers how much was read of it at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1) -> bytes:
        got = super().read(size)
        self.sizes.append(len(got))
        return got


def test_no_other_column_is_read() -> None:
    file = Counted(stored(image=IMAGES, huge=[os.urandom(1000_000)] * 5))
    assert len(list(images_in_table(file, "t.parquet", None, nowhere))) == 5
    assert sum(file.sizes) < 200_000


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_paths_are_located(type_: Any) -> None:
    asked = []

    def locate(name: str) -> Content:
        asked.append(name)
        return name.encode()

    data = stored(path=pa.array(["a.png", "s3://b/c.png"]).cast(type_))
    assert found_in(data, locate=locate) == {"#0": b"a.png", "#1": b"s3://b/c.png"}
    assert asked == ["a.png", "s3://b/c.png"]


def test_structs_of_bytes_and_path_give_the_bytes_if_there_are_any() -> None:
    cells = [
        {"bytes": IMAGES[0], "path": "a.png"},
        {"bytes": None, "path": "b.png"},
        {"bytes": b"", "path": "c.png"},
        {"bytes": None, "path": None},
        None,
    ]
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = found_in(stored(image=pa.array(cells, type_), label=range(5)), locate=str.encode)
    assert found == {"#0": IMAGES[0], "#1": b"b.png", "#2": b"c.png", "#3": "missing", "#4": "missing"}


@pytest.mark.parametrize("type_", [pa.binary(), pa.string()])
def test_an_empty_cell_is_a_failed_image(type_: Any) -> None:
    assert found_in(stored(image=pa.array([None, b""], pa.binary()).cast(type_))) == {"#0": "missing", "#1": "missing"}


def test_text_that_is_not_utf8_is_a_failed_image() -> None:
    array = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfea"))
    assert found_in(stored(path=array), locate=str.encode) == {"#0": "corrupt", "#1": b"a"}


@pytest.mark.parametrize("name", tables.COLUMNS)
def test_the_usual_names_are_found(name: str) -> None:
    assert found_in(stored(None, **{"id": [1], name: [IMAGES[0]], "text": ["x"]})) == {"#0": IMAGES[0]}


@pytest.mark.parametrize(
    ("columns", "chosen", "message"),
    [
        (("jpg", "url"), None, r"has the columns jpg, url; expected exactly one of image, bytes, .*--column"),
        (("id", "text"), None, r"has the columns id, text; expected exactly one of image"),
        (("image", "text"), "pic", r'has the columns image, text; expected one column "pic"'),
    ],
)
def test_without_a_clear_column_the_message_lists_what_there_is(
    columns: tuple[str, ...], chosen: str | None, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        found_in(stored(None, **{name: [b"x"] for name in columns}), chosen)


def test_a_chosen_column_is_taken() -> None:
    data = stored(None, **{"jpg": IMAGES, "png": IMAGES[::-1], "dotted.name": IMAGES[:1] * 5})
    assert found_in(data, "png")["#0"] == IMAGES[4]
    assert found_in(data, "dotted.name")["#4"] == IMAGES[0]


def test_a_column_that_comes_twice_is_no_clear_column() -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays([pa.array([b"a"]), pa.array([b"b"])], names=["image", "image"]), buffer)
    for column in (None, "image"):
        with pytest.raises(ImageError, match="has the columns image, image; expected"):
            found_in(buffer.getvalue(), column)


@pytest.mark.parametrize("values", [[1, 2], [[b"x"], [b"y"]], [{"data": b"x"}, None]])
def test_a_column_that_can_hold_no_images_is_refused(values: list[Any]) -> None:
    with pytest.raises(
        ImageError, match=r'column "image" of t\.parquet holds .*; expected binary, string, or a struct'
    ):
        found_in(stored(image=values))


def test_a_table_without_rows_has_no_images() -> None:
    assert found_in(stored(image=pa.array([], pa.binary()))) == {}


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no table" * 100, stored(image=IMAGES)[:-20]])
def test_what_is_no_table_is_an_error(damage: bytes) -> None:
    with pytest.raises(ImageError, match=r"^t\.parquet cannot be read as a Parquet table") as error:
        found_in(damage)
    assert error.value.kind == "corrupt"


def test_a_damaged_group_fails_one_image_and_the_next_group_is_read() -> None:
    data = bytearray(stored(2, image=IMAGES))
    start = parquet.read_metadata(io.BytesIO(bytes(data))).row_group(1).column(0)
    offset = start.dictionary_page_offset or start.data_page_offset
    data[offset : offset + start.total_compressed_size] = b"\xff" * start.total_compressed_size
    sources = list(images_in_table(io.BytesIO(bytes(data)), "t.parquet", None, nowhere))
    assert [source.name for source in sources] == ["t.parquet#0", "t.parquet#1", "t.parquet#2", "t.parquet#4"]
    failure = sources[2].content
    assert isinstance(failure, ImageError)
    assert (failure.kind, "rows 2 to 3 of t.parquet cannot be read" in str(failure)) == ("corrupt", True)
    assert content(sources[3]) == IMAGES[4]


def test_a_group_of_large_images_is_held_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are the smallest pieces there are, and by default a page has up to 1,024 rows, however large."""
    monkeypatch.setattr(tables, "_BATCH_BYTES", 4_000_000)
    images = [os.urandom(500_000) for _ in range(100)]
    buffer = io.BytesIO()
    parquet.write_table(
        pa.table({"image": images}), buffer, compression="none", use_dictionary=False, write_batch_size=1
    )
    file, before, most = Counted(buffer.getvalue()), pa.total_allocated_bytes(), 0
    for row, source in enumerate(images_in_table(file, "t.parquet", None, nowhere)):
        assert source == Source(f"t.parquet#{row}", images[row])
        most = max(most, pa.total_allocated_bytes() - before)
    assert 500_000 < most < 16_000_000
    assert max(file.sizes) < 2_000_000


def test_rows_are_counted_without_being_read() -> None:
    data = stored(2, image=IMAGES)
    assert count_rows(io.BytesIO(data), "t.parquet") == 5


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"t\.parquet needs pyarrow: pip install 'saccade\[tables\]'"):
        found_in(b"")


def test_a_table_on_disk_finds_paths_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(IMAGES[1])
    (tmp_path / "b.png").write_bytes(IMAGES[2])
    table = tmp_path / "sub" / "t.parquet"
    table.write_bytes(stored(path=["a.png", "../b.png", str(tmp_path / "b.png"), "gone.png"]))
    sources = list(find_images([str(table)]))
    assert [source.name for source in sources] == [f"{table}#{row}" for row in range(4)]
    assert [content(source) for source in sources[:3]] == [IMAGES[1], IMAGES[2], IMAGES[2]]
    assert sources[3].content == tmp_path / "sub" / "gone.png"
    assert count_images([str(table)]) == 4


def test_a_table_may_have_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    table = tmp_path / os.fsdecode(b"caf\xe9.parquet")
    table.write_bytes(stored(image=IMAGES))
    assert [content(source) for source in find_images([str(table)])] == IMAGES


def test_a_given_table_without_a_clear_column_ends_the_run_and_a_listed_one_fails(tmp_path: Path) -> None:
    table, list_ = tmp_path / "t.parquet", tmp_path / "list.txt"
    table.write_bytes(stored(jpg=IMAGES, png=IMAGES))
    list_.write_text(f"{table}\n")
    with pytest.raises(DataError, match="has the columns jpg, png; expected exactly one of"):
        list(find_images([str(table)]))
    [failed] = find_images([f"@{list_}"])
    assert (failed.name, content(failed)) == (str(table), "unsupported")
    assert len(list(find_images([f"@{list_}"], ScanOptions(column="png")))) == 5
