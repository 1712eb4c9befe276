"""`saccade benchmark` on a real bundle: what runs is measured, what does not is told of."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.benchmark_results import Benchmark, read, write
from benchmarks.machine import MemoryUse, forget_peak, peak_mib
from benchmarks.pictures import forget, is_cached, pictures_of
from benchmarks.scenarios import FromFiles, InARow, Pixels, Subject
from benchmarks.stages import STAGES
from benchmarks.stopwatch import Stopwatch
from benchmarks.sweep import sweep
from benchmarks.sweep_options import SweepOptions
from benchmarks.windows import WindowOptions
from engine.backends.base import open_backend
from saccade.bundle import Bundle
from saccade.cli import main
from saccade.errors import DataError
from saccade.hypotheses import Hypothesis
from saccade.progress import Reporter
from saccade.search import SearchOptions
from tests.benchmarks.virtual_time import VirtualTime
from tests.bundles import SPEC, patchworks, save_patchworks

OPTIONS = SweepOptions(
    backends=("ort",),
    batches=(2,),
    beams=(1,),
    scenarios=("offline",),
    windows=WindowOptions(seconds=0.01, least=2, most=3),
)
QUICK = ("--seconds", "0.01", "--windows", "2", "--quiet")


def run(*arguments: object) -> int:
    try:
        main(["benchmark", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_patchworks(tmp_path / "images", 6)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small sweep."""
    folder = tmp_path_factory.mktemp("benchmark")
    save_patchworks(folder / "images", 6)
    code = run(
        *(tiny_bundle, "--backend", "ort,pytorch", "--precision", "fp32,bf16", "--batch", "1,4", "--beam", "1,2"),
        *("--scenario", "all", "--images", folder / "images", "--rate", "30", "--hold-s", "0.3"),
        *("--out", folder / "out", *QUICK),
    )
    assert code == 0
    return folder / "out"


def rows(found: Benchmark) -> set[tuple[Any, ...]]:
    return {row.key for row in found.rows}


def test_every_configuration_has_a_row_and_what_does_not_run_a_reason(measured: Path) -> None:
    found = read(measured / "benchmark.json")
    loads = [("single-stream", 1), ("offline", 1), ("offline", 4), ("server", 4)]
    assert rows(found) == {
        (scenario, backend, "fp32", batch, beam)
        for backend in ("ort", "pytorch")
        for beam in (1, 2)
        for scenario, batch in loads
    }
    assert len(found.rows) == 16
    assert [one.name for one in found.unavailable] == ["ort bf16", "pytorch bf16"]
    assert all("not bf16" in one.reason for one in found.unavailable)


def test_figures_are_those_of_the_captions(measured: Path, tiny_bundle: Path) -> None:
    found = read(measured / "benchmark.json")
    bundle = Bundle.open(tiny_bundle)
    with open_backend("ort", bundle) as backend:
        subject = Subject(bundle, backend, SearchOptions(beam=2, max_length=bundle.manifest.max_length))
        words = [len(one.tokens) for one in subject.caption(patchworks(6, seed=1))]
    (row,) = (row for row in found.rows if row.key == ("offline", "ort", "fp32", 1, 2))
    assert row.images_per_s
    assert min(words) <= row.words <= max(words)
    assert row.tokens_per_s == pytest.approx(row.images_per_s.mean * row.words)
    assert row.latency.mean_ms > 0  # measured in windows of its own: not to be compared with the rate of a busy machine
    assert row.first_run_s > 0
    assert 50 < row.peak_mib < 10_000
    assert found.fingerprint == bundle.fingerprint


def test_offline_rows_have_stages_and_levels(measured: Path) -> None:
    for row in read(measured / "benchmark.json").rows:
        if row.scenario == "offline":
            assert row.stages
            assert tuple(row.stages.by_stage_ms) == STAGES
            assert row.levels["host"] == row.images_per_s
            assert "files-warm" in row.levels
            if row.backend == "ort":
                assert row.levels["device"].mean >= row.levels["host"].mean
            else:
                assert "device" not in row.levels
        else:
            assert (row.stages, row.levels) == (None, {})
            assert (row.server is not None) == (row.scenario == "server")


def test_a_server_holds_the_rate_that_is_asked_for(measured: Path) -> None:
    for row in read(measured / "benchmark.json").rows:
        if row.server:
            assert (row.server.held.rate, row.server.held.requests, row.server.held.lost) == (30, 9, 0)


def test_a_page_and_markdown_lie_beside_the_file(measured: Path) -> None:
    assert {path.name for path in measured.iterdir()} == {"benchmark.html", "benchmark.md", "benchmark.json"}
    assert "## Stages of a batch" in (measured / "benchmark.md").read_text()
    assert "Throughput against batch" in (measured / "benchmark.html").read_text()


def test_without_images_random_ones_are_captioned_and_that_is_said(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_bundle, "--backend", "ort", "--scenario", "single-stream", "--json", *QUICK) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == "64 random images, JPEG of 640 x 480 pixels"
    assert [row["scenario"] for row in found["rows"]] == ["single-stream"]
    assert len(found["rows"][0]["latency"]["by_percent_ms"]) == 101


