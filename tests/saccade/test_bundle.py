"""A bundle is whole or refused, in one line that says what was found, what was expected and what to do."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from saccade.bundle import CHECKPOINT, ENCODER, MANIFEST, STEP, VOCABULARY, Bundle, file_entries
from saccade.errors import BundleError
from tests.bundles import MAX_LENGTH, SPEC
from tests.bundles import VOCABULARY as WORDS
from tests.commands import call, spawn

FILES = (CHECKPOINT, ENCODER, STEP, VOCABULARY)
Damage = Callable[[Path], object]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def manifest_of(bundle: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((bundle / MANIFEST).read_text("utf-8"))
    return values


def rewrite(name: str, change: Callable[[Any], Any], *, fix_hash: bool = False) -> Damage:
    """Change the JSON of a file; `fix_hash` lets the manifest agree with it."""

    def damage(bundle: Path) -> None:
        values = json.loads((bundle / name).read_text("utf-8"))
        change(values)
        (bundle / name).write_text(json.dumps(values), "utf-8")
        if fix_hash:
            entry = file_entries(bundle)[name]
            fixed = manifest_of(bundle)
            fixed["files"][name] = {"bytes": entry.bytes, "sha256": entry.sha256}
            (bundle / MANIFEST).write_text(json.dumps(fixed), "utf-8")

    return damage


def manifest(change: Callable[[Any], Any]) -> Damage:
    return rewrite(MANIFEST, change)


def vocabulary(change: Callable[[Any], Any]) -> Damage:
    return rewrite(VOCABULARY, change, fix_hash=True)


def flip(name: str, place: float) -> Damage:
    def damage(bundle: Path) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        (bundle / name).write_bytes(content)

    return damage


def cut(name: str, count: int) -> Damage:
    return lambda bundle: (bundle / name).write_bytes((bundle / name).read_bytes()[:count]) and None


def text(name: str, content: str) -> Damage:
    return lambda bundle: (bundle / name).write_text(content)


def remove(name: str) -> Damage:
    return lambda bundle: (bundle / name).unlink()


def list_file(manifest: dict[str, Any], *, name: str) -> None:
    manifest["files"][name] = manifest["files"][STEP]


DAMAGES: dict[str, tuple[Damage, str]] = {
    **{
        f"{name} with its {where} bit flipped": (
            flip(name, place),
            rf"{name} is damaged or was changed: SHA-256 .*copy",
        )
        for name in FILES
        for where, place in {"first": 0.0, "middle": 0.5, "last": 1.0}.items()
    },
    **{f"{name} missing": (remove(name), f"{name} is missing: the bundle is incomplete") for name in FILES},
    **{f"{name} cut": (cut(name, 100), f"{name} has 100 bytes, the manifest says [0-9]+: copy") for name in FILES},
    "no manifest": (remove(MANIFEST), r"no bundle \(no manifest.json in it\): give a folder that `saccade export`"),
    "manifest cut": (cut(MANIFEST, 100), "manifest.json cannot be read as JSON .*: export the bundle again"),
    "manifest empty": (cut(MANIFEST, 0), "manifest.json cannot be read as JSON"),
    "manifest deep": (text(MANIFEST, "[" * 100_000), "manifest.json cannot be read as JSON"),
    "manifest no UTF-8": (flip(MANIFEST, 0.0), "manifest.json cannot be read as JSON"),
    "manifest a list": (text(MANIFEST, "[1]"), "bundle format None, this version of saccade reads format 1"),
    "newer version": (manifest(lambda m: m.update(format_version=2)), "bundle format 2, .* reads format 1: export"),
    "version as text": (manifest(lambda m: m.update(format_version="1")), "bundle format '1', .* reads format 1"),
    "version as truth": (manifest(lambda m: m.update(format_version=True)), "expected int, got True in format_"),
    "version missing": (manifest(lambda m: m.pop("format_version")), "bundle format None"),
    "key missing": (manifest(lambda m: m.pop("opset")), "manifest.json: 'opset' is missing$"),
    "key unknown": (manifest(lambda m: m.update(colour=1)), "manifest.json: unknown key colour$"),
    "key wrong": (manifest(lambda m: m.update(opset="20")), "manifest.json: expected int, got '20' in opset$"),
    "several keys wrong": (
        manifest(lambda m: (m.pop("errors"), m["dimensions"].update(rows=2.5))),
        r"expected int, got 2\.5 in dimensions\.rows; 'errors' is missing$",
    ),
    "tensor wrong": (
        manifest(lambda m: m["graphs"]["step"]["inputs"][0].update(shape="images")),
        r"expected a list, got 'images' in graphs\['step'\]\.inputs\[0\]\.shape$",
    ),
    "preprocessing wrong": (
        manifest(lambda m: m["preprocessing"].update(size=0)),
        "size is 0, expected an integer in 1..1024 in preprocessing",
    ),
    "graph missing": (manifest(lambda m: m["graphs"].pop("step")), "graph 'step' is missing"),
    "file unlisted": (manifest(lambda m: m["files"].pop(STEP)), "step.onnx is not listed under files"),
    "vocabulary unlisted": (
        manifest(lambda m: m["files"].pop(VOCABULARY)),
        "vocabulary.json is not listed under files",
    ),
    "graph elsewhere": (
        manifest(lambda m: m["graphs"]["encoder"].update(file="../encoder.onnx")),
        "../encoder.onnx is not listed under files",
    ),
    **{
        f"file {name!r}": (
            manifest(partial(list_file, name=name)),
            f"file {name!r} leaves the bundle",
        )
        for name in ("../step.onnx", "/etc/passwd", "plans/../../step.onnx", "..", ".", "")
    },
    "fewer words": (
        vocabulary(lambda v: v["words"].pop()),
        r"vocabulary\.json has 19 words, the graphs were exported for 20: it belongs to another model",
    ),
    "more words": (vocabulary(lambda v: v["words"].append("new")), "vocabulary.json has 21 words, .* exported for 20"),
    "words twice": (
        vocabulary(lambda v: v["words"].append("cat")),
        "vocabulary.json: invalid vocabulary: 1 words occur",
    ),
    "words no list": (vocabulary(lambda v: v.update(words={})), "vocabulary.json: words must be a list"),
    "vocabulary empty": (vocabulary(lambda v: v.clear()), "vocabulary.json: expected an object with pad, .* found"),
    "other special ids": (
        vocabulary(lambda v: v.update(pad=4)),
        r"vocabulary\.json has special ids .*'pad': 4.*, the manifest says .*'pad': 0",
    ),
    "other special ids in the manifest": (
        manifest(lambda m: m["special"].update(end=3, unk=2)),
        "special ids .*'end': 2.*, the manifest says .*'end': 3",
    ),
    "other number of words in the manifest": (
        manifest(lambda m: m["dimensions"].update(words=21)),
        r"word_bias of the step graph is \(20,\), dimensions and preprocessing say \(21,\): export",
    ),
    "other size of images": (
        manifest(lambda m: m["preprocessing"].update(size=32)),
        r"pixels of the encoder graph is \('images', 64, 64, 3\), dimensions and preprocessing say \(32, 32, 3\)",
    ),
    "other grid": (manifest(lambda m: m["dimensions"].update(rows=2)), r"annotations of .* say \(8, 160\).*keys of"),
    "no longest caption": (manifest(lambda m: m.update(max_length=0)), "max_length must be at least 1, got 0"),
}
damaged = pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)


def test_a_whole_bundle_opens_as_it_was_exported(tiny_bundle: Path) -> None:
    opened = Bundle.open(str(tiny_bundle))
    assert opened.vocabulary == WORDS
    assert opened.manifest.preprocessing == SPEC
    assert opened.manifest.max_length == MAX_LENGTH
    assert set(opened.manifest.files) == set(FILES)
    assert opened.graph("encoder").file == ENCODER
    assert (tiny_bundle / opened.graph("step").file).is_file()
    assert max(opened.manifest.errors.values()) < 1e-4


@damaged
def test_a_damaged_bundle_does_not_open(bundle: Path, damage: Damage, problem: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=problem) as caught:
        Bundle.open(bundle)
    assert str(bundle) in str(caught.value)


@damaged
def test_the_commands_say_in_one_line_what_is_wrong(
    bundle: Path, capsys: pytest.CaptureFixture[str], damage: Damage, problem: str
) -> None:
    damage(bundle)
    for arguments in (("inspect", bundle), ("caption", bundle, "--bundle", bundle), ("doctor", "--bundle", bundle)):
        outcome = call(capsys, *arguments)
        assert re.search(problem, outcome.error)
        assert outcome.out == ""


@pytest.mark.parametrize("name", ["newer version", "fewer words", "step.onnx missing"])
def test_the_same_holds_for_a_process_of_its_own(bundle: Path, name: str) -> None:
    damage, problem = DAMAGES[name]
    damage(bundle)
    outcome = spawn("caption", bundle, "--bundle", bundle)
    assert re.search(problem, outcome.error)
    assert outcome.out == ""


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent is no bundle \(no such folder\): give a folder"):
        Bundle.open(tmp_path / "absent")


def test_a_file_is_no_bundle(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is no bundle \(no such folder\): give a folder"):
        Bundle.open(tiny_bundle / MANIFEST)


def test_files_that_the_manifest_does_not_list_are_left_alone(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    (bundle / "plans").mkdir()
    Bundle.open(bundle)


def test_the_fingerprint_follows_the_contents_and_not_the_place(bundle: Path, tiny_bundle: Path) -> None:
    fingerprint = Bundle.open(bundle).fingerprint
    assert fingerprint == Bundle.open(tiny_bundle).fingerprint
    manifest(lambda m: m["preprocessing"].update(exif_transpose=False))(bundle)
    turned = Bundle.open(bundle).fingerprint
    vocabulary(lambda v: v.update(words=[*WORDS.words[:4], *reversed(WORDS.words[4:])]))(bundle)
    assert len({fingerprint, turned, Bundle.open(bundle).fingerprint}) == 3
