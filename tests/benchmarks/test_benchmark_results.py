"""What a benchmark tells is what it measured, in every form, and only like is compared with like."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks.benchmark_report import write_report
from benchmarks.benchmark_results import (
    Benchmark,
    Load,
    Server,
    as_json,
    latency_of,
    pairs_of,
    read,
    write,
)
from benchmarks.benchmark_tables import by_reference, comparison_table, markdown, tables_of
from benchmarks.charts import Point, bar_chart, point_chart
from benchmarks.machine import Energy, Gpu
from benchmarks.stages import STAGES, StageTimes
from benchmarks.windows import spread_of
from saccade.errors import ConfigError, DataError
from tests.benchmarks.made_up import MACHINE, benchmark, row


def everything() -> Benchmark:
    load = Load(rate=20.0, seconds=30.0, requests=600, lost=2, p99_ms=123.0)
    server = Server(p99_bound_ms=200.0, wait_ms=10.0, highest_rate=25.0, trials=(load,), held=load, mean_batch=3.5)
    stages = StageTimes(wall_ms=47.0, by_stage_ms={name: float(n) for n, name in enumerate(STAGES, 1)}, steps=9.0)
    rates = {"host": spread_of([100.0, 100.0]), "files-warm": spread_of([40.0, 40.0])}
    return benchmark(
        row(stages=stages, levels=rates, bottleneck="decode", warnings=("noisy: <b>",), joules_per_image=0.5),
        row(batch=16, images_per_s=spread_of([150.0, 150.0])),
        row(scenario="single-stream", batch=1),
        row(scenario="server", images_per_s=None, server=server),
    )


def cells(text: str, title: str) -> list[dict[str, str]]:
    """The rows of a table in Markdown, by heading."""
    lines = text.partition(f"## {title}\n\n")[2].splitlines()
    head, _, *rows = [re.split(r" *(?<!\\)\| *", line.strip("| ")) for line in lines[: lines.index("")]]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_latencies_are_ones_that_were_measured() -> None:
    found = latency_of([number / 1000 for number in range(1, 201)])
    assert found.requests == 200
    assert found.mean_ms == pytest.approx(100.5)
    assert found.percentile(0) == pytest.approx(1)
    assert found.percentile(100) == pytest.approx(200)
    assert found.percentile(99) == pytest.approx(199)  # two of 200 took that long or longer
    assert latency_of([0.001, 0.9]).percentile(99) == pytest.approx(900)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(everything(), tmp_path / "b.json")
    assert read(tmp_path / "b.json") == everything()
    assert json.loads((tmp_path / "b.json").read_text())["schema"] == "saccade-benchmark/1"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "has the schema None, expected 'saccade-benchmark/1'"),
        ('{"schema": "saccade-benchmark/0"}', "schema 'saccade-benchmark/0'"),
        ('{"schema": "saccade-benchmark/1"}', "'bundle' is missing"),
    ],
)
def test_other_files_are_refused(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(problem)):
        read(tmp_path / "b.json")


def test_pairs_are_the_same_configuration_and_the_ratio_is_of_the_second_to_the_first() -> None:
    one = benchmark(row(), row(batch=16), row(scenario="server", images_per_s=None))
    faster = spread_of([199.0, 200.0, 201.0, 200.0])
    pairs = pairs_of(one, benchmark(row(batch=4), row(batch=16, images_per_s=faster)))
    (pair,) = pairs
    assert (pair.one.batch, pair.other.batch) == (16, 16)
    assert pair.ratio.value == pytest.approx(2)
    assert pair.ratio.low < 2 < pair.ratio.high
    (line,) = comparison_table(pairs).rows
    assert line == ("ort fp32, offline, batch 16, beam 3", "100.0", "200.0", "2.000", line[4], "faster")
    assert comparison_table(pairs_of(one, one)).rows[0][-1] == "no difference seen"
    wild = benchmark(row(images_per_s=spread_of([190.0, 210.0, 230.0, 170.0])))
    assert comparison_table(pairs_of(one, wild)).rows[0][-1] == "faster, but noisy"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"fingerprint": "0" * 64}, "bundle ffffffffffff and 000000000000"),
        ({"images_digest": "0" * 64}, "images dddddddddddd and 000000000000"),
        ({"threads": 2}, "threads 0 and 2"),
        ({"max_length": 20}, "max_length 40 and 20"),
        ({"machine": replace(MACHINE, processor="Another")}, "hardware A processor, 2 cores and Another, 2 cores"),
        ({"machine": replace(MACHINE, gpus=(Gpu(name="G", driver="1"),))}, "2 cores, G (driver 1)"),
    ],
)
def test_what_differs_in_more_than_one_thing_is_compared_by_force_alone(changes: dict[str, Any], problem: str) -> None:
    other = benchmark(row(), **changes)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        pairs_of(benchmark(row()), other)
    assert len(pairs_of(benchmark(row()), other, force=True)) == 1


def test_other_versions_are_what_a_comparison_is_for() -> None:
    other = replace(MACHINE, versions={"saccade": "2"}, commit="fedcba", load=1.0)
    assert len(pairs_of(benchmark(row()), benchmark(row(), machine=other))) == 1


def test_nothing_in_common_is_told() -> None:
    with pytest.raises(ConfigError, match="no configuration of single-stream or offline in common"):
        pairs_of(benchmark(row(batch=1)), benchmark(row(batch=2)))


def test_rows_stand_beside_eager_pytorch_with_the_same_load() -> None:
    def rates(*rates: float) -> dict[str, Any]:
        return {"images_per_s": spread_of(rates)}

    slow, fast = row(backend="pytorch", **rates(10.0, 20.0)), row(**rates(30.0, 60.0))
    rows = [fast, slow, row(batch=16, **rates(30.0, 60.0)), row(backend="openvino", **rates(1.0, 2.0, 3.0))]
    assert [by_reference(one, rows) for one in rows] == ["3.00 (3.00 to 3.00)", "", "", ""]
    assert cells(markdown(benchmark(*rows)), "Offline: batch after batch")[0]["by pytorch"] == "3.00 (3.00 to 3.00)"
    assert "by pytorch" not in cells(markdown(benchmark(fast)), "Offline: batch after batch")[0]


def test_tables_show_what_was_measured() -> None:
    text = markdown(everything())
    offline, single, server = (
        cells(text, title)
        for title in (
            "Offline: batch after batch",
            "Single stream: one image at a time",
            "Server: requests at random times, dynamic batches",
        )
    )
    assert [(one["batch"], one["images/s"], one["J/image"]) for one in offline] == [
        ("8", "100.0", "0.50"),
        ("16", "150.0", ""),
    ]
    assert (offline[0]["±"], offline[0]["CV"], offline[0]["words"], offline[0]["MiB"]) == (
        "1.3%",
        "0.8%",
        "12.3",
        "321",
    )
    assert (offline[0]["open s"], offline[0]["first s"], offline[0]["words/s"]) == ("0.50", "0.25", "1234")
    assert (single[0]["p50 ms"], single[0]["p99 ms"]) == ("90.0", "90.0")
    assert "J/image" not in single[0]
    load = ("25.0", "20.0", "600", "2")
    assert tuple(server[0][name] for name in ("highest/s", "held/s", "requests", "lost")) == load
    (stages,) = cells(text, "Stages of a batch")
    assert [stages[name] for name in STAGES] == [f"{number}.00" for number in range(1, 10)]
    assert (stages["whole"], stages["told"], stages["search total"]) == ("47.00", "95.7%", "18.00")
    (levels,) = cells(text, "Offline, by where the images come from")
    assert (levels["in memory"], levels["files, cached"], levels["least rest"]) == (
        "100.0 ±0.0%",
        "40.0 ±0.0%",
        "decode",
    )
    assert "trt fp16: not available here: tensorrt is not installed" in text
    assert "ort fp32, offline, batch 8, beam 3: noisy: &lt;b>" in text


def test_scenarios_that_were_not_asked_for_have_no_table() -> None:
    assert [table.title for table in tables_of(benchmark(row()))] == ["Offline: batch after batch"]


def test_the_page_has_charts_and_the_tables_and_loads_nothing(tmp_path: Path) -> None:
    write_report(everything(), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "the load was &lt;9&gt; on 2 cores" in page
    assert "noisy: &lt;b&gt;" in page
    assert "<td>trt fp16</td>" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert len(re.findall('<svg class="chart', page)) == 4  # throughput, two distributions, stages
    for table in tables_of(everything()):
        for value in table.rows[0]:
            assert f"<td>{value}</td>" in page
    ET.fromstring(page.partition("<body>")[2].join(["<body>", ""]).partition("</html>")[0])


def test_a_page_of_nothing_but_absent_backends_is_written(tmp_path: Path) -> None:
    write_report(benchmark(), tmp_path / "page.html")
    assert "tensorrt is not installed" in (tmp_path / "page.html").read_text()


def test_points_are_drawn_in_proportion() -> None:
    chart = point_chart({"a": [Point(1, 50), Point(4, 100, 90, 110), Point(16, 0)]}, x="x", y="y", logarithmic=True)
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (x1, y1), (x2, y2), (x3, y3) = places
    assert x2 - x1 == pytest.approx(x3 - x2)  # of equal ratios
    assert y3 - y2 == pytest.approx(2 * (y3 - y1), abs=0.3)
    interval = re.search(r'class="interval[^>]*M[\d.]+ ([\d.]+)V([\d.]+)', chart)
    assert interval
    assert float(interval[1]) - float(interval[2]) == pytest.approx(0.2 * (y3 - y2), abs=0.2)


def test_a_chart_of_one_point_is_drawn() -> None:
    for logarithmic in (True, False):
        assert "nan" not in point_chart({"a": [Point(8, 5)]}, x="x", y="y", logarithmic=logarithmic)


def test_bars_are_as_long_as_their_parts() -> None:
    chart = bar_chart({"one": {"a": 1.0, "b": 3.0}, "two": {"a": 2.0, "b": 0.0}}, unit="ms")
    widths = [float(width) for width in re.findall(r'<rect class="f\d" x="[^>]* width="([\d.]+)"', chart)]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.1)
    assert widths[2:] == [pytest.approx(2 * widths[0], abs=0.1), 0]
    assert re.findall(r">([\d.]+)</text>", chart) == ["4", "2"]


def test_energy_is_what_the_counters_of_whole_processors_went_on(tmp_path: Path) -> None:
    for name, microjoules in {"intel-rapl:0": 900_000, "intel-rapl:1": 100, "intel-rapl:0:0": 5}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999999\n")
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").write_text("400000")  # began again at 0
    (tmp_path / "intel-rapl:1/energy_uj").write_text("250100")
    (tmp_path / "intel-rapl:0:0/energy_uj").write_text("9")
    assert energy.joules() == pytest.approx(0.5 + 0.25)
    assert Energy(tmp_path / "absent").joules() is None
    assert as_json(everything())["rows"][0]["joules_per_image"] == 0.5
