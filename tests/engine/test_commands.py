"""`saccade caption`, `inspect` and `gallery` on real folders: messy files, interruptions, odd names, wrong options."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.records import Failure, Record
from engine.results import committed_parts, read_failures, read_records, read_run
from saccade.bundle import MANIFEST
from tests.bundles import patchworks, save_patchworks
from tests.commands import COMMAND, call, spawn

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")

FAILING = {
    "bomb.png": "too_large",
    "cut.jpg": "truncated",
    "nothing.jpg": "empty",
    "text.jpg": "not_an_image",
}
READABLE = ("cmyk.jpg", "deep/turned.jpg", "sixteen.png", "upright.jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with six pictures."""
    save_patchworks(tmp_path / "photos", 6)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def mess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What people's folders hold: four pictures that can be read, four that cannot, and other files."""
    folder = tmp_path_factory.mktemp("mess")
    (folder / "deep").mkdir()
    photo = Image.fromarray(patchworks(1, seed=3)[0]).resize((200, 120))
    photo.save(folder / "upright.jpg", quality=100, subsampling=0)
    exif = Image.Exif()
    exif[274] = 6  # to be seen, turn a quarter to the right
    turned = Image.open(folder / "upright.jpg").transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "deep" / "turned.jpg", exif=exif, quality=100, subsampling=0)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)).save(folder / "sixteen.png")
    (folder / "text.jpg").write_text("This is no photo.\n")
    (folder / "nothing.jpg").touch()
    (folder / "cut.jpg").write_bytes((folder / "upright.jpg").read_bytes()[:2000])
    (folder / "notes.txt").write_text("Summer\n")
    (folder / ".hidden.jpg").write_text("")
    (folder / "bomb.png").write_bytes(black_png(30_000, 30_000))
    assert (folder / "bomb.png").stat().st_size < 4e6
    return folder


def black_png(width: int, height: int) -> bytes:
    """A valid PNG in RGB: one compressed stretch of zeros many times over, with the checksum that zeros have."""
    rows = 100
    assert height % rows == 0
    compress = zlib.compressobj(9)
    stretch = compress.compress(bytes(rows * (1 + 3 * width))) + compress.flush(zlib.Z_FULL_FLUSH)
    stretch = stretch[2:]  # without the header of the stream
    adler = struct.pack(">HH", height * (1 + 3 * width) % 65521, 1)
    pixels = b"\x78\xda" + height // rows * stretch + b"\x03\x00" + adler

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def paths_of(out: Path) -> list[str]:
    found: list[Record | Failure] = [*read_records(out), *read_failures(out)]
    return [one.path for one in found]


def captions_of(text: str) -> dict[str, str]:
    return dict(line.split("\t") for line in text.splitlines())


def run_in_process(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command after some code of ours, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}; {COMMAND[-1]}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_bomb_is_a_valid_picture(tmp_path: Path) -> None:
    """Or its refusal would prove nothing."""
    (tmp_path / "black.png").write_bytes(black_png(300, 500))
    with Image.open(tmp_path / "black.png") as image:
        assert (image.size, image.mode, image.getextrema()) == ((300, 500), "RGB", ((0, 0),) * 3)


@needs_proc
def test_a_messy_folder_is_captioned_in_bounded_memory(tiny_bundle: Path, mess: Path, tmp_path: Path) -> None:
    """900 million pixels alone would take 2.7 GB."""
    peak = "import atexit; atexit.register(lambda: sys.stderr.write(open('/proc/self/status').read()))"
    process = run_in_process(
        f"import sys; {peak}", "caption", mess, "--bundle", tiny_bundle, "--out", tmp_path / "out", "--quiet"
    )
    out, err = process.communicate()
    assert (process.returncode, out) == (3, "")
    (peak_kb,) = [int(line.split()[1]) for line in err.splitlines() if line.startswith("VmHWM:")]
    assert peak_kb < 1_000_000
    assert "Traceback" not in err
    found = {failure.path: failure for failure in read_failures(tmp_path / "out")}
    assert {path: one.kind for path, one in found.items()} == {str(mess / n): kind for n, kind in FAILING.items()}
    assert all(failure.error.startswith(failure.path) for failure in found.values())
    records = {record.path: record for record in read_records(tmp_path / "out")}
    assert set(records) == {str(mess / name) for name in READABLE}
    assert all(record.words for record in records.values())


