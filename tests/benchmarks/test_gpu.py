"""The benchmark of GPUs, on a backend of the CPU: what it counts, compares and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import saccade.search
from benchmarks import gpu
from benchmarks.gpu import Report, Work, captions, measure_encoder, measure_overlapped, measure_row, measure_side
from benchmarks.scenarios import Subject
from benchmarks.windows import WindowOptions
from engine.backends.base import BACKENDS, open_backend
from saccade.bundle import Bundle
from saccade.search import SearchOptions
from tests.bundles import MAX_LENGTH, patchworks, save_patchworks

PICTURES = patchworks(5, seed=1)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_WINDOWS", WindowOptions(seconds=0.01, least=2, most=2))
    monkeypatch.setattr(gpu, "_search", lambda beam: SearchOptions(beam=beam, max_length=MAX_LENGTH))


def subject(bundle: Bundle, backend: object, beam: int = 3) -> Subject:
    return Subject(bundle, backend, SearchOptions(beam=beam, max_length=MAX_LENGTH))  # type: ignore[arg-type]


def test_captions_do_not_depend_on_the_batch_that_is_filled_up(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with open_backend("pytorch", bundle) as backend:
        found = [captions(subject(bundle, backend), PICTURES, batch) for batch in (1, 2, 5, 8)]
    assert found == [found[0]] * 4
    assert len(found[0]) == 5


def test_a_row_tells_rates_and_how_many_captions_are_those_expected(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with open_backend("pytorch", bundle) as reference, open_backend("ort", bundle) as backend:
        expected = captions(subject(bundle, reference), PICTURES, 5)
        row = measure_row("ort:fp32", subject(bundle, backend), PICTURES, 2, expected)
        wrong = [*expected[:3], (1,), (2,)]
        other = measure_row("ort:fp32", subject(bundle, backend), PICTURES, 4, wrong)
    assert (row.same_words, other.same_words) == (1.0, 0.6)
    assert (row.batch, row.beam, other.batch) == (2, 3, 4)
    assert min(row.encoder.mean, row.host.mean, row.resident.mean, row.overlapped) > 0


def test_the_encoder_alone_does_not_search(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a caption was searched")

    bundle = Bundle.open(tiny_bundle)
    monkeypatch.setattr(Subject, "warm_up", lambda *_: None)
    monkeypatch.setattr(Subject, "caption", refuse)
    monkeypatch.setattr(gpu, "search", refuse)
    with open_backend("ort", bundle) as backend:
        assert measure_encoder(subject(bundle, backend), PICTURES).mean > 0


def test_what_fails_while_it_runs_is_told_of_and_the_rest_goes_on(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(side: str, subject: Subject, pixels: object, batch: int, expected: object) -> object:
        if batch == 2:
            raise RuntimeError("out of memory")
        return real(side, subject, PICTURES, batch, ())

    real = gpu.measure_row
    monkeypatch.setattr(gpu, "measure_row", measured)
    monkeypatch.setattr(gpu, "agreement", lambda *_: 1.0)
    work = Work(bundle=Bundle.open(tiny_bundle), pixels=PICTURES, paths=[], main=(1, 3), expected={3: ()})
    path = tmp_path / "gpu.json"
    measure_side("ort:fp32", work, [(2, 3), (1, 3)], Report(path, {}))
    content = json.loads(path.read_text())
    assert content["unavailable"] == {"ort:fp32, batch 2, beam 3": "out of memory"}
    assert [row["batch"] for row in content["rows"]] == [1]


def test_overlapped_batches_are_all_searched(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    real = saccade.search.search

    def counted(*given: object) -> object:
        found = real(*given)  # type: ignore[arg-type]
        searched.append(len(found))
        return found

    monkeypatch.setattr(gpu, "search", counted)
    bundle = Bundle.open(tiny_bundle)
    with open_backend("ort", bundle) as backend:
        measure_overlapped(subject(bundle, backend), [PICTURES[:2], PICTURES[2:4]], count=3)
    assert searched == [2, 2, 2]


def test_the_file_holds_rows_files_and_what_is_not_available(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = save_patchworks(tmp_path / "images", len(PICTURES))
    bundle = Bundle.open(tiny_bundle)
    with open_backend("pytorch", bundle) as backend:
        expected = {beam: captions(subject(bundle, backend, beam), PICTURES, 5) for beam in (1, 3)}
    work = Work(bundle=bundle, pixels=PICTURES, paths=paths, main=(2, 3), expected=expected)
    path = tmp_path / "results" / "gpu.json"
    report = Report(path, {"machine": {}})
    monkeypatch.setitem(BACKENDS, "ort-cuda", replace(BACKENDS["ort-cuda"], driver="libabsent.so"))
    for side in ("ort:fp32", "ort-cuda:fp32"):
        measure_side(side, work, [(2, 3), (1, 1)], report)
    content = json.loads(path.read_text())
    assert [(row["side"], row["batch"], row["beam"]) for row in content["rows"]] == [
        ("ort:fp32", 2, 3),
        ("ort:fp32", 1, 1),
    ]
    (files,) = content["files"]
    assert (files["side"], files["images"], files["batch"]) == ("ort:fp32", 5, 2)
    assert "libabsent.so" in content["unavailable"]["ort-cuda:fp32"]


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "gpu.json")])
    assert found.exit_code == 1
    assert "sees no GPU, so that nothing was measured" in found.stderr
    assert not list(tmp_path.iterdir())
