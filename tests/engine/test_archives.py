"""Images in tar archives: all that are there, whatever else is, and nothing that is not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine import archives
from engine.archives import images_in_archive, is_archive
from engine.images import Source
from saccade.errors import ImageError
from tests.engine.places import content, picture

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda plain: plain,
    "gzip": gzip.compress,
    "gzip in two pieces": lambda plain: gzip.compress(plain[:700]) + gzip.compress(plain[700:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def member(name: str, type_: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = type_
    for field, value in fields.items():
        setattr(header, field, value)
    return header


def packed(*members: tuple[tarfile.TarInfo | str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as archive:
        for header, data in members:
            header = member(header) if isinstance(header, str) else header
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def raw_header(name: str, size: int, type_: bytes = tarfile.REGTYPE) -> bytes:
    """A header that claims a size, whatever follows."""
    return member(name, type_, size=size).tobuf(tarfile.GNU_FORMAT)


def with_checksum(header: bytes) -> bytes:
    changed = bytearray(header[:512])
    changed[148:156] = b"        "
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed) + header[512:]


END = bytes(1024)


def found_in(data: bytes, folder: Path | None = None, *, hidden: bool = False) -> dict[str, bytes | str]:
    """Names and bytes or failures; read in place from a file of the folder, or as a stream."""
    path = None
    if folder is not None:
        path = folder / "shard.tar"
        path.write_bytes(data)
    file: io.BufferedReader[Any] = io.BufferedReader(io.BytesIO(data)) if path is None else path.open("rb")
    with file:
        sources = list(images_in_archive(file, "shard.tar", path, hidden=hidden))
    assert len({source.name for source in sources}) == len(sources)
    return {source.name: content(source) for source in sources}


@pytest.fixture(params=["in place", "as a stream"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where archives are written to be read in place, or None to stream them."""
    return tmp_path if request.param == "in place" else None


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_images_come_in_the_order_of_the_archive_with_their_bytes(folder: Path | None, compression: str) -> None:
    members = [(f"{key}.{suffix}", picture(shade)) for shade, key in enumerate("cab") for suffix in ("png", "JPG")]
    data = packed(*members, ("0.json", b"{}"), ("0.cls", b"7"))
    found = found_in(COMPRESSIONS[compression](data), folder)
    assert list(found.items()) == [(f"shard.tar/{name}", image) for name, image in members]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_headers_is_read(folder: Path | None, format_: int) -> None:
    names = ["a.png", "d/" * 40 + "long.png", "ünï.png"]
    names += ["n" * 90 + "/" + "m" * 90 + ".png"] if format_ == tarfile.USTAR_FORMAT else ["n" * 3000 + ".png"]
    data = packed(*((name, picture(shade)) for shade, name in enumerate(names)), format=format_)
    assert found_in(data, folder) == {f"shard.tar/{name}": picture(shade) for shade, name in enumerate(names)}


def test_uncompressed_members_are_not_read_before_their_turn(tmp_path: Path) -> None:
    """A run that goes on skips what is done at the cost of its headers."""
    path = tmp_path / "shard.tar"
    path.write_bytes(packed(("a.png", picture(1)), ("b.png", picture(2))))
    with path.open("rb") as file:
        first, second = images_in_archive(file, "shard.tar", path, hidden=False)
    assert content(second) == picture(2)
    path.write_bytes(packed(("a.png", picture(3)), ("b.png", picture(4))))
    assert content(first) == picture(3)