def test_two_files_are_compared(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = measured / "benchmark.json"
    assert run("--compare", one, one, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 12
    assert {pair["value"] for pair in found} == {1.0}
    other = read(one)
    write(replace(other, machine=replace(other.machine, processor="Another")), tmp_path / "other.json")
    assert run("--compare", one, tmp_path / "other.json") == 1
    assert "not comparable: hardware" in capsys.readouterr().err
    assert run("--compare", one, tmp_path / "other.json", "--force") == 0
    assert "no difference seen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--backend", "trtt"], "'trtt' is not one of trt,"),
        (["--precision", "fp8"], "'fp8' is not one of fp32"),
        (["--batch", "1,0"], "'0' is not a number above 0"),
        (["--scenario", "offline,online"], "'online' is not one of"),
        (["--rate", "fast"], "'fast' is neither a number above 0 nor a percentage"),
        (["--rate", "0%"], "'0%' is neither"),
        (["--windows", "1"], "1 is not in the range x>=2"),
        ([], "Missing argument 'BUNDLE'"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert problem in capsys.readouterr().err


def test_a_bundle_that_is_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "absent") == 1
    assert "no bundle" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    paths = save_patchworks(tmp_path, 3)
    paths[1].write_bytes(b"no image")
    with pictures_of(tmp_path, SPEC) as pictures:
        assert pictures.paths == (paths[0], paths[2])
        assert (pictures.pixels == patchworks(3, seed=1)[[0, 2]]).all()
        assert [len(batch) for batch in pictures.path_batches(4)] == [4]
        assert (pictures.batches(4)[0] == pictures.pixels[[0, 1, 0, 1]]).all()
    for path in paths:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image that can be read"), pictures_of(tmp_path, SPEC):
        pass


def test_random_images_are_the_same_every_time_and_gone_afterwards() -> None:
    with pictures_of(None, SPEC, count=3) as one, pictures_of(None, SPEC, count=3) as other:
        assert one.digest == other.digest
        assert len({picture.tobytes() for picture in one.pixels}) == 3
    assert not any(path.exists() for path in one.paths)


def test_dropped_files_are_not_in_memory(images: Path) -> None:
    paths = sorted(images.iterdir())
    if not forget(paths):
        pytest.skip("this file system keeps files in memory")
    assert not is_cached(paths[0])
    paths[0].read_bytes()
    assert is_cached(paths[0])


def test_files_are_captioned_by_the_whole_engine_and_the_slow_stage_is_named(
    tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import captioner
    from saccade.preprocessing import load_image

    def slow(*given: Any, **named: Any) -> Any:
        time.sleep(0.3)
        return load_image(*given, **named)

    bundle = Bundle.open(tiny_bundle)
    with open_backend("ort", bundle) as backend, pictures_of(images, SPEC) as pictures:
        monkeypatch.setattr(captioner, "load_image", slow)
        files = FromFiles(Subject(bundle, backend, SearchOptions(beam=1, max_length=2)), pictures, batch=2, cold=False)
        assert files.window(0.01) < 8 / 0.3  # at most eight loaders
        assert files.bottleneck == "decode"


def test_a_system_that_keeps_its_files_has_no_cold_level(
    tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.scenario_rows.forget", lambda _: False)
    with pictures_of(images, SPEC) as pictures:
        found = sweep(Bundle.open(tiny_bundle), pictures, OPTIONS, Reporter(quiet=True))
    (row,) = found.rows
    assert set(row.levels) == {"device", "host", "files-warm"}
    assert "6 files are 3.0 batches: runs are mostly their beginnings and ends; give more" in row.warnings


def test_warm_up_is_not_in_the_rate(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    clock = VirtualTime()
    with open_backend("ort", bundle) as backend:
        captioned = 0

        class Slow(Subject):
            """Every batch takes a second, and the first three two more."""

            def caption(self, pixels: Pixels) -> list[Hypothesis]:
                nonlocal captioned
                captioned += 1
                clock.sleep(3 if captioned <= 3 else 1)
                return super().caption(pixels)

        subject = Slow(bundle, backend, SearchOptions(beam=1, max_length=2))
        row = InARow(subject, [patchworks(2, seed=0)], Stopwatch(), clock=clock)
        assert [row.window(4), row.window(4)] == [2, 2]
    assert captioned == 3 + 4 + 1 + 4
    assert row.tally.captions == 2 * len(row.tally.seconds) == 16


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is forgotten by Linux")
def test_every_backend_is_told_the_memory_it_took_itself() -> None:
    forget_peak()
    bare = peak_mib()
    one = MemoryUse(bare_mib=bare)
    block = bytearray(b"x") * (64 << 20)
    assert 60 < one.peak_mib() - bare < 90
    other = MemoryUse(bare_mib=bare)
    assert other.peak_mib() - bare < 30
    assert len(block) == 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is forgotten by Linux")
def test_the_peak_of_memory_begins_again() -> None:
    forget_peak()
    before = peak_mib()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_mib() > before + 50
    del block
    forget_peak()
    assert peak_mib() < before + 30