@pytest.mark.parametrize(("allowed", "code"), [("0", 3), ("3", 3), ("4", 0), ("-1", 0)])
def test_failures_end_with_3_unless_allowed(
    tiny_bundle: Path, mess: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], allowed: str, code: int
) -> None:
    command = ("caption", mess, "--bundle", tiny_bundle, "--max-failures", allowed)
    assert call(capsys, *command).code == code
    assert call(capsys, *command, "--out", tmp_path / "out").code == code
    assert call(capsys, *command, "--out", tmp_path / "out").code == code  # the folder's failures count, not today's


def test_captions_go_to_stdout_and_failures_to_stderr(
    tiny_bundle: Path, mess: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = call(capsys, "caption", mess, "--bundle", tiny_bundle)
    captions = captions_of(outcome.out)
    assert set(captions) == {str(mess / name) for name in READABLE}
    for name, kind in FAILING.items():
        assert f"\n{mess / name}: {kind}: " in outcome.err
    assert outcome.err.startswith("backend: OpenVINO ")
    stored = call(capsys, "caption", mess, "--bundle", tiny_bundle, "--out", tmp_path / "out", "--show")
    assert captions_of(stored.out) == captions
    assert {record.path: record.caption for record in read_records(tmp_path / "out")} == captions


def test_a_photo_turned_by_exif_gets_the_caption_of_the_upright_one(
    tiny_bundle: Path, mess: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = captions_of(call(capsys, "caption", mess, "--bundle", tiny_bundle, "--max-failures", "-1").out)
    assert found[str(mess / "deep" / "turned.jpg")] == found[str(mess / "upright.jpg")] != ""


def test_quiet_leaves_only_the_results(tiny_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "caption", photos, "--bundle", tiny_bundle, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert list(captions_of(outcome.out)) == [str(photos / f"{index:02d}.png") for index in range(6)]


def test_the_options_reach_the_search(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = "--beam 4 --n-best 2 --max-length 5 --min-length 2 --length-penalty 0.5 --suppress-unk --attention"
    assert call(capsys, "caption", photos, "--bundle", tiny_bundle, "--out", out, *options.split()).code == 0
    assert read_run(out)["fingerprint"]["search"] == {
        "beam": 4,
        "n_best": 2,
        "max_length": 5,
        "min_length": 2,
        "length_penalty": 0.5,
        "suppress_unk": True,
        "decode_mode": "expected",
        "seed": 0,
    }
    for record in read_records(out):
        assert 2 <= len(record.words) <= 5
        assert "<unk>" not in record.words
        assert len(record.alternatives) == 1
        assert record.attention is not None


def test_run_json_tells_how_the_captions_came_about(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "caption", photos, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    run = read_run(tmp_path / "out")
    assert run["bundle_path"] == str(tiny_bundle)
    assert run["backend"].startswith("OpenVINO ")
    assert run["geometry"] == "squash"
    assert run["working_directory"] == str(Path.cwd())


def test_the_backends_write_the_same_captions(
    tiny_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ort, pytorch = (
        call(capsys, "caption", photos, "--bundle", tiny_bundle, "--backend", name) for name in ("ort", "pytorch")
    )
    assert ort.out == pytorch.out != ""
    assert ort.err.startswith("backend: ONNX Runtime ")
    assert pytorch.err.startswith("backend: PyTorch ")


def test_a_second_run_captions_only_what_is_new(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("caption", photos, "--bundle", tiny_bundle, "--out", tmp_path / "out", "--show")
    assert len(call(capsys, *command).out.splitlines()) == 6
    again = call(capsys, *command)
    assert again.out == ""
    assert "6 captions, 0 failures (6 captions from before)" in again.err
    shutil.copy(photos / "00.png", photos / "new.png")
    assert list(captions_of(call(capsys, *command).out)) == [str(photos / "new.png")]
    assert Counter(paths_of(tmp_path / "out")) == Counter(map(str, photos.iterdir()))


def test_a_run_with_other_options_is_refused_until_told_to_overwrite(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("caption", photos, "--bundle", tiny_bundle, "--out", tmp_path / "out", "--quiet")
    call(capsys, *command)
    other = (*command, "--beam", "2", "--attention")
    refused = call(capsys, *other)
    assert "holds results of another run (attention was False, is True, search.beam was 3, is 2)" in refused.error
    assert "--overwrite" in refused.error
    assert len(paths_of(tmp_path / "out")) == 6
    assert call(capsys, *other, "--overwrite").code == 0
    assert all(record.attention for record in read_records(tmp_path / "out"))
    assert len(paths_of(tmp_path / "out")) == 6


def test_the_batch_and_the_backend_may_change_between_runs(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("caption", "--bundle", tiny_bundle, "--out", tmp_path / "out", "--quiet")
    assert call(capsys, *command, photos / "00.png").code == 0
    assert call(capsys, *command, photos, "--batch", "2", "--backend", "pytorch", "--threads", "1").code == 0
    assert len(paths_of(tmp_path / "out")) == 6


def test_a_folder_without_images_is_an_error_and_leaves_nothing_behind(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    command = ("caption", tmp_path / "empty", "--bundle", tiny_bundle, "--quiet")
    for out in ((), ("--out", tmp_path / "out")):
        assert call(capsys, *command, *out).error.startswith(f"no image found in {tmp_path / 'empty'}: expected")
    assert not (tmp_path / "out").exists()
    call(capsys, "caption", photos, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    call(capsys, *command, "--out", tmp_path / "out", "--overwrite")
    assert len(paths_of(tmp_path / "out")) == 6  # nor does it throw anything away


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--beam", "0"], "beam must be at least 1, got 0"),
        (["--n-best", "4"], r"n_best must be between 1 and beam \(3\), got 4"),
        (["--max-length", "0"], "max_length must be at least 1, got 0"),
        (["--min-length", "12"], "min_length must be between 0 and max_length - 1, got 12"),
        (["--length-penalty", "nan"], "length_penalty must be 0 or more, got nan"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--threads", "-1"], "threads must be 0 or more"),
        (["--beam", "0", "--max-length", "0"], "beam must be .*; max_length must be"),
    ],
)
def test_impossible_options_are_one_line(
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    problem: str,
) -> None:
    outcome = call(capsys, "caption", photos, "--bundle", tiny_bundle, "--out", tmp_path / "out", *options)
    assert re.search(problem, outcome.error)
    assert outcome.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", ["--attention", "--show", "--overwrite", "--n-best 2"])
def test_what_lines_on_stdout_cannot_hold_needs_a_results_folder(
    tiny_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    outcome = call(capsys, "caption", photos, "--bundle", tiny_bundle, *options.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert "need --out" in outcome.err


def test_the_same_relative_path_elsewhere_is_another_image(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(photos, tmp_path / "other"))
    command = ("caption", ".", "--bundle", tiny_bundle, "--out", tmp_path / "out", "--quiet")
    monkeypatch.chdir(photos)
    assert call(capsys, *command).code == 0
    monkeypatch.chdir(other)
    assert "relative_to was" in call(capsys, *command).error
    monkeypatch.chdir(photos)
    assert call(capsys, *command).code == 0


def test_a_results_folder_that_is_not_one_is_refused(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("caption", photos, "--bundle", tiny_bundle, "--quiet")
    for options in ((), ("--overwrite",)):
        outcome = call(capsys, *command, "--out", photos, *options)
        assert "is not empty and holds no results" in outcome.error
    assert len(list(photos.iterdir())) == 6
    assert "cannot be written" in call(capsys, *command, "--out", photos / "00.png" / "out").error


@pytest.fixture
def odd_photo(photos: Path, tmp_path: Path) -> Path:
    """A picture in a folder; no name is UTF-8, and both hold markup, an emoji code and a percent sign."""
    path = tmp_path / os.fsdecode(b"f\xf6lder [b] :fire: %s") / os.fsdecode(b"caf\xe9 [b] :fire: %s.png")
    try:
        path.parent.mkdir()
        shutil.copy(photos / "00.png", path)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    return path


def test_names_that_are_not_utf8_survive_captions_resumption_and_gallery(
    tiny_bundle: Path, odd_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(odd_photo.parent)
    out = Path(os.fsdecode(b"\xf6ut [b] :fire:"))
    outcome = spawn("caption", odd_photo.name, "--bundle", tiny_bundle, "--out", out, "--show")
    assert outcome.code == 0
    assert outcome.out.startswith(f"{odd_photo.name}\t")
    assert "ut [b] :fire:: 1 captions, 0 failures" in outcome.err
    assert paths_of(out) == [odd_photo.name]
    assert read_run(out)["working_directory"] == str(odd_photo.parent)
    again = spawn("caption", odd_photo.name, "--bundle", tiny_bundle, "--out", out, "--show")
    assert (again.code, again.out) == (0, "")
    monkeypatch.chdir(odd_photo.parent.parent)
    gallery = spawn("gallery", odd_photo.parent / out)
    assert (gallery.code, gallery.out) == (0, "")
    page = (odd_photo.parent / out / "gallery.html").read_text("utf-8")
    assert "The image " not in page
    assert json.dumps(odd_photo.name) in page


def test_a_reader_that_leaves_after_one_line_causes_no_traceback(tiny_bundle: Path, photos: Path) -> None:
    for index in range(300):
        (photos / f"{index}.jpg").symlink_to(photos / "00.png")
    process = run_in_process("pass", "caption", photos, "--bundle", tiny_bundle, "--batch", "1", "--quiet")
    assert process.stdout is not None
    assert process.stderr is not None
    assert "\t" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGINT, 130, "saccade: interrupted"), (signal.SIGTERM, 143, "saccade: terminated")],
)
def test_a_stopped_run_says_so_and_is_resumed(
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sent: signal.Signals,
    code: int,
    said: str,
) -> None:
    for index in range(300):
        (photos / f"{index}.jpg").symlink_to(photos / "00.png")
    out = tmp_path / "out"
    # A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    small_parts = f"{heeded}; import engine.run; engine.run.PART_SIZE = 10"
    command = ("caption", photos, "--bundle", tiny_bundle, "--out", out, "--batch", "1", "--quiet")
    process = run_in_process(small_parts, *command)
    while not (out / "part-00001.stats.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(sent)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (code, "")
    assert stderr.strip() == said
    committed = len(committed_parts(out))
    assert 2 <= committed < 30
    assert call(capsys, *command).code == 0
    assert Counter(paths_of(out)) == Counter(map(str, photos.iterdir()))


def test_a_bundle_is_shown_with_its_tensors_and_figures(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "inspect", tiny_bundle)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("compact encoder, soft attention", "4 x 4 places, 160 wide", "20 words", "64 x 64, squash", "CIDEr-D"):
        assert text in outcome.out
    assert json.loads(call(capsys, "inspect", tiny_bundle, "--json").out) == json.loads(
        (tiny_bundle / MANIFEST).read_text("utf-8")
    )


def test_the_name_of_a_bundle_is_no_markup(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "[red]a[" / "red] :fire:"))
    outcome = call(capsys, "inspect", bundle)
    assert outcome.code == 0
    assert "[red]a[/red] :fire:" in outcome.out.replace("\n", "")


def test_a_gallery_shows_the_results(
    tiny_bundle: Path, mess: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mess)
    out = tmp_path / "out"
    call(capsys, "caption", ".", "--bundle", tiny_bundle, "--out", out, "--attention")
    monkeypatch.chdir(tmp_path)
    outcome = call(capsys, "gallery", out, "--limit", "3")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"{out / 'gallery.html'}: 3 images\n"
    page = (out / "gallery.html").read_text("utf-8")
    assert "The image is gone" not in page  # relative paths are found from another folder
    assert "too_large" in page


def test_a_gallery_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no results (no run.json)" in call(capsys, "gallery", tmp_path).error
    assert call(capsys, "gallery", tmp_path, "--limit", "-1").code == 2
