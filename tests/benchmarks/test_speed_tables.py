"""The tables of docs/benchmarks.md say what the result files say. All figures here are made up."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.benchmark_results import SCHEMA, Benchmark, Load, Row, Server, Unavailable, latency_of, write
from benchmarks.results_page import renewed
from benchmarks.windows import Ratio, spread_of
from tests.benchmarks import made_up

MACHINE = replace(made_up.MACHINE, changed=True, versions={"saccade": "1", "torch": "3.2"})
WHERE = "A processor, 2 cores, load 0.1; saccade 1, torch 3.2, commit 0123456789ab and changes"


def section(kind: str, folder: Path, record: Any) -> list[str]:
    """Lines of the table that is made of a benchmark's output, of which the last line is JSON."""
    (folder / "found.json").write_text(f"a table\n{json.dumps(record)}\n")
    return shown(kind, folder)


def shown(kind: str, folder: Path) -> list[str]:
    page = renewed(f"<!-- {kind} found.json -->\n<!-- end -->", folder)
    return [line for line in page.splitlines()[1:-1] if line]


def rows(lines: list[str]) -> list[list[str]]:
    found = [line for line in lines if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_training_has_medians_and_ratios(tmp_path: Path) -> None:
    record = {"captions_per_s": {"tutorial": [9.0, 1.0, 3.0, 1.0], "cached": [20.0]}, "ratios": {"cached": 10.0}}
    _, *found = rows(section("speed", tmp_path, record))
    assert found == [["tutorial", "2.0", "1.00"], ["cached", "20.0", "10.00"]]


def test_peers_have_both_ratios_with_intervals_the_machine_and_the_command(tmp_path: Path) -> None:
    rates = {
        "tutorial": spread_of([1.0, 1.0]),
        "ort:fp32": spread_of([9.0, 11.0, 10.0]),
        "blip": spread_of([0.5, 0.5]),
    }
    ratios = {"tutorial": Ratio(10.0, 9.5, 10.5), "cached": Ratio(5.0, 2.5, 7.5)}
    record = {
        "images_per_s": {name: asdict(rate) for name, rate in rates.items()},
        "ratios": {base: dict.fromkeys(rates, ratio._asdict()) for base, ratio in ratios.items()},
        "same_words": {"tutorial": 1.0, "ort:fp32": 0.875},
        "words": 8.25,
        "unavailable": {"openvino:int8": "no <VNNI>"},
        "options": {
            "side": ["ort:fp32"],
            "images": 16,
            "rounds": 5,
            "batch": 8,
            "beam": 3,
            "threads": 0,
            "encoder": "e",
        },
        "machine": asdict(MACHINE),
    }
    measured, where, command, *table, absent = section("peers", tmp_path, record)
    assert measured == "16 images in each of 5 rounds, batches of 8, beam 3, e; captions of 8.2 words"
    assert where == WHERE
    assert command == (
        "`python -m benchmarks.peers --side ort:fp32 --images 16 --rounds 5 --batch 8 --beam 3 --encoder e`"
    )
    head, tutorial, ort, blip = rows(table)
    assert dict(zip(head, ort, strict=True)) == {
        "side": "ort:fp32",
        "images/s": "10.00 ±24.8%",
        "times the tutorial": "10.00 (9.50 to 10.50)",
        "times cached": "5.00 (2.50 to 7.50)",
        "same words as the tutorial": "88%",
    }
    assert (tutorial[-1], blip[-1]) == ("100%", "")
    assert absent == "- openvino:int8: not available here: no &lt;VNNI>"


def test_throughput_has_every_side_at_every_beam(tmp_path: Path) -> None:
    loop = {"images_per_s": [1.0, 3.0, 2.0], "ratio": 1.0, "shares": {}}
    engine = {"images_per_s": [30.0, 20.0, 50.0], "ratio": 15.0, "shares": {"scan": 0.1, "encode": 0.756}}
    record = {
        "beams": {"1": {"loop": loop, "ort": engine}, "3": {"loop": loop, "ort": engine}},
        "images": 64,
        "batch": 16,
        "encoder": "e",
        "cores": 2,
        "load_before": 0.123,
        "environment": {
            "device": "A processor",
            "saccade": "1",
            "python": "3",
            "torch": "3.2",
            "commit": None,
            "uncommitted_changes": False,
        },
    }
    measured, where, command, *table = section("throughput", tmp_path, record)
    assert measured == "64 files in each of 3 rounds, batches of 16, e"
    assert where == "A processor, 2 cores, load 0.12; saccade 1, python 3, torch 3.2"
    assert command == (
        "`python -m benchmarks.throughput --side ort --rounds 3 --beam 1 --beam 3 --images 64 --batch 16 --encoder e`"
    )
    _, *found = rows(table)
    assert found[:2] == [
        ["1", "loop", "2.00", "1.00 to 3.00", "1.00", ""],
        ["1", "ort", "30.00", "20.00 to 50.00", "15.00", "encode 76%"],
    ]
    assert [row[:2] for row in found[2:]] == [["3", "loop"], ["3", "ort"]]


def test_repeatability_says_how_many_intervals_hold_the_mean(tmp_path: Path) -> None:
    runs = [spread_of([99.0, 101.0, 100.0]), spread_of([99.0, 101.0, 100.0]), spread_of([105.9, 106.1, 106.0])]
    rates = [asdict(run) for run in runs]
    record = {
        "runs": 3,
        "configurations": [
            {"name": "ort fp32, offline, batch 1, beam 3", "rates": rates, "ratios": []},
            {"name": "ort fp32, offline, batch 8, beam 3", "rates": rates, "ratios": [(2.0, 1.9, 2.1)] * 3},
        ],
        "bundle": "f" * 64,
        "images": "24 images",
        "options": {"windows": {"seconds": 0.5, "least": 8, "most": 32, "stable": 0.02}},
        "machine": asdict(MACHINE),
    }
    measured, where, *table = section("repeatability", tmp_path, record)
    assert measured.startswith(
        "3 runs, 8 to 32 windows of 0.5 s for each configuration; 24 images, bundle ffffffffffff"
    )
    assert where == WHERE
    _, *found = rows(table)
    rate = ["100.0 to 106.0", "2.5%", "2 of 3"]
    assert found == [
        ["ort fp32, offline, batch 1, beam 3", *rate, "", "", ""],
        ["ort fp32, offline, batch 8, beam 3", *rate, "2.00 to 2.00", "5.0%", "3 of 3"],
    ]


def row(scenario: Any, **changes: Any) -> Row:
    known: dict[str, Any] = {
        "backend": "ort",
        "precision": "fp32",
        "batch": 1,
        "beam": 3,
        "runs_on": "ONNX Runtime",
        "open_s": 0.5,
        "first_run_s": 0.25,
        "tokens_per_s": 1234.0,
        "words": 12.34,
        "images_per_s": spread_of([9.0, 11.0, 10.0]),
        "latency": latency_of([number / 1000 for number in range(101)]),
        "peak_mib": 321.0,
        "device_mib": None,
        "joules_per_image": None,
        "levels": {},
        "bottleneck": None,
        "stages": None,
        "server": None,
        "warnings": (),
    }
    return Row(scenario=scenario, **known | changes)


def write_benchmark(folder: Path, *found: Row, **changes: Any) -> None:
    known: dict[str, Any] = {
        "schema": SCHEMA,
        "bundle": "a/bundle",
        "fingerprint": "f" * 64,
        "encoder": "compact",
        "rows": found,
        "images": "24 images of somewhere",
        "images_digest": "d" * 64,
        "max_length": 40,
        "threads": 0,
        "options": {"windows": {"seconds": 0.5}},
        "machine": MACHINE,
        "unavailable": (),
        "warnings": (),
    }
    write(Benchmark(**known | changes), folder / "found.json")


def test_a_sweep_has_latencies_and_rates_by_level_and_what_is_absent(tmp_path: Path) -> None:
    levels = {"host": spread_of([20.0, 20.0]), "files-cold": spread_of([9.0, 11.0, 10.0])}
    write_benchmark(
        tmp_path,
        row("single-stream"),
        row("offline", batch=8, levels=levels, warnings=("noisy",)),
        row("offline", batch=16, levels={"host": levels["host"]}),
        unavailable=(
            Unavailable(name="trt fp32", reason="no GPU"),
            Unavailable(name="trt fp16", reason="no GPU"),
            Unavailable(name="ort bf16", reason="not known"),
        ),
        warnings=("the load was <9> on 2 cores",),
    )
    measured, where, *lines = shown("benchmark", tmp_path)
    assert measured == "Bundle ffffffffffff, compact; 24 images of somewhere; windows of 0.5 s"
    assert where == WHERE
    assert rows(lines) == [
        ["one image at a time", "beam", "p50 ms", "p99 ms", "images/s", "by pytorch", "words"],
        ["ort fp32", "3", "50.0", "99.0", "10.00 ±24.8%", "", "12.3"],
        ["images/s, batch after batch", "batch", "beam", "in memory", "files, not cached", "by pytorch", "words"],
        ["ort fp32", "8", "3", "20.00 ±0.0%", "10.00 ±24.8%", "", "12.3"],
        ["ort fp32", "16", "3", "20.00 ±0.0%", "", "", "12.3"],
    ]
    assert [line for line in lines if line.startswith("-")] == [
        "- trt fp32, trt fp16: not available here: no GPU",
        "- ort bf16: not available here: not known",
        "- the load was &lt;9> on 2 cores",
        "- 1 of 3 configurations have warnings of their own: see the file",
    ]


@pytest.mark.parametrize(("highest", "cell"), [(25.0, "25.0"), (None, "")])
def test_a_server_has_its_highest_rate_and_what_it_held(tmp_path: Path, highest: float | None, cell: str) -> None:
    held = Load(rate=20.0, seconds=300.2, requests=6000, lost=1, p99_ms=432.1)
    server = Server(p99_bound_ms=500.0, wait_ms=10.0, highest_rate=highest, trials=(), held=held, mean_batch=2.5)
    write_benchmark(tmp_path, row("server", batch=8, images_per_s=None, server=server))
    head, found = rows(shown("benchmark", tmp_path))
    assert dict(zip(head, found, strict=True)) == {
        "requests at random times": "ort fp32",
        "batch": "8",
        "beam": "3",
        "bound of p99, ms": "500",
        "highest rate": cell,
        "held rate": "20.0",
        "for seconds": "300",
        "requests": "6000",
        "lost": "1",
        "p99 ms": "432.1",
    }


def test_the_guard_has_its_figures(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(json.dumps({"ratios": {"ort": 1.234}, "machine": asdict(MACHINE)}, indent=2))
    where, *lines = shown("guard", tmp_path)
    assert where == WHERE
    assert rows(lines) == [["ratio", "figure"], ["ort", "1.23"]]


def test_a_gpu_has_rates_by_where_pixels_are_and_ratios_to_the_loop_of_the_same_beam(tmp_path: Path) -> None:
    row = {
        "side": "pytorch-cuda:fp16",
        "batch": 128,
        "beam": 3,
        "encoder": asdict(spread_of([14000.0, 14000.0])),
        "resident": asdict(spread_of([5000.0, 5000.0])),
        "host": asdict(spread_of([4800.0, 4800.0])),
        "overlapped": 5600.4,
        "same_words": 0.25,
    }
    record = {
        "machine": asdict(MACHINE),
        "loop": {"3": {"images_per_s": asdict(spread_of([50.0, 50.0])), "words": 8.0}},
        "rows": [row, row | {"beam": 1}],
        "files": [
            {
                "side": "pytorch-cuda:fp16",
                "images": 2048,
                "images_per_s": 1000.4,
                "batch": 128,
                "loaders": 16,
                "shares": {"scan": 0.0, "decode": 0.7, "encode": 0.85},
            }
        ],
        "unavailable": {"ort-cuda:fp16": "no provider"},
    }
    (tmp_path / "found.json").write_text(json.dumps(record))
    found = shown("gpu", tmp_path)
    assert found[0] == WHERE
    assert [line[3:] for line in rows(found)[1:]] == [
        ["14,000 ±0%", "5,000 ±0%", "4,800 ±0%", "5,600", "100.00 (100.00 to 100.00)", "25%"],
        ["14,000 ±0%", "5,000 ±0%", "4,800 ±0%", "5,600", "", "25%"],
    ]
    assert found[-3:] == [
        "- loop, beam 3: 50.00 ±0.0%",
        "- pytorch-cuda:fp16, 2048 files in batches of 128, 16 loaders: 1,000 images/s "
        "(decode 70%, encode 85% of the time)",
        "- ort-cuda:fp16: not available here: no provider",
    ]
    alone = shown("gpu_rates", tmp_path)
    assert [line[-2:] for line in rows(alone)[1:]] == [["", "25%"]] * 2
    assert "loop, beam" not in "".join(alone)


def test_a_roofline_has_each_part_with_how_many_times_its_bound_it_takes(tmp_path: Path) -> None:
    def profile(graph: str, beam: int, **parts: tuple[float, float]) -> dict[str, Any]:
        found = [{"name": name, "ms": ms, "bound_ms": bound} for name, (ms, bound) in parts.items()]
        return {"graph": graph, "precision": "bf16", "beam": beam, "parts": found}

    record = {
        "profiles": [
            profile("encoder", 1, annotations=(30.0, 20.0)),
            profile("step", 1, context=(1.0, 0.5), output=(2.0, 2.0)),
            profile("step", 3, context=(1.5, 0.5), output=(6.0, 4.0)),
        ],
        "options": {"batch": 16, "beam": [1, 3], "threads": 2},
        "model": {"encoder": "resnet18", "rows": 7, "columns": 7, "words": 9490},
        "ceilings": {"bf16": {"multiply_adds_per_s": 2.4e11, "bytes_per_s": 3e10}},
        "unavailable": {"int8": "no VNNI"},
        "machine": asdict(MACHINE),
    }
    measured, where, command, *table, absent = section("roofline", tmp_path, record)
    assert measured.startswith("resnet18, 7 x 7 places, 9,490 words; batches of 16.")
    assert "bf16 240 thousand million multiply-adds/s; a copy: 30 GB/s" in measured
    assert where == WHERE
    assert command == "`python -m benchmarks.roofline --batch 16 --beam 1 --beam 3 --threads 2`"
    assert rows(table) == [
        ["encoder: ms, and how many times the bound", "all", "annotations"],
        ["bf16", "30.0", "30.00 (1.5)"],
        ["step: ms, and how many times the bound", "all", "context", "output"],
        ["bf16, beam 1", "3.0", "1.00 (2.0)", "2.00 (1.0)"],
        ["bf16, beam 3", "7.5", "1.50 (3.0)", "6.00 (1.5)"],
    ]
    assert absent == "- int8: not available here: no VNNI"
