"""What a run wrote, in every other form and back: nothing is lost that the form can hold."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.record_files
from engine.coco import image_ids
from engine.conversion import Conversion, ConversionOptions, Format, convert
from engine.record_sources import record_sources
from engine.records import Alternative, Attention, Record
from engine.results import ResultsWriter
from saccade.errors import ConfigError, DataError, OutputError
from saccade.progress import Reporter
from tests.commands import COMMAND, call

pyarrow_parquet = pytest.importorskip("pyarrow.parquet")

SUFFIXES: dict[Format, str] = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet", "coco": ".json"}
NOT_UTF8 = os.fsdecode(b"photos/caf\xe9.jpg")


def record(path: str = "photos/7.jpg", caption: str = "a ball") -> Record:
    return Record(path=path, caption=caption, score=-1.5, tokens=(4, 5), words=("a", "ball"), truncated=False)


WHOLE = replace(
    record("photos/9.jpg", "ein Hund, „groß“"),
    truncated=True,
    alternatives=(
        Alternative(caption="a dog", score=-2.25, tokens=(4, 6), truncated=False),
        Alternative(caption="", score=-3.0, tokens=(), truncated=True),
    ),
    attention=Attention(rows=1, columns=2, alphas=((0.25, 0.75), (1.0, 0.0))),
)


def results(folder: Path, *parts: Iterable[Record], base: Path | None = None) -> Path:
    """Write a results folder, one part for each list of records, as a run in `base` would."""
    details = {"working_directory": str(base or folder.parent)}
    with ResultsWriter(folder, {}, details) as writer:
        for part in parts:
            writer.commit(list(part))
    return folder


def converted(source: Path, out: Path, **options: Any) -> Path:
    """Convert into a file, in the form that its name tells unless `format` does."""
    form: Format = options.pop("format", None) or next(
        name for name, suffix in SUFFIXES.items() if suffix == out.suffix
    )
    convert(source, ConversionOptions(format=form, out=out, **options), Reporter(quiet=True))
    return out


def read(place: Path, **options: bool) -> list[Record]:
    return [one for source in record_sources(place, **options) for one in source.read()]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
scores = st.floats(-1e6, 0).map(lambda score: round(score, 6))
grids = st.builds(
    lambda rows, columns, words: Attention(
        rows=rows, columns=columns, alphas=((round(1 / (rows * columns), 5),) * rows * columns,) * words
    ),
    *[st.integers(1, 3)] * 3,
)
plain = st.builds(
    Record,
    path=st.binary(min_size=1, max_size=12).map(os.fsdecode) | texts,
    caption=texts,
    score=scores,
    tokens=ids,
    words=st.lists(texts.filter(lambda word: word and " " not in word), max_size=4).map(tuple),
    truncated=st.booleans(),
)
others = st.builds(Alternative, caption=texts, score=scores, tokens=ids, truncated=st.booleans())
rich = st.builds(replace, plain, alternatives=st.lists(others, max_size=2).map(tuple), attention=st.none() | grids)


@pytest.mark.parametrize(("first", "second"), [("jsonl", "parquet"), ("parquet", "jsonl")])
@given(records=st.lists(rich, max_size=5))
@settings(max_examples=60, deadline=None)
def test_jsonl_and_parquet_hold_everything_and_become_each_other(
    first: Format, second: Format, records: list[Record]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = converted(results(Path(folder, "out"), records), Path(folder, "a" + SUFFIXES[first]))
        assert read(source) == records
        other = converted(source, Path(folder, "b" + SUFFIXES[second]))
        assert read(other) == records
        again = converted(other, Path(folder, "c" + SUFFIXES[first]))
        assert again.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("through", ["jsonl", "parquet"])
@given(records=st.lists(plain, max_size=5))
@settings(max_examples=60, deadline=None)
def test_csv_holds_all_but_alternatives_and_attention(through: Format, records: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = converted(results(Path(folder, "out"), records), Path(folder, "a.csv"))
        assert read(source) == records
        other = converted(source, Path(folder, "b" + SUFFIXES[through]))
        assert read(other) == records
        assert converted(other, Path(folder, "c.csv")).read_bytes() == source.read_bytes()


def test_csv_leaves_alternatives_and_attention_out(tmp_path: Path) -> None:
    out = converted(results(tmp_path / "out", [WHOLE]), tmp_path / "a.csv")
    assert read(out) == [replace(WHOLE, alternatives=(), attention=None)]


def test_jsonl_has_the_very_lines_of_the_parts(tmp_path: Path) -> None:
    folder = results(tmp_path / "out", [record(NOT_UTF8), WHOLE], [], [record(caption="बिल्ली\u2028")])
    lines = b"".join(file.read_bytes() for file in sorted(folder.glob("part-*.jsonl")))
    assert lines.count(b"\n") == 3
    assert converted(folder, tmp_path / "a.jsonl").read_bytes() == lines
    assert converted(tmp_path / "a.jsonl", tmp_path / "b.jsonl").read_bytes() == lines


def test_csv_is_as_rfc_4180_and_its_readers_have_it(tmp_path: Path) -> None:
    odd = replace(record("a,b.jpg", 'a "red"\r\nball\n'), score=-1.234567, truncated=True)
    empty = replace(record(caption=""), tokens=(), words=())
    out = converted(results(tmp_path / "out", [odd, empty]), tmp_path / "a.csv")
    assert out.read_bytes() == (
        b"path,caption,score,words,tokens,truncated\r\n"
        b'"a,b.jpg","a ""red""\r\nball\n",-1.234567,a ball,4 5,true\r\n'
        b"photos/7.jpg,,-1.5,,,false\r\n"
    )
    with out.open(newline="", encoding="utf-8") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == [odd.caption, ""]


def test_csv_has_the_bytes_of_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    out = converted(results(tmp_path / "out", [record(NOT_UTF8, "日本")]), tmp_path / "a.csv")
    assert out.read_bytes().splitlines()[1] == b"photos/caf\xe9.jpg," + "日本".encode() + b",-1.5,a ball,4 5,false"


def test_csv_that_a_spreadsheet_wrote_is_read(tmp_path: Path) -> None:
    content = "\ufeffcaption,path,note,truncated,score,tokens,words\na ball,photos/7.jpg,mine,FALSE,-1.5,4 5,a ball\n"
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    assert read(tmp_path / "a.csv") == [record()]
    (tmp_path / "a.csv").write_text(content.replace("FALSE", "TRUE"), encoding="utf-8")
    assert read(tmp_path / "a.csv") == [replace(record(), truncated=True)]


def test_parquet_has_columns_of_their_own_types(tmp_path: Path) -> None:
    out = converted(results(tmp_path / "out", [record(NOT_UTF8), WHOLE]), tmp_path / "a.parquet")
    table = pyarrow_parquet.read_table(out)
    hypothesis = "caption: string, score: double, tokens: list<element: int32>, truncated: bool"
    assert {field.name: str(field.type) for field in table.schema} == {
        "path": "string",
        "path_bytes": "binary",
        "caption": "string",
        "score": "double",
        "tokens": "list<element: int32>",
        "truncated": "bool",
        "words": "list<element: string>",
        "alternatives": f"list<element: struct<{hypothesis}>>",
        "attention": "struct<rows: int32, columns: int32, alphas: list<element: list<element: double>>>",
    }
    assert table["path"].to_pylist() == ["photos/caf\ufffd.jpg", "photos/9.jpg"]
    assert table["path_bytes"].to_pylist() == [b"photos/caf\xe9.jpg", None]
    assert table["attention"].to_pylist()[1] == {"rows": 1, "columns": 2, "alphas": [[0.25, 0.75], [1.0, 0.0]]}
    assert table["alternatives"].null_count == 1


def test_row_groups_close_by_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record counts as a hundred numbers, so that groups with attention hold fewer records, not more memory."""
    monkeypatch.setattr(engine.record_files, "_GROUP", 1_000)
    looking = replace(record(), attention=Attention(rows=10, columns=20, alphas=((0.005,) * 200,) * 2))
    out = converted(results(tmp_path / "out", [record()] * 25, [looking] * 5), tmp_path / "a.parquet")
    metadata = pyarrow_parquet.ParquetFile(out).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [10, 10, 6, 2, 2]
    assert read(out) == [record()] * 25 + [looking] * 5


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_text_that_no_file_can_hold_is_refused_by_name(tmp_path: Path, form: Format) -> None:
    folder = results(tmp_path / "out", [record(caption="a \ud800")])
    with pytest.raises(
        OutputError, match=r"cannot hold .*photos/7\.jpg.*surrogates not allowed; choose another format"
    ):
        converted(folder, tmp_path / f"a.{form}")
    assert names(tmp_path) == ["out"]
    assert read(converted(folder, tmp_path / "a.jsonl")) == [record(caption="a \ud800")]