def test_members_are_read_in_any_order_by_any_thread_with_no_file_kept_open(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(packed(*((f"{shade}.png", picture(shade)) for shade in range(200))))
    with path.open("rb") as file:
        sources = list(images_in_archive(file, "shard.tar", path, hidden=False))
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    random.Random(0).shuffle(sources)
    assert all(content(source) == picture(int(source.name[10:-4])) for source in sources)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_a_shard_that_vanishes_fails_its_images(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(packed(("a.png", picture(1)), ("b.png", picture(2))))
    with path.open("rb") as file:
        first, second = images_in_archive(file, "shard.tar", path, hidden=False)
    path.write_bytes(path.read_bytes()[:540])
    assert content(first) == "truncated"
    path.unlink()
    assert content(second) == "missing"


def test_hidden_members_are_passed_over_unless_asked_for(folder: Path | None) -> None:
    names = ["./a.png", "._a.png", "./.git/b.png", "../c.png", ".d.png"]
    data = packed(*((name, picture(1)) for name in names))
    assert list(found_in(data, folder)) == ["shard.tar/./a.png", "shard.tar/../c.png"]
    assert list(found_in(data, folder, hidden=True)) == [f"shard.tar/{name}" for name in names]


def test_names_are_text_and_never_paths(folder: Path | None, tmp_path: Path) -> None:
    odd = [
        "/etc/passwd.png",
        "../../up.png",
        "a\nb.png",
        "*?[.png",
        "@x.png",
        os.fsdecode(b"caf\xe9.png"),
        "s3://b/c.png",
    ]
    data = packed(*((name, picture(shade)) for shade, name in enumerate(odd)))
    assert found_in(data, folder) == {f"shard.tar/{name}": picture(shade) for shade, name in enumerate(odd)}
    assert {path.name for path in tmp_path.iterdir()} <= {"shard.tar"}


def test_a_name_may_come_twice_in_an_archive(tmp_path: Path) -> None:
    """Both come, with one name: the run keeps the first."""
    data = packed(("a.png", picture(1)), ("a.png", picture(2)))
    file = io.BufferedReader(io.BytesIO(data))
    sources = list(images_in_archive(file, "shard.tar", None, hidden=False))
    assert sources == [Source("shard.tar/a.png", picture(1)), Source("shard.tar/a.png", picture(2))]


@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"Z"])
def test_what_is_no_file_is_a_failed_image(folder: Path | None, type_: bytes) -> None:
    data = packed((member("l.png", type_, linkname="/etc/passwd"), b""), ("b.png", picture(2)))
    assert found_in(data, folder) == {"shard.tar/l.png": "not_a_file", "shard.tar/b.png": picture(2)}


def test_a_folder_named_like_an_image_is_a_folder(folder: Path | None) -> None:
    data = packed((member("f.png", tarfile.DIRTYPE), b""), ("f.png/b.png", picture(2)))
    assert found_in(data, folder) == {"shard.tar/f.png/b.png": picture(2)}


def test_an_empty_member_comes_empty(folder: Path | None) -> None:
    assert found_in(packed(("a.png", b"")), folder) == {"shard.tar/a.png": b""}


def test_a_member_over_the_limit_is_refused_unread(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 2000)
    data = packed(("a.png", bytes(2001)), ("b.png", bytes(2000)))
    assert found_in(data, folder) == {"shard.tar/a.png": "too_large", "shard.tar/b.png": bytes(2000)}


def old_sparse_member(name: str) -> bytes:
    """GNU tar's first way to leave out zeros: 512 bytes at 0 of 4096, said in the header."""
    header = bytearray(raw_header(name, 512, tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"00000000000\0" + b"00000001000\0"
    header[483:495] = b"00000010000\0"
    return with_checksum(bytes(header)) + bytes(512)


def test_a_member_with_holes_is_a_failed_image(folder: Path | None) -> None:
    expected = {"shard.tar/s.png": "unsupported", "shard.tar/b.png": picture(2)}
    assert found_in(old_sparse_member("s.png") + packed(("b.png", picture(2))), folder) == expected
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4096"}
    sparse = member("GNUSparseFile.0/s", pax_headers=records | {"GNU.sparse.name": "s.png"})
    places = b"1\n0\n512\n".ljust(512, b"\0")
    data = packed((sparse, places + bytes(512)), ("b.png", picture(2)), format=tarfile.PAX_FORMAT)
    assert found_in(data, folder) == expected


CUTS = {
    "in a header": 512 + 512 + 100,
    "before a header": 512 + 512,
    "in the data": 512 + 512 + 512 + 30,
    "before the end mark": 2 * (512 + 512),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_truncated_archive_gives_what_is_before_and_then_says_so(
    folder: Path | None, cut: int, compressed: bool
) -> None:
    data = packed(("a.png", picture(1)), ("b.png", picture(2)))
    assert len(picture(1)) < 512
    found = found_in(gzip.compress(data[:cut]) if compressed else data[:cut], folder)
    assert next(iter(found)) == "shard.tar/a.png"
    assert list(found)[-1] == "shard.tar"
    assert (found["shard.tar/a.png"], found["shard.tar"]) == (picture(1), "truncated")
    assert found.get("shard.tar/b.png", "truncated") in ("truncated", picture(2))


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "xz"])
def test_a_truncated_compressed_archive_says_so(folder: Path | None, compression: str) -> None:
    images = [(f"{shade}.png", os.urandom(40_000)) for shade in range(30)]
    whole = COMPRESSIONS[compression](packed(*images))
    found = found_in(whole[: len(whole) * 3 // 4], folder)
    assert found.pop("shard.tar") == "truncated"
    assert 0 < len(found) < 30
    assert list(found.items()) == [(f"shard.tar/{name}", data) for name, data in images[: len(found)]]


def test_a_gzip_archive_whose_sum_is_wrong_is_corrupt(folder: Path | None) -> None:
    data = bytearray(gzip.compress(packed(("a.png", picture(1)))))
    data[-6] ^= 255
    found = found_in(bytes(data), folder)
    assert found["shard.tar"] == "corrupt"


def test_a_damaged_header_ends_an_archive_with_an_error(folder: Path | None) -> None:
    """tarfile alone would take it for the end."""
    data = bytearray(packed(("a.png", picture(1)), ("b.png", picture(2)), ("c.png", picture(3))))
    data[1024 + 5] ^= 255
    assert found_in(bytes(data), folder) == {"shard.tar/a.png": picture(1), "shard.tar": "corrupt"}


def test_damage_of_data_is_the_images_own(folder: Path | None) -> None:
    data = bytearray(packed(("a.png", picture(1)), ("b.png", picture(2))))
    data[530] ^= 255
    found = found_in(bytes(data), folder)
    assert list(found) == ["shard.tar/a.png", "shard.tar/b.png"]
    assert found["shard.tar/a.png"] != picture(1)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "truncated"),
        (b"short", "truncated"),
        (b"no archive " * 100, "corrupt"),
        (gzip.compress(b"no archive " * 100), "corrupt"),
        (b"\x1f\x8b\x08" + bytes(600), "corrupt"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "unsupported" if sys.version_info < (3, 14) else "corrupt"),
    ],
)
def test_what_is_no_archive_is_an_error(folder: Path | None, data: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=r"^shard\.tar cannot be read \(") as error:
        found_in(data, folder)
    assert error.value.kind == kind


