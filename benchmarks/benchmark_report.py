"""The page of a benchmark: charts and tables. It loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from benchmarks.benchmark_results import Benchmark, Row
from benchmarks.benchmark_tables import Table, facts_of, tables_of, warnings_of
from benchmarks.charts import Point, bar_chart, point_chart
from benchmarks.stages import STAGES
from saccade.files import replaced


def write_report(benchmark: Benchmark, destination: Path) -> None:
    """Write the page. Raises OutputError if it cannot be written."""
    name = Path(benchmark.bundle).name
    page = resources.files(__package__).joinpath("benchmark.html").read_text("utf-8")
    page = page.replace("{{title}}", _text(f"Benchmark of {name}"))
    with replaced(destination) as file:
        file.write(page.replace("{{body}}", "\n".join(_body(benchmark, name))).encode("utf-8", "xmlcharrefreplace"))


def _body(benchmark: Benchmark, name: str) -> Iterator[str]:
    yield f"<h1>How fast {_text(name)} captions images</h1>"
    for fact in facts_of(benchmark):
        yield f'<p class="soft">{_text(fact)}</p>'
    yield from _warnings(benchmark)
    yield from _charts(benchmark.rows)
    for table in tables_of(benchmark):
        yield from _table(table)
    if benchmark.unavailable:
        yield "<h2>Not available here</h2><table>"
        for one in benchmark.unavailable:
            yield f'<tr><td>{_text(one.name)}</td><td class="text soft">{_text(one.reason)}</td></tr>'
        yield "</table>"


def _warnings(benchmark: Benchmark) -> Iterator[str]:
    """Those of all as they are, those of single rows behind their number."""
    lines = [f"<li>{_text(warning)}</li>" for warning in warnings_of(benchmark)]
    general = len(benchmark.warnings)
    if lines:
        yield f'<div class="warnings"><ul>{"".join(lines[:general])}</ul>'
        if single := lines[general:]:
            yield f"<details><summary>Warnings of rows: {len(single)}</summary><ul>{''.join(single)}</ul></details>"
        yield "</div>"


def _charts(rows: Sequence[Row]) -> Iterator[str]:
    yield '<div class="charts">'
    if throughput := _throughput(rows):
        chart = point_chart(throughput, x="batch", y="images per second", logarithmic=True)
        yield from _figure("Throughput against batch: images per second, with 95 % intervals", chart)
    for scenario, title in (("single-stream", "one image at a time"), ("server", "requests to a server")):
        if found := _distribution([row for row in rows if row.scenario == scenario]):
            chart = point_chart(found, x="milliseconds", y="percent done", dots=False)
            yield from _figure(f"Latency, {title}: percent done by milliseconds", chart)
    yield "</div>"
    if stages := _stages(rows):
        chart = bar_chart(stages, unit="milliseconds an image")
        yield from _figure("Stages, one after the other: milliseconds an image", chart, kind=' class="whole"')


def _throughput(rows: Sequence[Row]) -> Mapping[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for row in rows:
        if row.scenario == "offline" and (rate := row.images_per_s):
            point = Point(row.batch, rate.mean, rate.low, rate.high)
            series.setdefault(_name(row), []).append(point)
    return {name: sorted(points) for name, points in series.items()}


def _distribution(rows: Sequence[Row]) -> Mapping[str, list[Point]]:
    return {
        _name(row): [Point(value, percent) for percent, value in enumerate(row.latency.by_percent_ms)] for row in rows
    }


def _stages(rows: Sequence[Row]) -> Mapping[str, Mapping[str, float]]:
    return {
        f"{_name(row)}, batch {row.batch}": {name: row.stages.by_stage_ms[name] / row.batch for name in STAGES}
        for row in rows
        if row.stages
    }


def _name(row: Row) -> str:
    return f"{row.name}, beam {row.beam}"


def _figure(title: str, chart: str, *, kind: str = "") -> Iterator[str]:
    yield f"<figure{kind}><figcaption>{_text(title)}</figcaption>{chart}</figure>"


def _table(table: Table) -> Iterator[str]:
    yield f'<h2>{_text(table.title)}</h2><div class="wide"><table>'
    yield "<tr>" + "".join(f"<th>{_text(column)}</th>" for column in table.columns) + "</tr>"
    for row in table.rows:
        yield "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>"
    yield "</table></div>"
    if table.note:
        yield f'<p class="soft">{_text(table.note)}</p>'


def _text(value: str) -> str:
    return escape(value)