@pytest.mark.parametrize("words", [("a b",), ("",)])
def test_a_word_that_csv_would_split_or_drop_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(OutputError, match=r"CSV cannot hold photos/7\.jpg: one of the words .* holds a blank"):
        converted(results(tmp_path / "out", [replace(record(), words=words)]), tmp_path / "a.csv")


def test_a_token_too_large_for_parquet_is_refused(tmp_path: Path) -> None:
    for token in (2**31, 2**70):
        with pytest.raises(
            OutputError, match=r"Parquet cannot hold a record from photos/7\.jpg to photos/7\.jpg: .*large"
        ):
            converted(results(tmp_path / str(token), [replace(record(), tokens=(token,))]), tmp_path / "a.parquet")


def test_a_score_that_json_has_no_number_for_is_refused(tmp_path: Path) -> None:
    content = "path,caption,score,words,tokens,truncated\na.jpg,a,nan,a,4,true\n"
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(OutputError, match=r"JSON cannot hold a\.jpg: Out of range float"):
        converted(tmp_path / "a.csv", tmp_path / "a.jsonl")


def test_coco_is_a_list_of_ids_and_captions(tmp_path: Path) -> None:
    records = [record("val/COCO_val2014_000000391895.jpg", "a man"), record("5.png", "ein „Hund“\n")]
    out = converted(results(tmp_path / "out", records), tmp_path / "a.json")
    assert json.loads(out.read_bytes()) == [
        {"image_id": 391895, "caption": "a man"},
        {"image_id": 5, "caption": "ein „Hund“\n"},
    ]
    assert len(out.read_bytes().splitlines()) == 4
    assert json.loads(converted(results(tmp_path / "none"), tmp_path / "none.json").read_bytes()) == []


