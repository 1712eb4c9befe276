"""Published formats of captioned image sets: each reader returns what the files say, image by image, before any choice.

Images lie in folders or inside of uncompressed tars, which are read where they are. Nothing is unpacked or executed.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NamedTuple, NoReturn, TypeVar

from saccade.errors import DataError

T = TypeVar("T")

_SPLIT_OF_KARPATHY = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
_SHARD_IMAGES = ("jpg", "jpeg", "png", "webp")
_SHARD_CAPTIONS = ("txt", "json")
_BRACE_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file inside of an uncompressed tar: `size` bytes from `offset` on."""

    tar: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}, member {self.name}"

    def read(self) -> bytes:
        """The file's bytes, through a handle of its own: safe in many threads at once. Raises OSError."""
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Listed(NamedTuple):
    """An image as an annotation file lists it, by name."""

    split: str
    id: str
    name: str
    captions: Sequence[str]


class Entry(NamedTuple):
    """An image whose file has been found, with its captions as they are written."""

    split: str
    id: str
    source: Path | TarMember
    captions: Sequence[str]


class _Found(NamedTuple):
    member: str  # path below the folder, or inside of the tar
    place: str  # the same after the path of the folder, or of the tar without its .tar
    source: Path | TarMember


class ImageIndex:
    """The files in folders (subfolders too; links to folders are not followed) and tars, to be found by name.

    A name fits the file with just this path below a folder or inside of a tar; or else the one whose path ends in the
    name; or else the one with the same last part.
    """

    def __init__(self, locations: Iterable[str]) -> None:
        self._locations = tuple(locations)
        self._by_last_part: dict[str, list[_Found]] = defaultdict(list)
        for location in map(Path, self._locations):
            for found in _files(location) if location.is_dir() else _members(location):
                self._by_last_part[posixpath.basename(found.member)].append(found)

    def locate(self, images: Iterable[Listed]) -> list[Entry]:
        """The files of all images, in order. Raises DataError where there is none, or more than one that fits."""
        entries, missing, ambiguous = [], [], []
        for image in images:
            sources = self._fitting(posixpath.normpath(image.name))
            if len(sources) == 1:
                entries.append(Entry(image.split, image.id, sources.pop(), image.captions))
            elif sources:
                ambiguous.append(f"{image.name} (is it {' or '.join(sorted(map(str, sources)))}?)")
            else:
                missing.append(image.name)
        where = ", ".join(self._locations) or "no folder"
        refuse(f"images not found in {where}", missing, "add the folder or tar that holds them to images")
        refuse(f"images with several files in {where}", ambiguous, "leave one of each, or name fewer places in images")
        return entries

    def _fitting(self, name: str) -> set[Path | TarMember]:
        candidates = self._by_last_part.get(posixpath.basename(name), [])
        whole = {found.source for found in candidates if found.member == name}
        ending = {found.source for found in candidates if found.place.endswith(f"/{name}")}
        return whole or ending or {found.source for found in candidates}


def refuse(what: str, offenders: Sequence[str], remedy: str) -> None:
    """Raise a DataError that counts the offenders and names the first ones, if there are any."""
    if offenders:
        more = ", ..." if len(offenders) > 3 else ""
        raise DataError(f"{what} ({len(offenders)}): {', '.join(offenders[:3])}{more}; {remedy}")


def tar_members(path: Path) -> list[TarMember]:
    """The regular files of an uncompressed tar. Raises DataError where it is none, damaged or cut short."""
    try:
        path = path.resolve()
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
            members = [
                TarMember(path, posixpath.normpath(member.name), member.offset_data, member.size)
                for member in tar
                if member.isreg()
            ]
            file.seek(tar.offset)  # tarfile ends without a word at a header that it cannot read
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it breaks off or is damaged after the last readable member")
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{path} cannot be read as an uncompressed tar ({error}): correct the path, or fetch the file again"
        ) from error
    return members


def karpathy_images(path: str, *, use_restval: bool) -> list[Listed]:
    """Images of a dataset_*.json; `restval` counts as train or is left out.

    Their ids are COCO's numbers where the file has them, else the file names.
    """
    images = []
    for index, record in enumerate(_value(_json_file(path), "images", list, path)):
        place = f"{path}: images[{index}]"
        split = _value(record, "split", str, place)
        if split not in _SPLIT_OF_KARPATHY:
            expected = ", ".join(_SPLIT_OF_KARPATHY)
            raise DataError(f"{place}: split is {split!r}, expected one of {expected}: correct the file")
        if split == "restval" and not use_restval:
            continue
        name = posixpath.join(str(record.get("filepath", "")), _value(record, "filename", str, place))
        captions = [_sentence(sentence, place) for sentence in _value(record, "sentences", list, place)]
        images.append(Listed(_SPLIT_OF_KARPATHY[split], str(record.get("cocoid", name)), name, captions))
    return images


def _sentence(sentence: Any, place: str) -> str:
    if isinstance(sentence, dict) and "raw" not in sentence:
        return " ".join(map(str, _value(sentence, "tokens", list, place)))
    return _value(sentence, "raw", str, place)


