"""Captioned photographs: every published format says the same, and what is wrong with a data set is told at once."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.errors import ConfigError, DataError
from saccade.preprocessing import PreprocessSpec, load_image
from saccade.structure import structure, unstructure
from training.dataset_formats import TarMember
from training.datasets import (
    CocoData,
    CocoFiles,
    JsonlData,
    KarpathyData,
    Photo,
    PhotoData,
    PhotoPixels,
    SplitLists,
    TarData,
    read_photos,
)

SPEC = PreprocessSpec(size=8, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CAPTIONS = (("a", "red", "dog"), ("dogs", "don't", "fly"))
WRITTEN = ["A red dog .", "Dogs don't fly!"]

Splits = dict[str, tuple[Photo, ...]]


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start at the working directory."""
    monkeypatch.chdir(tmp_path)


def image_bytes(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: str, content: bytes | str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_images(*paths: str) -> None:
    for shade, path in enumerate(paths):
        write(path, image_bytes(shade))


def write_tar(path: str, members: Mapping[str, bytes | str] | Sequence[tuple[str, bytes | str]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def karpathy(images: Sequence[Mapping[str, Any]], *locations: str, **options: Any) -> KarpathyData:
    """Images by filename and split; each gets WRITTEN unless it brings its own sentences."""
    sentences = [{"raw": text, "tokens": ["unused"]} for text in WRITTEN]
    records = [{"sentences": sentences} | dict(image) for image in images]
    path = write("dataset.json", json.dumps({"images": records, "dataset": "made up"}))
    return KarpathyData(kind="karpathy", annotations=path, images=locations or ("images",), **options)


def coco(path: str, names: Mapping[int, str], *locations: str) -> CocoFiles:
    images = [{"id": number, "file_name": name, "width": 4} for number, name in names.items()]
    annotations = [{"id": 0, "image_id": number, "caption": text} for text in WRITTEN for number in names]
    write(path, json.dumps({"images": images, "annotations": annotations}))
    return CocoFiles(annotations=path, images=locations or ("images",))


def jsonl(train: Sequence[object], validation: Sequence[object] | None = None, **options: Any) -> JsonlData:
    """Lines of train.jsonl and validation.jsonl; by default the latter has one good image of its own."""
    if validation is None:
        write("other.png", image_bytes(99))
        validation = [{"image": "other.png", "captions": WRITTEN}]
    for name, lines in (("train", train), ("validation", validation)):
        write(f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return JsonlData(kind="jsonl", train="train.jsonl", validation="validation.jsonl", **options)


def ids(splits: Splits) -> dict[str, list[str]]:
    return {split: [photo.id for photo in photos] for split, photos in splits.items()}


def shades(photos: Sequence[Photo]) -> list[int]:
    """The shade of red that `write_images` and `image_bytes` gave each photograph: which image it is."""
    return [int(photo.load(SPEC)[0, 0, 0]) for photo in photos]


def problem_of(options: PhotoData) -> str:
    with pytest.raises(DataError) as caught:
        read_photos(options)
    return str(caught.value)


# Real data


@pytest.fixture(scope="module")
def flickr8k(shared: Path) -> Splits:
    folder = shared / "data/flickr8k"
    tars = (str(folder / "flickr8k-00.tar"), str(folder / "flickr8k-01.tar"))
    return read_photos(KarpathyData(kind="karpathy", annotations=str(folder / "dataset_flickr8k.json"), images=tars))


def test_flickr8k_is_read_as_published(flickr8k: Splits) -> None:
    """One train image and the test split are not in the copy."""
    assert {split: len(photos) for split, photos in flickr8k.items()} == {"train": 5999, "validation": 1000}
    assert sum(len(photo.captions) for photos in flickr8k.values() for photo in photos) == 34_995
    first = flickr8k["train"][0]
    assert first.id == "1000268201_693b08cb0e.jpg"
    assert first.captions[1] == ("a", "girl", "going", "into", "a", "wooden", "building")


def test_a_photograph_in_a_tar_is_what_tarfile_extracts(shared: Path, flickr8k: Splits) -> None:
    """A sample of all: indices spread over both tars and both splits."""
    photos = [*flickr8k["train"][::97], *flickr8k["validation"][::97]]
    compared = set()
    for path in (shared / "data/flickr8k").glob("*.tar"):
        with tarfile.open(path) as tar:
            for photo in photos:
                if isinstance(photo.source, TarMember) and photo.source.tar == path:
                    extracted = tar.extractfile(f"images/{photo.id}")
                    assert extracted is not None
                    assert photo.source.read() == extracted.read()
                    compared.add(photo.id)
    assert compared == {photo.id for photo in photos}


def test_coco_annotations_are_split_by_lists_of_ids_and_names(shared: Path) -> None:
    folder = shared / "data/coco_sample"
    content = json.loads((folder / "captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    numbers = sorted(names)
    lists = SplitLists(
        train=write("train.txt", "\n".join(map(str, numbers[:30])) + "\n\n"),
        validation=write("validation.txt", "\n".join(names[number] for number in numbers[30:38])),
    )
    files = CocoFiles(annotations=str(folder / "captions.json"), images=(str(folder / "images"),))
    splits = read_photos(CocoData(kind="coco", train=files, split_lists=lists))
    assert ids(splits) == {"train": [*map(str, numbers[:30])], "validation": [*map(str, numbers[30:38])]}
    for photo in splits["validation"]:
        assert photo.source == (folder / "images" / names[int(photo.id)]).resolve()
        assert len(photo.captions) == sum(a["image_id"] == int(photo.id) for a in content["annotations"]) >= 5


# The formats


def test_karpathys_file_gives_words_and_restval_joins_train() -> None:
    write_images("images/a.png", "images/b.png", "images/c.png", "images/d.png")
    splits = ("train", "restval", "val", "test")
    images = [{"filename": f"{name}.png", "split": split} for name, split in zip("abcd", splits, strict=True)]
    assert ids(read_photos(karpathy(images))) == {
        "train": ["a.png", "b.png"],
        "validation": ["c.png"],
        "test": ["d.png"],
    }
    without = read_photos(karpathy(images, use_restval=False))
    assert ids(without)["train"] == ["a.png"]
    assert without["train"][0].captions == CAPTIONS


def test_karpathys_tokens_stand_in_where_there_is_no_raw_text() -> None:
    write_images("images/a.png", "images/b.png")
    sentences = [{"tokens": ["A", "red", "dog", "."]}]
    with_tokens = {"filename": "a.png", "split": "train", "sentences": sentences}
    images: list[dict[str, Any]] = [with_tokens, {"filename": "b.png", "split": "val"}]
    assert read_photos(karpathy(images))["train"][0].captions == CAPTIONS[:1]


def test_coco_keeps_each_captions_image_and_each_splits_folder() -> None:
    """Two splits may use one file name for two images."""
    write_images("old/1.png", "old/2.png", "new/1.png")
    data = CocoData(
        kind="coco",
        train=coco("train.json", {7: "1.png", 8: "2.png"}, "old"),
        validation=coco("validation.json", {9: "1.png"}, "new"),
    )
    splits = read_photos(data)
    assert ids(splits) == {"train": ["7", "8"], "validation": ["9"]}
    assert [shades(photos) for photos in splits.values()] == [[0, 1], [2]]
    assert {photo.captions for photos in splits.values() for photo in photos} == {CAPTIONS}


def test_karpathys_splits_of_coco_go_by_the_number_of_the_image() -> None:
    """COCO 2014 and 2017 give one image two names, and Karpathy moved images between the official splits."""
    write_images("train2017/000001.png", "val2017/000002.png", "val2017/000003.png")
    wanted = [("train", 1), ("restval", 3), ("val", 2)]
    images = [{"filename": f"COCO_{n}.png", "cocoid": n, "split": split, "filepath": "val2014"} for split, n in wanted]
    data = CocoData(
        kind="coco",
        train=coco("train.json", {1: "000001.png"}, "train2017"),
        validation=coco("validation.json", {2: "000002.png", 3: "000003.png"}, "val2017"),
        karpathy_splits=karpathy(images).annotations,
    )
    splits = read_photos(data)
    assert ids(splits) == {"train": ["1", "3"], "validation": ["2"]}
    assert [shades(photos) for photos in splits.values()] == [[0, 2], [1]]


def test_jsonl_paths_are_relative_to_the_file() -> None:
    write_images("set/images/a.png", "set/b.png")
    write("set/train.jsonl", json.dumps({"image": "images/a.png", "captions": WRITTEN, "licence": 4}) + "\r\n\n")
    # Captions may hold line separators of other sorts than the one between lines.
    line = json.dumps({"image": "b.png", "captions": ["A red\u2028dog."]}, ensure_ascii=False)
    write("set/validation.jsonl", "\ufeff" + line)
    splits = read_photos(JsonlData(kind="jsonl", train="set/train.jsonl", validation="set/validation.jsonl"))
    assert ids(splits) == {"train": ["set/images/a.png"], "validation": ["set/b.png"]}
    assert [photo.captions for (photo,) in splits.values()] == [CAPTIONS, CAPTIONS[:1]]
    assert [shades(photos) for photos in splits.values()] == [[0], [1]]


def test_shards_are_read_by_key() -> None:
    """Lines of a .txt count before the .json; other members, and those about the shard, are ignored."""
    write_tar(
        "train-09.tar",
        {
            "__index__.json": "[1]",
            "./x/1.png": image_bytes(1),
            "x/1.txt": "\n".join(WRITTEN) + "\n",
            "x/1.json": '{"caption": "Not this."}',
            "x/1.seg.png": b"a mask",
        },
    )
    write_tar("train-10.tar", {"1.json": json.dumps({"captions": WRITTEN}), "1.PNG": image_bytes(2)})
    write_tar("validation.tar", {"1.png": image_bytes(3), "1.json": json.dumps({"caption": WRITTEN[0], "url": ""})})
    splits = read_photos(TarData(kind="tar", train=("train-{09..10}.tar",), validation=("validation.tar",)))
    assert ids(splits) == {"train": ["train-09/x/1", "train-10/1"], "validation": ["validation/1"]}
    assert [photo.captions for photo in splits["train"]] == [CAPTIONS, CAPTIONS]
    assert splits["validation"][0].captions == CAPTIONS[:1]
    assert [shades(photos) for photos in splits.values()] == [[1, 2], [3]]


def test_a_range_in_braces_counts_up_with_its_leading_zeros() -> None:
    data = TarData(kind="tar", train=("no-{098..101}.tar",), validation=())
    for shard in ("098", "099", "100", "101"):
        assert f"no-{shard}.tar cannot be read" in problem_of(data)
        write_tar(f"no-{shard}.tar", {f"{shard}.png": image_bytes(0), f"{shard}.txt": "A dog."})
    assert "no image for validation" in problem_of(data)


# Where images are found


@pytest.mark.parametrize("location", ["there", "there.tar"])
@pytest.mark.parametrize("name", ["val2014/a.png", "a.png", "deep/val2014/a.png", "elsewhere/a.png"])
def test_an_image_is_found_by_its_path_or_the_end_of_it_or_its_last_part(name: str, location: str) -> None:
    members = {"deep/val2014/a.png": image_bytes(5), "b.png": image_bytes(6)}
    for member, data in members.items():
        write(f"there/{member}", data)
    write_tar("there.tar", {f"./{member}": data for member, data in members.items()})
    images = [{"filename": name, "split": "train"}, {"filename": "b.png", "split": "val"}]
    assert shades(read_photos(karpathy(images, location))["train"]) == [5]


def test_the_name_of_a_folder_or_tar_tells_equal_names_apart() -> None:
    write_images("data/train2014/1.png")
    write_tar("val2014.tar", {"1.png": image_bytes(7)})
    images = [
        {"filepath": "train2014", "filename": "1.png", "split": "train"},
        {"filepath": "val2014", "filename": "1.png", "split": "val"},
    ]
    splits = read_photos(karpathy(images, "data/train2014", "val2014.tar"))
    assert ids(splits) == {"train": ["train2014/1.png"], "validation": ["val2014/1.png"]}
    assert [shades(photos) for photos in splits.values()] == [[0], [7]]


def test_a_whole_path_counts_before_the_end_of_another() -> None:
    write_images("images/1.png", "images/copies/1.png", "images/2.png")
    images = [{"filename": "1.png", "split": "train"}, {"filename": "2.png", "split": "val"}]
    assert shades(read_photos(karpathy(images))["train"]) == [0]


def test_an_image_with_several_files_is_refused() -> None:
    write_images("images/x/1.png", "images/y/1.png", "images/2.png")
    images = [{"filename": "1.png", "split": "train"}, {"filename": "2.png", "split": "val"}]
    message = problem_of(karpathy(images))
    assert message.startswith("images with several files in images (1): 1.png (is it ")
    assert "x/1.png or " in message


def test_missing_images_are_counted_over_all_splits() -> None:
    write_images("images/here.png")
    names = [("here", "train"), ("b", "train"), ("c", "train"), ("d", "train"), ("e", "val"), ("f", "test")]
    message = problem_of(karpathy([{"filename": f"{name}.png", "split": split} for name, split in names]))
    assert message == (
        "images not found in images (5): b.png, c.png, d.png, ...; add the folder or tar that holds them to images"
    )
    assert "images not found (1): gone.png" in problem_of(jsonl([{"image": "gone.png", "captions": WRITTEN}]))


# What is wrong with a data set


@pytest.mark.parametrize(
    ("captions", "options", "problem"),
    [
        ([], {}, "images without captions (1): a.png"),
        (["A dog.", " ... ", ""], {}, "captions without a word, of images (2): a.png, a.png"),
        (["a " * 51], {}, "captions of more than 50 words, of images (1): a.png"),
        (["a b c d"], {"max_caption_words": 3}, "captions of more than 3 words, of images (1): a.png"),
        (["a b c d"], {"max_caption_words": 3, "long_captions": "drop"}, "images without captions (1): a.png"),
        ("a dog", {}, "train.jsonl, line 1: expected an object with list 'captions', got "),
        (["a dog", None], {}, "train.jsonl, line 1: expected captions to be a list of strings, got ['a dog', None]"),
    ],
)
def test_captions_that_cannot_be_learned_are_refused(captions: object, options: dict[str, Any], problem: str) -> None:
    write_images("a.png")
    assert problem_of(jsonl([{"image": "a.png", "captions": captions}], **options)).startswith(problem)


def test_long_captions_may_be_dropped() -> None:
    write_images("a.png")
    captions = ["a " * 50, "a " * 51, "A dog."]
    data = jsonl([{"image": "a.png", "captions": captions}], long_captions="drop")
    assert read_photos(data)["train"][0].captions == (("a",) * 50, ("a", "dog"))


def test_an_image_listed_twice_is_refused() -> None:
    write_images("a.png", "b.png", "c.png", "d.png", "sub/1.png")
    lines = [{"image": name, "captions": WRITTEN} for name in ("a.png", "b.png", "sub/../a.png", "a.png")]
    assert problem_of(jsonl(lines)) == (
        "images that occur twice (2): a.png and sub/../a.png in train, a.png in train; "
        "give each once, with all its captions"
    )


def test_an_image_in_two_splits_is_refused_by_id_and_by_file() -> None:
    write_images("images/1.png", "images/2.png", "images/3.png", "images/4.png")
    same_id = CocoData(
        kind="coco",
        train=coco("train.json", {1: "1.png", 2: "2.png"}),
        validation=coco("validation.json", {2: "3.png"}),
    )
    assert problem_of(same_id).startswith("images in two splits (1): 2 in train and validation; leave each in one")
    same_file = CocoData(
        kind="coco",
        train=coco("train.json", {1: "1.png", 2: "2.png"}),
        validation=coco("validation.json", {3: "2.png", 4: "4.png"}),
    )
    assert problem_of(same_file).startswith("images in two splits (1): 2 and 3 in train and validation; ")


def test_two_names_that_come_down_to_one_file_are_refused() -> None:
    """The last part of a path is the weakest sign; it must not give one image the captions of another."""
    write_images("images/1.png", "images/2.png")
    images = [{"filename": f"{place}/1.png", "split": "train"} for place in "xy"]
    message = problem_of(karpathy([*images, {"filename": "2.png", "split": "val"}]))
    assert message.startswith("images that occur twice (1): x/1.png and y/1.png in train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_training_needs_must_not_be_empty(split: str) -> None:
    write_images("images/1.png")
    other = {"train": "validation", "val": "train"}[split]
    assert problem_of(karpathy([{"filename": "1.png", "split": split}])).startswith(
        f"the data has no image for {other}"
    )


def test_lists_that_do_not_fit_the_annotations_are_refused() -> None:
    write_images("images/1.png", "images/2.png")
    lists = SplitLists(train=write("train.txt", "1.png\n8.png\n9"), validation=write("validation.txt", "2"))
    files = coco("all.json", {1: "1.png", 2: "2.png"})
    message = problem_of(CocoData(kind="coco", train=files, split_lists=lists))
    assert message.startswith("images of the split lists without annotations (2): 8.png, 9; ")
    message = problem_of(CocoData(kind="coco", train=files, test=files, split_lists=lists))
    assert message.startswith("ids that the annotation files give twice (2): 1, 2; ")


def test_coco_captions_of_images_that_are_not_listed_are_refused() -> None:
    files = coco("train.json", {1: "1.png"})
    content = json.loads(Path("train.json").read_text())
    write("train.json", json.dumps(content | {"images": []}))
    message = problem_of(CocoData(kind="coco", train=files, validation=files))
    assert message.startswith("train.json: captions of images that are not listed (2): 1, 1; ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            None,
            "dataset.json cannot be read (No such file or directory): relative paths start at the working directory",
        ),
        ("{", "dataset.json: cannot be read as JSON ("),
        (b"\xff\xff{", "dataset.json: cannot be read as JSON ("),
        ("[" * 100_000, "dataset.json: cannot be read as JSON ("),
        ("[]", "dataset.json: expected an object with list 'images', got []"),
        ('{"images": 1}', "dataset.json: expected an object with list 'images', got {'images': 1}"),
        ('{"images": [1]}', "dataset.json: images[0]: expected an object with str 'split', got 1"),
        (
            '{"images": [{"split": "dev"}]}',
            "dataset.json: images[0]: split is 'dev', expected one of train, restval, val",
        ),
        ('{"images": [{"split": "val"}]}', "dataset.json: images[0]: expected an object with str 'filename', got "),
    ],
)
def test_a_damaged_annotation_file_is_told_with_the_place(content: bytes | str | None, problem: str) -> None:
    data = karpathy([])
    Path("dataset.json").unlink()
    if content is not None:
        write("dataset.json", content)
    assert problem_of(data).startswith(problem)


def test_text_that_is_not_utf8_is_refused() -> None:
    data = jsonl([])
    write("train.jsonl", "naïve".encode("latin-1"))
    assert problem_of(data).startswith("train.jsonl: cannot be read as UTF-8 (")


def test_a_sample_needs_exactly_one_image() -> None:
    write_tar(
        "train.tar", {"1.png": b"", "1.jpg": b"", "1.txt": "A dog.", "2.txt": "A cat.", "3.png": b"", "3.txt": "A cow."}
    )
    message = problem_of(TarData(kind="tar", train=("train.tar",), validation=()))
    assert message.startswith("samples without exactly one image (2): train/1 with 2, train/2 with 0; ")


def test_a_key_that_comes_twice_in_a_shard_is_refused() -> None:
    write_tar("train.tar", [("1.png", image_bytes(1)), ("1.txt", "A dog."), ("1.png", image_bytes(2))])
    assert "train/1 with 2" in problem_of(TarData(kind="tar", train=("train.tar",), validation=()))


def test_a_shard_in_two_splits_is_refused() -> None:
    write_tar("train.tar", {"1.png": image_bytes(1), "1.txt": "A dog."})
    message = problem_of(TarData(kind="tar", train=("train.tar",), validation=("train.tar",)))
    assert message.startswith("images in two splits (1): train/1 in train and validation")


@pytest.mark.parametrize("kept", [0, 700, 1024, 1500, 2048])
def test_a_tar_that_was_cut_short_is_refused(kept: int) -> None:
    """Even between two members, where tarfile takes it for whole and the rest would be lost in silence."""
    path = write_tar("train.tar", {"1.png": image_bytes(1), "1.txt": "A dog."})
    whole = Path(path).read_bytes()
    assert len(whole) > 2048
    write(path, whole[:kept])
    message = problem_of(TarData(kind="tar", train=(path,), validation=()))
    assert "train.tar cannot be read as an uncompressed tar (" in message


def test_a_compressed_tar_is_refused() -> None:
    with tarfile.open("images.tar", "w:gz"):
        pass
    message = problem_of(karpathy([{"filename": "1.png", "split": "train"}], "images.tar"))
    assert "images.tar cannot be read as an uncompressed tar (" in message


# Pixels


def test_pixels_are_those_of_load_image_in_the_order_asked_for() -> None:
    """As of an array: indices may repeat and count from the end, and a slice may be empty."""
    write_images(*(f"{number}.png" for number in range(12)))
    photos = [Photo(str(number), Path(f"{number}.png"), CAPTIONS) for number in range(12)]
    pixels = PhotoPixels(photos, SPEC)
    reference = np.stack([load_image(photo.source, SPEC) for photo in photos if isinstance(photo.source, Path)])
    assert len(pixels) == 12
    for chosen in (np.array([7, 0, 11, 7, -2]), slice(3, 9), slice(10, 99), slice(0, 0), np.array([], np.int64)):
        found = pixels[chosen]
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, reference[chosen])
    with pytest.raises(IndexError):
        pixels[np.array([12])]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (Path("bad.png"), "image nine (bad.png): not an image"),
        (TarMember(Path("bad.tar"), "x.png", 512, 40), "image nine (bad.tar, member x.png): image of 40 bytes: "),
        (TarMember(Path("gone.tar"), "x.png", 512, 40), "image nine (gone.tar, member x.png): [Errno 2] No such file"),
    ],
    ids=["file", "member", "tar"],
)
def test_an_image_that_cannot_be_read_is_named(source: Path | TarMember, problem: str) -> None:
    write("bad.png", b"no image")
    write_tar("bad.tar", {"x.png": image_bytes(0)[:40]})
    with pytest.raises(DataError) as caught:
        PhotoPixels([Photo("nine", source, CAPTIONS)], SPEC)[0:1]
    assert str(caught.value).startswith(problem)
    assert str(caught.value).endswith("; replace the file or take the image out of the data set")


# Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    data: PhotoData


@pytest.mark.parametrize(
    "data",
    [
        KarpathyData(kind="karpathy", annotations="a.json", images=("i", "t.tar"), long_captions="drop"),
        CocoData(
            kind="coco",
            train=CocoFiles(annotations="a.json", images=("i",)),
            split_lists=SplitLists(train="t.txt", validation="v.txt"),
        ),
        JsonlData(kind="jsonl", train="t.jsonl", validation="v.jsonl", max_caption_words=30),
        TarData(kind="tar", train=("t-{0..9}.tar",), validation=("v.tar",)),
    ],
    ids=lambda data: data.kind,
)
def test_options_are_read_by_their_kind(data: PhotoData) -> None:
    config = Config(data=data)
    assert structure(json.loads(json.dumps(unstructure(config))), Config, source="", error=ConfigError) == config


def test_an_unknown_kind_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="expected kind 'karpathy' or 'coco' or 'jsonl' or 'tar', got 'zip' in data"):
        structure({"data": {"kind": "zip"}}, Config, source="run.toml", error=ConfigError)


def test_options_that_do_not_fit_together_are_refused() -> None:
    files = CocoFiles(annotations="a.json", images=("i",))
    lists = SplitLists(train="t.txt", validation="v.txt")
    with pytest.raises(ConfigError, match="max_caption_words must be at least 1, got 0"):
        CocoData(kind="coco", train=files, validation=files, max_caption_words=0)
    with pytest.raises(ConfigError, match="karpathy_splits and split_lists exclude each other"):
        CocoData(kind="coco", train=files, karpathy_splits="k.json", split_lists=lists)
    with pytest.raises(ConfigError, match="without validation there must be"):
        CocoData(kind="coco", train=files)