def test_ids_of_images_follow_their_rule(tmp_path: Path) -> None:
    number, stem = image_ids("number"), image_ids("stem")
    assert [number(name) for name in ("a/007.jpg", "b12_3.tar/x4.5.jpg", "2014.parquet#17")] == [7, 5, 17]
    assert [stem(name) for name in ("a/007.jpg", "x.y.jpg", "a.tar/b/c.png", "2014.parquet#17")] == [
        "007",
        "x.y",
        "c",
        "17",
    ]
    with pytest.raises(OutputError, match=r"2014/dog\.jpg has no digits to be its image id: choose --ids stem"):
        number("2014/dog.jpg")


def annotations_of(path: Path, *images: tuple[str, int | str]) -> Path:
    path.write_text(json.dumps({"images": [{"file_name": name, "id": image} for name, image in images]}))
    return path


def test_ids_come_from_the_longest_end_of_a_path_that_annotations_name(tmp_path: Path) -> None:
    path = annotations_of(tmp_path / "captions.json", ("1.jpg", 10), ("val/1.jpg", 11), ("val/0.jpg", 0))
    by_file = image_ids(str(path))
    assert [by_file(name) for name in ("1.jpg", "x/1.jpg", "/data/val/1.jpg", "val/0.jpg")] == [10, 10, 11, 0]
    for unknown in ("0.jpg", "11.jpg", "val/1.jpg/2.jpg"):
        with pytest.raises(
            OutputError, match=rf"{unknown} is no image of .*captions\.json: give the file that lists it"
        ):
            by_file(unknown)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": [7]}', '{"images": [{"id": 7}]}', "[" * 100_000])
def test_what_are_no_annotations_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DataError, match=r"captions\.json: expected number, stem, or a COCO annotations file"):
        image_ids(str(tmp_path / "captions.json"))
    with pytest.raises(DataError, match="numbers: expected number, stem"):
        image_ids("numbers")


