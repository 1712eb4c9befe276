"""Files of strangers: nothing in them is run, nothing is allocated beyond them, and whatever is wrong is one line."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.errors import CheckpointError
from tests.commands import call
from training.foreign_torch import read_torch, state_of

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(6).reshape(2, 3).t(), "c": torch.tensor(1.5).half()}


def read(path: Path) -> Any:
    return read_torch(path, classes=frozenset({"Encoder"}))


def saved(path: Path, content: object = TENSORS, *, is_legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    return path


class Calls:
    """What pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def in_zip(path: Path, content: bytes, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, each in {"data.pkl": content, "version": b"3\n", **others}.items():
            archive.writestr(f"archive/{name}", each)
    return path


def in_old_format(path: Path, content: bytes, *, little_endian: bool = True, storages: bytes = b"") -> Path:
    start = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little_endian})
    path.write_bytes(b"".join(pickle.dumps(each, 2) for each in start) + content + (storages or pickle.dumps([], 2)))
    return path


def hostile(command: str) -> dict[str, bytes]:
    """Pickles that run a command when Python reads them, in all the ways there are."""
    text = command.encode()
    state = {"_parameters": {}, "_modules": {"inner": Calls(os.system, command)}}
    return {
        "REDUCE": pickle.dumps({"encoder": Calls(os.system, command)}, 2),
        "STACK_GLOBAL": pickle.dumps({"encoder": Calls(os.system, command)}, 4),
        "INST": b"(S'" + text + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + text + b"'\no.",
        "eval": pickle.dumps(Calls(eval, f"__import__('os').system({command!r})"), 2),
        "getattr": pickle.dumps(Calls(getattr, {}, "get"), 2),
        "deep": pickle.dumps(OrderedDict(a=[{"b": (state,)}]), 2),
        "BUILD": b"\x80\x02cmodels\nEncoder\n)\x81}U\x0c__setstate__cos\nsystem\nsbU"
        + bytes([len(text)])
        + text
        + b"b.",
        "hub": b"\x80\x02ctorch.hub\nload\nU\x01aU\x01b\x86R.",
        "extension": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("way", hostile(""))
@pytest.mark.parametrize("write", [in_zip, in_old_format])
def test_nothing_in_a_file_is_run(
    way: str, write: Callable[[Path, bytes], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line by name, exit code 1, and no canary."""
    canary, word_map = tmp_path / "canary", tmp_path / "WORDMAP.json"
    word_map.write_text("{}")
    path = write(tmp_path / "bad.pth.tar", hostile(f"touch {canary}")[way])
    outcome = call(capsys, "import", "sgrvinod", path, "--word-map", word_map, "--out", tmp_path / "out")
    assert outcome.error.startswith(f"{path}: refused, and nothing in it was run: it ")
    assert any(name in outcome.error for name in (*("posix.system", "os.system", "builtin", "torch.hub.load"), "EXT1"))
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["options", "dictionary"])
def test_nothing_in_the_pickles_of_the_original_release_is_run(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    np.savez(tmp_path / "model.npz", Wemb=np.zeros((2, 2)))
    for name in ("options", "dictionary"):
        (tmp_path / name).write_bytes(pickle.dumps({}, 0))
    (tmp_path / part).write_bytes(pickle.dumps(Calls(os.system, f"touch {canary}"), 0))
    if part == "dictionary":
        from training.foreign_arctic import read_dictionary

        with pytest.raises(CheckpointError, match=r"refused, and nothing in it was run: it names 'posix\.system'"):
            read_dictionary(tmp_path / part, words=5)
    else:
        outcome = call(
            capsys,
            *("import", "arctic", tmp_path / "model.npz", "--options", tmp_path / "options"),
            *("--dictionary", tmp_path / "dictionary", "--out", tmp_path / "out"),
        )
        assert "options: refused, and nothing in it was run: it names 'posix.system'" in outcome.error
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """Python's own reader runs what ours refuses: the files above are what they are meant to be."""
    canary = tmp_path / "canary"
    pickle.loads(hostile(f"touch {canary}")["REDUCE"])
    assert canary.exists()


@pytest.mark.parametrize("is_legacy", [False, True])
def test_tensors_are_what_torch_saved(is_legacy: bool, tmp_path: Path) -> None:
    """Of several types, transposed, sliced and shared."""
    whole = torch.arange(24.0).reshape(4, 6)
    content = {**TENSORS, "slice": whole[1:, ::2], "whole": whole, "empty": torch.zeros(0, 3), "bool": whole > 3}
    state = state_of(read(saved(tmp_path / "x", content, is_legacy=is_legacy)))
    assert state is not None
    for name, tensor in content.items():
        np.testing.assert_array_equal(state[name], tensor.numpy())


def test_what_torch_would_not_read_either_is_one_line(tmp_path: Path, shared_refusals: dict[str, bytes]) -> None:
    for said, content in shared_refusals.items():
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path / "x")


@pytest.fixture
def shared_refusals(tmp_path: Path) -> dict[str, bytes]:
    text = pickle.dumps("weights", 2)
    in_zip(tmp_path / "big", text, byteorder=b"big")
    in_old_format(tmp_path / "old-big", text, little_endian=False)
    saved(tmp_path / "bf16", {"a": torch.zeros(2, dtype=torch.bfloat16)})
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", text)
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("word/document.xml", text)
    files = {
        r"was written by a big-endian machine: save it again": "big",
        r"was written by a big-endian machine, or": "old-big",
        r"it has numbers of the kind torch\.BFloat16Storage: save them as float32": "bf16",
        r"data\.pkl is compressed or encrypted": "packed",
        r"none that torch\.save wrote: it has no data\.pkl": "other",
    }
    return {said: (tmp_path / name).read_bytes() for said, name in files.items()} | {
        r"was not written by torch\.save": text,
        r"holds no whole pickle": b"GIF89a",
        r"cannot be read": b"",
    }


def test_a_file_of_something_else_is_named(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "data/foreign"
    outcome = call(
        capsys,
        *("import", "sgrvinod", folder / "BEST_checkpoint_coco_str_payload_495B.pth.tar"),
        *("--word-map", folder / "WORDMAP_coco_5_cap_per_img_5_min_word_freq.json", "--out", tmp_path / "out"),
    )
    assert 'payload_495B.pth.tar holds a str, expected a dictionary with "encoder" and "decoder"' in outcome.error


@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_file_that_was_cut_short_anywhere_is_refused(is_legacy: bool, tmp_path: Path) -> None:
    whole = saved(tmp_path / "x", is_legacy=is_legacy).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            read(tmp_path / "x")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(is_legacy=st.booleans(), changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1))
def test_damage_is_a_refusal_or_other_numbers_and_nothing_else(
    is_legacy: bool, changes: list[tuple[int, int]], tmp_path: Path
) -> None:
    content = bytearray(saved(tmp_path / "x", is_legacy=is_legacy).read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    (tmp_path / "x").write_bytes(content)
    with suppress(CheckpointError):
        state_of(read(tmp_path / "x"))


def rebuilt(storage: bytes, first: bytes, shape: bytes, strides: bytes) -> bytes:
    """A pickle of a tensor that lies as it is told, by instructions."""
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + first + shape + strides + b"\x89}tR."


def storage(elements: bytes, view: bytes = b"") -> bytes:
    return b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + elements + view + b"tQ"


def big(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


OVERSIZED = {
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "array of bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "string": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"abc.",
    "storage": rebuilt(storage(big(2**40)), b"K\x00", big(2**40) + b"\x85", b"K\x01\x85"),
    "expanded": rebuilt(storage(b"K\x04"), b"K\x00", big(2**40) + b"\x85", b"K\x00\x85"),
    "product": rebuilt(storage(b"K\x04"), b"K\x00", big(2**40) * 2 + b"\x86", b"K\x00K\x00\x86"),
    "outside": rebuilt(storage(b"K\x04"), b"K\x02", b"K\x03\x85", b"K\x01\x85"),
    "before": rebuilt(storage(b"K\x04"), b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"),
    "backwards": rebuilt(storage(b"K\x04"), b"K\x02", b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
    "view": rebuilt(storage(b"K\x04", b"U\x01vK\x02K\x03\x87"), b"K\x00", b"K\x01\x85", b"K\x01\x85"),
    "axes": rebuilt(storage(b"K\x04"), b"K\x00", b"(" + b"K\x01" * 40 + b"t", b"(" + b"K\x01" * 40 + b"t"),
    "key": b"\x80\x02}" + b"N\x85" * 50 + b"Ns.",
}


@pytest.mark.parametrize("what", OVERSIZED)
@pytest.mark.parametrize("write", [in_zip, in_old_format])
def test_a_size_in_a_file_allocates_nothing(what: str, write: Callable[..., Path], tmp_path: Path) -> None:
    four = struct.pack("<4f", 1, 2, 3, 4)
    others: dict[str, Any] = {"data/0": four}
    if write is in_old_format:
        others = {"storages": pickle.dumps(["0"], 2) + struct.pack("<q", 4) + four}
    path = write(tmp_path / "x", OVERSIZED[what], **others)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_tensor_within_its_storage_is_read(tmp_path: Path) -> None:
    """What is refused above differs from this in its sizes alone."""
    content = b"\x80\x02}U\x01x" + rebuilt(storage(b"K\x04"), b"K\x01", b"K\x03\x85", b"K\x01\x85")[2:-1] + b"s."
    state = state_of(read(in_zip(tmp_path / "x", content, **{"data/0": struct.pack("<4f", 1, 2, 3, 4)})))
    assert state is not None
    assert state["x"].tolist() == [2, 3, 4]


def test_a_view_of_a_storage_is_read(tmp_path: Path) -> None:
    """As files of before torch 0.4 have them: elements 1 to 3 of a storage, and of those the second one on."""
    stored = pickle.dumps(["0"], 2) + struct.pack("<q4f", 4, 1, 2, 3, 4)
    view = storage(b"K\x04", b"U\x01vK\x01K\x03\x87")
    content = b"\x80\x02}U\x01x" + rebuilt(view, b"K\x01", b"K\x02\x85", b"K\x01\x85")[2:-1] + b"s."
    state = state_of(read(in_old_format(tmp_path / "x", content, storages=stored)))
    assert state is not None
    assert state["x"].tolist() == [3, 4]


def test_a_list_that_becomes_a_dictionary_again_and_again_is_not_copied(tmp_path: Path) -> None:
    """A short loop of instructions over one long list would fill the memory."""
    pairs = b"]q\x00(" + b"".join(b"](U\x02%02dNe" % number for number in range(100)) + b"e0"
    again = b"ccollections\nOrderedDict\nh\x00\x85R" * 2000
    path = in_zip(tmp_path / "x", b"\x80\x02" + pairs + again + b".")
    tracemalloc.start()
    try:
        assert read(path) == {}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_modules_that_hold_themselves_end(tmp_path: Path) -> None:
    inner = b"\x80\x02cmodels\nEncoder\n)\x81q\x00}U\x08_modules}(U\x01ah\x00U\x01bh\x00usb."
    assert state_of(read(in_zip(tmp_path / "x", inner))) == {}