def test_an_empty_archive_has_no_images(folder: Path | None) -> None:
    assert found_in(packed(), folder) == {}


HOSTILE = {
    "a name longer than the memory": raw_header("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME),
    "records longer than the memory": raw_header("pax", 1 << 33, tarfile.XHDTYPE),
    "a negative size": raw_header("a.png", 0)[:124] + struct.pack(">12s", b"\xff" * 10 + b"\xfe\x00") + bytes(376),
    "headers of headers without end": raw_header("pax", 0, tarfile.XHDTYPE) * 5000,
    "long names of long names": (raw_header("l", 512, tarfile.GNUTYPE_LONGNAME) + bytes(512)) * 5000,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_ends_an_archive_in_bounded_memory(folder: Path | None, hostile: bytes) -> None:
    data = packed(("a.png", picture(1)))[:1024] + with_checksum(hostile) + END
    tracemalloc.start()
    try:
        found = found_in(data, folder)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000 + 3 * len(data)
    finally:
        tracemalloc.stop()
    assert found == {"shard.tar/a.png": picture(1), "shard.tar": "corrupt"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", ["-512", "-1024", "-99999999"])
def test_headers_that_lead_back_do_not_go_round_for_ever(folder: Path | None, size: str) -> None:
    record = f"{len(f' size={size}') + 3} size={size}\n".encode()
    pax = raw_header("pax", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")
    data = packed(("a.png", picture(1)))[:1024] + pax + raw_header("b.txt", 0) + END
    found = found_in(data, folder)
    assert found.pop("shard.tar/a.png") == picture(1)
    assert set(found.values()) <= {"corrupt", "truncated"}
    assert found


def test_memory_does_not_grow_with_the_members(folder: Path | None) -> None:
    data = packed(*((f"{number}.png", b"") for number in range(3000)))
    path = None if folder is None else folder / "shard.tar"
    if path:
        path.write_bytes(data)
    file: io.BufferedReader[Any] = path.open("rb") if path else io.BufferedReader(io.BytesIO(data))
    tracemalloc.start()
    try:
        with file:
            assert sum(1 for _ in images_in_archive(file, "shard.tar", path, hidden=False)) == 3000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_two_thousand_mutations_raise_nothing_but_image_errors(tmp_path: Path) -> None:
    generator = random.Random(1)
    plain = packed(("a.png", picture(1)), ("n" * 200 + ".png", picture(2)), format=tarfile.PAX_FORMAT)[:6144]
    for round_ in range(2000):
        data = bytearray(plain)
        for _ in range(generator.randint(1, 5)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        cut = data[: generator.randrange(len(data))] if round_ % 4 == 0 else data
        with suppress(ImageError):
            found_in(bytes(cut), tmp_path if round_ % 2 else None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((f"a.{suffix}", True) for suffix in ("tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst")),
        *((name, False) for name in ("a.gz", "tar", "a.tar.jpg", "a.zip", "a.star.gz")),
        ("A.TAR", True),
    ],
)
def test_archives_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_archive(name) is expected