def test_annotations_that_name_an_image_twice_are_refused(tmp_path: Path) -> None:
    path = annotations_of(tmp_path / "captions.json", ("1.jpg", 10), ("1.jpg", 11))
    with pytest.raises(DataError, match="has 2 images of 1 file names: expected one for each"):
        image_ids(str(path))


def test_two_images_with_one_id_are_refused_by_name(tmp_path: Path) -> None:
    folder = results(tmp_path / "out", [record("a/1.jpg"), record("b/2.jpg")], [record("b/01.png")])
    with pytest.raises(OutputError, match=r"a/1\.jpg and b/01\.png both have the image id 1: choose other --ids"):
        converted(folder, tmp_path / "a.json")
    assert names(tmp_path) == ["out"]
    path = annotations_of(tmp_path / "ids.json", ("a/1.jpg", 1), ("b/2.jpg", 2), ("b/01.png", "1"))
    out = converted(folder, tmp_path / "a.json", ids=str(path))
    assert [entry["image_id"] for entry in json.loads(out.read_bytes())] == [1, 2, "1"]


def test_coco_results_become_coco_results_again_but_nothing_that_needs_more(tmp_path: Path) -> None:
    source = converted(results(tmp_path / "out", [record("7.jpg", "a"), record("8.jpg", "")]), tmp_path / "a.json")
    assert converted(source, tmp_path / "b.json").read_bytes() == source.read_bytes()
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        with pytest.raises(
            OutputError, match=r"a\.json, record 1 has no score, tokens, words, truncated: from paths and"
        ):
            converted(source, tmp_path / name)
    assert names(tmp_path) == ["a.json", "b.json", "out"]


def test_what_is_not_committed_is_not_converted(tmp_path: Path) -> None:
    folder = results(tmp_path / "out", [record("1.jpg")], [record("2.jpg")])
    (folder / "part-00001.stats.json").unlink()
    assert read(converted(folder, tmp_path / "a.csv")) == [record("1.jpg")]


def test_what_is_committed_meanwhile_is_not_read(tmp_path: Path) -> None:
    """Sidecars are checked before they are written, and what is written is what was checked."""
    (source,) = record_sources(results(tmp_path / "out", [record("1.jpg")]))
    results(tmp_path / "out", [record("2.jpg")])
    assert list(source.read()) == list(source.read()) == [record("1.jpg")]
    assert source.count == 1


def shards(folder: Path, present: Iterable[int], count: int) -> Path:
    for number in present:
        results(folder / f"shard-{number:04d}-of-{count:04d}", [record(f"{number}.jpg")])
    return folder


def test_shards_are_read_in_their_order(tmp_path: Path) -> None:
    folder = shards(tmp_path / "out", [10, 2, 0, 1, *range(3, 10)], 11)
    assert [one.path for one in read(folder)] == [f"{number}.jpg" for number in range(11)]


def test_a_missing_shard_is_an_error_unless_part_of_a_run_is_asked_for(tmp_path: Path) -> None:
    folder = shards(tmp_path / "out", [0, 2], 3)
    with pytest.raises(OutputError, match="lacks shards 1 of 3"):
        converted(folder, tmp_path / "a.csv")
    out = converted(folder, tmp_path / "a.csv", partial=True)
    assert [one.path for one in read(out)] == ["0.jpg", "2.jpg"]


