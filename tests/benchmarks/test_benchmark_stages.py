"""The stages of a batch add up to the whole, and each has its own time and no other's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import benchmarks.stages
from benchmarks.stages import STAGES, StageTimes, Way, measure_stages, send
from benchmarks.stopwatch import Stopwatch
from benchmarks.timed_backend import timed_transfers
from engine.backends.base import Backend, open_backend
from engine.backends.ort import _HostBuffer
from engine.records import Record
from saccade.bundle import Bundle
from saccade.search import SearchOptions
from saccade.vocabulary import Vocabulary
from tests.benchmarks.virtual_time import VirtualTime
from tests.bundles import CPU_BACKENDS, save_patchworks

DELAY_S = 0.020
SEARCH = SearchOptions(max_length=12)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return save_patchworks(tmp_path / "images", 4)


@pytest.fixture(params=["ort"])
def way(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Way]:
    bundle = Bundle.open(tiny_bundle)
    with open_backend(request.param, bundle, threads=1) as backend:
        yield Way(bundle, backend, SEARCH, lambda _: None)


def slow_in(stage: str, way: Way, time: VirtualTime, monkeypatch: pytest.MonkeyPatch) -> Way:
    """The way with a delay that meets one stage, once."""
    delays = iter([DELAY_S])

    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*given: Any, **named: Any) -> Any:
            time.sleep(next(delays, 0.0))
            return function(*given, **named)

        return slow

    if stage == "write":
        return way._replace(write=delayed(way.write))
    if stage == "step":
        begin = way.backend.begin

        def begin_slowly(*given: Any, **named: Any) -> Any:
            decoding = begin(*given, **named)
            monkeypatch.setattr(type(decoding), "advance", delayed(type(decoding).advance))
            return decoding

        monkeypatch.setattr(way.backend, "begin", begin_slowly)
        return way
    owner, name = {
        "read": (Path, "read_bytes"),
        "decode": (benchmarks.stages, "load_image"),
        "upload": (_HostBuffer, "write"),  # pixels are the first that is written
        "encode": (way.backend, "begin"),
        "search": (benchmarks.stages, "search"),
        "download": (_HostBuffer, "read"),
        "detokenise": (Vocabulary, "sentence"),
    }[stage]
    monkeypatch.setattr(owner, name, delayed(getattr(owner, name)))
    return way


@pytest.mark.parametrize("stage", STAGES)
def test_a_delay_of_20_ms_appears_in_its_stage_and_in_no_other(
    stage: str, way: Way, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    time = VirtualTime()
    slow = slow_in(stage, way, time, monkeypatch)
    found = measure_stages(slow, [images], Stopwatch(time), warm_up=0)
    assert found.by_stage_ms == {name: pytest.approx(20 if name == stage else 0, abs=1e-9) for name in STAGES}
    assert found.wall_ms == pytest.approx(20)


@pytest.mark.parametrize("way", CPU_BACKENDS, indirect=True)
def test_the_stages_add_up_to_the_whole_within_five_percent(way: Way, images: list[Path]) -> None:
    found = measure_stages(way, [images] * 8, Stopwatch())
    assert 0.95 * found.wall_ms <= sum(found.by_stage_ms.values()) <= found.wall_ms
    busy = {name for name, spent in found.by_stage_ms.items() if spent > 0}
    assert busy >= {"read", "decode", "encode", "search", "step", "detokenise", "write"}
    # Eager PyTorch copies inside its own code.
    assert busy.issuperset({"upload", "download"}) == (way.backend.description[:7] != "PyTorch")
    assert 1 <= found.steps <= SEARCH.max_length
    assert found.per_step_ms * found.steps == pytest.approx(found.search_total_ms)


def test_steps_are_those_of_the_search_and_records_those_of_the_engine(way: Way, images: list[Path]) -> None:
    written: list[Record] = []
    found = measure_stages(way._replace(write=written.extend), [images], Stopwatch(), warm_up=0)
    assert [record.path for record in written] == list(map(str, images))
    # A caption that ended took a step for <end>; the search goes on until no image can change.
    assert found.steps >= max(len(record.tokens) + (not record.truncated) for record in written)
    assert all(record.caption == way.bundle.vocabulary.sentence(record.tokens) for record in written)


def test_what_is_warmed_up_is_not_counted(way: Way, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime()
    slow = slow_in("encode", way, time, monkeypatch)
    found = measure_stages(slow, [images], Stopwatch(time), warm_up=1)
    assert found.wall_ms == 0


def test_timed_transfers_leave_the_backend_as_it_was(way: Way, images: list[Path]) -> None:
    def captions(backend: Backend) -> list[Record]:
        found: list[Record] = []
        send(way._replace(write=found.extend, backend=backend), images, Stopwatch())
        return found

    before = captions(way.backend)
    watch = Stopwatch()
    with timed_transfers(way.backend, watch) as are_known:
        assert are_known
        assert captions(way.backend) == before
    counted = watch.calls["upload"]
    assert counted == 1
    assert captions(way.backend) == before
    assert watch.calls["upload"] == counted


def test_search_total_is_loop_steps_and_download() -> None:
    times = StageTimes(wall_ms=20, by_stage_ms=dict.fromkeys(STAGES, 2.0), steps=3)
    assert (times.search_total_ms, times.per_step_ms) == (6, 2)