def coco_images(path: str, split: str) -> list[Listed]:
    """Images of a COCO captions annotation file; their ids are COCO's numbers."""
    content = _json_file(path)
    captions: dict[int, list[str]] = {}
    images = []
    for index, record in enumerate(_value(content, "images", list, path)):
        place = f"{path}: images[{index}]"
        number = _value(record, "id", int, place)
        name = _value(record, "file_name", str, place)
        images.append(Listed(split, str(number), name, captions.setdefault(number, [])))
    unlisted = []
    for index, record in enumerate(_value(content, "annotations", list, path)):
        place = f"{path}: annotations[{index}]"
        number = _value(record, "image_id", int, place)
        if number in captions:
            captions[number].append(_value(record, "caption", str, place))
        else:
            unlisted.append(str(number))
    refuse(f"{path}: captions of images that are not listed", unlisted, "add the images or take the captions out")
    return images


def assigned(images: Sequence[Listed], lists: Mapping[str, Sequence[str]]) -> list[Listed]:
    """The images that the lists name, by file name or id, with the split of the list."""
    repeated = [id_ for id_, count in Counter(image.id for image in images).items() if count > 1]
    refuse("ids that the annotation files give twice", repeated, "name each annotation file once")
    known = {image.name: image for image in images} | {image.id: image for image in images}
    unknown = [name for names in lists.values() for name in names if name not in known]
    refuse("images of the split lists without annotations", unknown, "add their annotation file or shorten the lists")
    return [known[name]._replace(split=split) for split, names in lists.items() for name in names]


def listed_names(path: str) -> list[str]:
    """The lines of a text file, without empty ones."""
    return [line.strip() for line in _text(_file(path), path).split("\n") if line.strip()]


def jsonl_entries(path: str, split: str) -> list[Entry]:
    """Images of a .jsonl; their ids are their paths, as the file and the configuration spell them."""
    folder = Path(path).parent
    entries, missing = [], []
    for number, line in enumerate(_text(_file(path), path).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            record = _json(line, place)
            image = folder / _value(record, "image", str, place)
            entries.append(Entry(split, str(image), image.resolve(), _captions(record, place)))
            if not image.is_file():
                missing.append(str(image))
    refuse(f"{path}: images not found", missing, "paths are relative to the .jsonl file; correct them")
    return entries


def shard_entries(patterns: Iterable[str], split: str) -> list[Entry]:
    """Images of WebDataset shards; their ids are the shard's path without .tar and their key."""
    entries, odd = [], []
    for shard in (shard for pattern in patterns for shard in _expanded(pattern)):
        for key, members in _samples(tar_members(Path(shard))).items():
            name = f"{shard.removesuffix('.tar')}/{key}"
            images = [member for extension in _SHARD_IMAGES for member in members.get(extension, [])]
            if len(images) == 1:
                entries.append(Entry(split, name, images[0], _sample_captions(members)))
            else:
                odd.append(f"{name} with {len(images)}")
    refuse("samples without exactly one image", odd, f"give each key one member of {', '.join(_SHARD_IMAGES)}")
    return entries


def _samples(members: Iterable[TarMember]) -> dict[str, dict[str, list[TarMember]]]:
    """Members that matter, by key and extension: a key ends at the first dot of the last part of the path."""
    samples: dict[str, dict[str, list[TarMember]]] = defaultdict(lambda: defaultdict(list))
    for member in members:
        folder, last_part = posixpath.split(member.name)
        stem, _, extension = last_part.partition(".")
        is_content = stem and not stem.startswith("__")  # "__name__" is about the shard; ".name" is a file manager's
        if is_content and extension.lower() in _SHARD_IMAGES + _SHARD_CAPTIONS:
            samples[posixpath.join(folder, stem)][extension.lower()].append(member)
    return samples


def _sample_captions(members: Mapping[str, Sequence[TarMember]]) -> Sequence[str]:
    """The lines of the .txt, or else what the .json calls captions or caption."""
    if "txt" in members:
        text = members["txt"][0]
        return _text(text.read(), str(text)).strip().splitlines()
    if "json" not in members:
        return ()
    place = str(members["json"][0])
    record = _json(members["json"][0].read(), place)
    if isinstance(record, dict) and "caption" in record and "captions" not in record:
        return [_value(record, "caption", str, place)]
    return _captions(record, place)


def _expanded(pattern: str) -> list[str]:
    """`a-{00..02}.tar` as a-00.tar, a-01.tar, a-02.tar."""
    match = _BRACE_RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [path for number in numbers for path in _expanded(f"{head}{number}{tail}")]


def _files(folder: Path) -> Iterator[_Found]:
    root = str(folder.resolve())
    for inside, _, names in os.walk(root, onerror=_refuse_folder):
        for name in names:
            place = f"{inside}/{name}"
            yield _Found(place[len(root) + 1 :], place, Path(place))


def _refuse_folder(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): allow it, or name another folder") from error


def _members(tar: Path) -> Iterator[_Found]:
    for member in tar_members(tar):
        yield _Found(member.name, f"{member.tar.with_suffix('')}/{member.name}", member)


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): relative paths start at the working directory, correct the path"
        ) from error


def _json_file(path: str) -> Any:
    return _json(_file(path), path)


def _json(data: bytes | str, place: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: cannot be read as JSON ({error}): correct the file") from error


def _text(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: cannot be read as UTF-8 ({error}): save it as UTF-8") from error


def _value(record: Any, key: str, kind: type[T], place: str) -> T:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        expected = f"{kind.__name__} {key!r}"
        raise DataError(f"{place}: expected an object with {expected}, got {short_repr(record)}: correct the file")
    return value


def _captions(record: Any, place: str) -> list[str]:
    captions = _value(record, "captions", list, place)
    if not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{place}: expected captions to be a list of strings, got {short_repr(captions)}: correct them")
    return captions