def test_an_existing_file_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    folder = results(tmp_path / "out", [record()])
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(
        OutputError, match=r"a\.csv exists already: choose another --out, or overwrite it with --overwrite"
    ):
        converted(folder, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "mine"
    assert read(converted(folder, tmp_path / "a.csv", overwrite=True)) == [record()]
    assert names(tmp_path) == ["a.csv", "out"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_file_may_be_converted_into_itself(tmp_path: Path, name: str) -> None:
    out = converted(results(tmp_path / "out", [record(), record("b.jpg")]), tmp_path / name)
    assert read(converted(out, out, overwrite=True)) == [record(), record("b.jpg")]


@pytest.mark.parametrize("form", list(SUFFIXES))
def test_a_full_disk_is_one_line_and_leaves_the_old_file_and_nothing_else(tmp_path: Path, form: Format) -> None:
    """The limit on a file's size makes the system refuse a write in the middle, as a full disk does."""
    results(tmp_path / "out", [record(f"{number:0200d}.jpg", os.urandom(100).hex()) for number in range(200)])
    out = tmp_path / f"a{SUFFIXES[form]}"
    out.write_text("old")
    # Without bytecode: the limit would cut that of a module short, too, and leave it so.
    limited = ("env", "PYTHONDONTWRITEBYTECODE=1", "sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *COMMAND)
    arguments = ("convert", tmp_path / "out", "--to", form, "--out", out, "--overwrite", "--quiet")
    done = subprocess.run([*limited, *arguments], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"saccade: error: cannot write {out}: File too large; free some space or choose another place\n"
    )
    assert names(tmp_path) == [out.name, "out"]
    assert out.read_text() == "old"


@pytest.mark.parametrize("form", list(SUFFIXES))
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> Iterator[Record]:
        yield record()
        raise KeyboardInterrupt

    folder = results(tmp_path / "out", [record(), record("b.jpg")])
    monkeypatch.setattr("engine.record_sources.read_records", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(folder, tmp_path / f"a{SUFFIXES[form]}")
    assert names(tmp_path) == ["out"]


def test_folders_above_the_file_are_made(tmp_path: Path) -> None:
    folder = results(tmp_path / "out", [record()])
    assert converted(folder, tmp_path / "new" / "deep" / "a.csv").is_file()
    with pytest.raises(OutputError, match=r"cannot write .*out/run\.json/a\.csv: .*choose another place"):
        converted(folder, folder / "run.json" / "a.csv")


HEAD = "path,caption,score,words,tokens,truncated\n"
LINE = json.dumps(record().as_json())


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", f"{LINE}\n{LINE[:40]}", "is damaged after record 1"),
        ("a.jsonl", f"{LINE}\n\n{LINE}", "is damaged after record 1"),
        ("a.jsonl", "[" * 100_000, "is damaged after record 0"),
        ("a.jsonl", "7\n", "record 1: expected an object, got int"),
        ("a.jsonl", LINE.replace("[4, 5]", '"4 5"'), "record 1: expected a list, got '4 5' in tokens"),
        ("a.jsonl", LINE.replace('"a ball"', "7"), "record 1: expected str, got 7 in caption"),
        ("a.jsonl", '{"caption": "a", "score": 0, "tokens": [], "words": [], "truncated": true}', "'path' is missing"),
        ("a.csv", "", "after record 0 .expected the columns path and caption, got None"),
        ("a.csv", "file,caption\na,b\n", "expected the columns path and caption, got .'file', 'caption'"),
        ("a.csv", "path,caption\na.jpg,a\n", "record 1 has no score, tokens, words, truncated: .* the results folder"),
        (
            "a.csv",
            f"{HEAD}a.jpg,a,-1,a,4,true\nb.jpg,a ball,red,-1,a,4,true\n",
            "after record 1 .line 3 has more cells",
        ),
        ("a.csv", f"{HEAD}a.jpg,a,-1,a,4\n", "record 1 has no truncated"),
        ("a.csv", f"{HEAD}a.jpg,a,-1,a,4,maybe\n", "after record 0 .expected true or false, got 'maybe'"),
        ("a.csv", f"{HEAD}a.jpg,a,low,a,4,true\n", "after record 0 .could not convert string to float: 'low'"),
        ("a.csv", f"{HEAD}a.jpg,a,-1,a,4.5,true\n", "after record 0 .invalid literal for int"),
        ("a.csv", f'{HEAD}a.jpg,"a ball', "after record 0 .line 1: unexpected end of data"),
        ("a.parquet", "PAR1", "a.parquet is damaged after record 0"),
        ("a.parquet", "", "a.parquet is damaged after record 0"),
        ("a.json", "{}", "after record 0 .expected a COCO results list, got dict"),
        (
            "a.json",
            '[{"image_id": 7}]',
            "after record 0 .expected an object with image_id and caption, got .'image_id'",
        ),
        ("a.txt", "a ball", "is no results folder and not named .jsonl, .csv, .parquet, .json"),
    ],
)
def test_a_damaged_source_is_refused_by_name_and_place(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match=f"{problem}") as caught:
        converted(tmp_path / name, tmp_path / "b.jsonl")
    assert str(tmp_path / name) in str(caught.value)
    assert names(tmp_path) == [name]


def test_parquet_without_its_columns_and_parquet_cut_short_are_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    pyarrow_parquet.write_table(arrow.table({"file": ["a.jpg"], "caption": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(OutputError, match=r"other\.parquet, record 1 has no score"):
        read(tmp_path / "other.parquet")
    whole = converted(results(tmp_path / "out", [record(f"{n}.jpg") for n in range(99)]), tmp_path / "a.parquet")
    content = whole.read_bytes()
    for cut in (content[:-9], content[: len(content) // 2], content[:50] + bytes(400) + content[450:]):
        whole.write_bytes(cut)
        with pytest.raises(OutputError, match=r"a\.parquet is damaged after record \d+"):
            read(whole)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds no results \(no run\.json\)"):
        converted(tmp_path, tmp_path / "a.csv")


def test_other_keys_and_columns_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record().as_json() | {"mine": 7, "attention": None}))
    assert read(tmp_path / "a.jsonl") == [record()]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "coco"])
def test_memory_does_not_grow_with_the_records(tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.record_files, "_GROUP", 50_000)

    def peak(parts: int) -> int:
        folder = results(tmp_path / str(parts), *([record(f"{n}-{m}.jpg") for m in range(500)] for n in range(parts)))
        tracemalloc.start()
        converted(folder, tmp_path / f"{parts}{SUFFIXES[form]}", ids="stem")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)  # imports and caches
    assert peak(16) < 1.2 * peak(2) + 20_000


def test_parquet_names_the_extra_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    folder = results(tmp_path / "out", [record()])
    with pytest.raises(
        ConfigError, match=r"Parquet needs pyarrow, which is not installed: pip install 'saccade\[tables\]'"
    ):
        converted(folder, tmp_path / "a.parquet")
    assert names(tmp_path) == ["out"]


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format must be one of jsonl, csv, parquet, coco, txt, got 'xml'"):
        ConversionOptions(format="xml", out=tmp_path)  # type: ignore[arg-type]
    for form, out in (("csv", None), ("txt", tmp_path)):
        with pytest.raises(ConfigError, match=r"every format but txt, .* needs --out"):
            ConversionOptions(format=form, out=out)  # type: ignore[arg-type]


def test_the_command_tells_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = results(tmp_path / "out", [record("1.jpg")], [record("2.jpg")])
    outcome = call(capsys, "convert", folder, "--out", tmp_path / "a.CSV")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.splitlines()[-1] == f"{tmp_path / 'a.CSV'}: 2 records"
    outcome = call(capsys, "convert", folder, "--to", "coco", "--out", tmp_path / "a", "--ids", "stem", "--quiet")
    assert outcome == (0, "", "")
    assert [entry["image_id"] for entry in json.loads((tmp_path / "a").read_bytes())] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give --to, or an --out named .jsonl, .csv, .parquet, .json"),
        (("--out", "captions.txt"), "give --to, or an --out named"),
        (("--to", "csv"), "--to txt has no --out, see --root; every other format needs --out"),
        (("--to", "txt", "--out", "a"), "--to txt has no --out"),
        (("--out", "a.csv", "--ids", "stem"), "--ids is an option of --to coco"),
        (("--out", "a.json", "--keep-suffix"), "--keep-suffix is an option of --to txt"),
        (("--out", "a.json", "--prefix", ""), "--prefix is an option of --to txt"),
        (("--to", "txt", "--ids", "number"), "--ids is an option of --to coco"),
    ],
)
def test_options_of_another_format_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    outcome = call(capsys, "convert", results(tmp_path / "out", [record()]), *arguments)
    assert outcome.code == 2
    assert f"Error: {problem}" in outcome.err


def test_a_conversion_says_how_many_records_there_were(tmp_path: Path) -> None:
    folder = results(tmp_path / "out", [record()] * 3)
    options = ConversionOptions(format="csv", out=tmp_path / "a.csv")
    assert convert(folder, options, Reporter(quiet=True)) == Conversion(records=3)
