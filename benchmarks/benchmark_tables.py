"""The tables of a benchmark, for the terminal, for Markdown and for the page alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.benchmark_results import Benchmark, Level, Pair, Row, Scenario
from benchmarks.markdown import markdown_table, plain
from benchmarks.stages import STAGES
from benchmarks.windows import NOISY, Spread, paired_ratio

PERCENTILES = (50, 90, 95, 99)
SCENARIOS: dict[Scenario, str] = {
    "single-stream": "Single stream: one image at a time",
    "offline": "Offline: batch after batch",
    "server": "Server: requests at random times, dynamic batches",
}
LEVELS: dict[Level, str] = {
    "device": "on the device",
    "host": "in memory",
    "files-warm": "files, cached",
    "files-cold": "files, not cached",
}


_REFERENCE = "pytorch"
BY_REFERENCE = f"by {_REFERENCE}"


class Table(NamedTuple):
    """A table whose first column is text and whose others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def tables_of(benchmark: Benchmark) -> list[Table]:
    """Those that have rows, without columns in which there is nothing."""
    makers = (_single_stream, _offline, _levels, _stages, _server)
    return [_filled(table) for table in (make(benchmark.rows) for make in makers) if table.rows]


def facts_of(benchmark: Benchmark) -> Iterator[str]:
    """What decides the figures: one line each."""
    machine = benchmark.machine
    commit = f"commit {machine.commit[:12]}{' and changes' if machine.changed else ''}" if machine.commit else ""
    threads = f", {benchmark.threads} threads" if benchmark.threads else ""
    yield f"{machine.hardware}{threads}; {machine.memory_gib:g} GiB, {machine.system}"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield ", ".join(part for part in (versions, commit) if part)
    yield f"bundle {benchmark.fingerprint[:12]}, {benchmark.encoder}; {benchmark.images}"


def warnings_of(benchmark: Benchmark) -> Iterator[str]:
    """What makes figures doubtful, those of all first."""
    yield from benchmark.warnings
    for row in benchmark.rows:
        for warning in row.warnings:
            yield f"{label(row)}: {warning}"


def label(row: Row) -> str:
    """The configuration and its scenario, in words."""
    return f"{row.name}, {row.scenario}, batch {row.batch}, beam {row.beam}"


def comparison_table(pairs: Sequence[Pair]) -> Table:
    """Ratios of rates with their intervals."""
    rows = []
    for one, other, ratio in pairs:
        verdict = ("faster" if ratio.value > 1 else "slower") if ratio.differs else "no difference seen"
        found = [row.images_per_s for row in (one, other) if row.images_per_s]
        rates = [f"{rate.mean:.1f}" for rate in found]
        if any(rate.variation > NOISY for rate in found):
            verdict += ", but noisy"
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        rows.append((label(one), *rates, f"{ratio.value:.3f}", interval, verdict))
    columns = ("configuration", "A, images/s", "B, images/s", "B / A", "95 % interval", "B is")
    return Table("B beside A", columns, rows)


def rich_table(table: Table) -> RenderableType:
    """For a terminal."""
    made = RichTable(table.columns[0], title=table.title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        made.add_column(column, justify="right")
    for row in table.rows:
        made.add_row(*map(Text, row))
    return made


def markdown(benchmark: Benchmark) -> str:
    """Everything as Markdown."""
    parts = [f"# Benchmark of {plain(Path(benchmark.bundle).name)}", *map(plain, facts_of(benchmark))]
    for table in tables_of(benchmark):
        parts += [f"## {table.title}", markdown_table(table.columns, table.rows), *([table.note] if table.note else [])]
    absent = [f"- {plain(one.name)}: not available here: {plain(one.reason)}" for one in benchmark.unavailable]
    warnings = [f"- {plain(warning)}" for warning in warnings_of(benchmark)]
    for title, lines in {"Not measured": absent, "Warnings": warnings}.items():
        if lines:
            parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    """Everything as a person reads it."""
    for fact in facts_of(benchmark):
        console.print(fact, soft_wrap=True)
    for table in tables_of(benchmark):
        console.print()
        console.print(rich_table(table))
    console.print()
    for absent in benchmark.unavailable:
        console.print(f"{absent.name}: not available here: {absent.reason}", soft_wrap=True)
    for warning in warnings_of(benchmark):
        console.print(f"warning: {warning}", soft_wrap=True)


def _filled(table: Table) -> Table:
    kept = [place for place in range(len(table.columns)) if any(row[place] for row in table.rows)]
    rows = [tuple(row[place] for place in kept) for row in table.rows]
    return table._replace(columns=tuple(table.columns[place] for place in kept), rows=rows)


def _single_stream(rows: Sequence[Row]) -> Table:
    percentiles = tuple(f"p{percent} ms" for percent in PERCENTILES)
    found = [
        (
            *(row.name, str(row.beam)),
            *(f"{row.latency.percentile(percent):.1f}" for percent in PERCENTILES),
            *_rate(row.images_per_s),
            *(by_reference(row, rows), f"{row.words:.1f}", *_costs(row)),
        )
        for row in rows
        if row.scenario == "single-stream"
    ]
    columns = ("backend", "beam", *percentiles, *_RATES, "words", *_COSTS)
    return Table(SCENARIOS["single-stream"], columns, found, _INTERVAL)


def _offline(rows: Sequence[Row]) -> Table:
    found = [
        (
            *(row.name, str(row.batch), str(row.beam), *_rate(row.images_per_s), by_reference(row, rows)),
            *(f"{row.tokens_per_s:.0f}", f"{row.words:.1f}", f"{row.latency.percentile(50):.1f}"),
            *_costs(row),
        )
        for row in rows
        if row.scenario == "offline"
    ]
    columns = ("backend", "batch", "beam", *_RATES, "words/s", "words", "batch ms", *_COSTS)
    return Table(SCENARIOS["offline"], columns, found, _INTERVAL)


def _levels(rows: Sequence[Row]) -> Table:
    levels = [level for level in get_args(Level) if any(level in row.levels for row in rows)]
    found = []
    for row in rows:
        if len(row.levels) > 1:
            rates = (_with_interval(row.levels.get(level)) for level in levels)
            found.append((row.name, str(row.batch), str(row.beam), *rates, row.bottleneck or ""))
    columns = ("backend", "batch", "beam", *(LEVELS[level] for level in levels), "least rest")
    note = (
        "Images per second. On the device: without the upload of pixels. Files: the whole engine, reading and decoding "
        "beside encoding and search; least rest has the stage that decides then."
    )
    return Table("Offline, by where the images come from", columns, found, note)


def _stages(rows: Sequence[Row]) -> Table:
    found = []
    for row in rows:
        if row.stages:
            times = [row.stages.by_stage_ms[name] for name in STAGES]
            summed = sum(times) / row.stages.wall_ms
            figures = [*times, row.stages.wall_ms]
            more = (f"{summed:.1%}", f"{row.stages.search_total_ms:.2f}", f"{row.stages.per_step_ms:.2f}")
            found.append((row.name, str(row.batch), str(row.beam), *(f"{value:.2f}" for value in figures), *more))
    columns = ("backend", "batch", "beam", *STAGES, "whole", "told", "search total", "per step")
    note = (
        "Milliseconds of a batch's way from files to records, one stage after the other. They add up to the share of "
        "the whole that is told. Search is the loop around the steps; its total has steps and download in it."
    )
    return Table("Stages of a batch", columns, found, note)


def _server(rows: Sequence[Row]) -> Table:
    found = []
    for row in rows:
        if row.server:
            held, highest = row.server.held, row.server.highest_rate
            latencies = (f"{row.latency.percentile(percent):.1f}" for percent in PERCENTILES)
            place = (row.name, str(row.batch), str(row.beam), f"{row.server.p99_bound_ms:g}")
            load = (f"{held.rate:.1f}", f"{held.seconds:.0f}", str(held.requests), str(held.lost))
            rate = "" if highest is None else f"{highest:.1f}"
            found.append((*place, rate, *load, *latencies, f"{row.server.mean_batch:.1f}"))
    percentiles = tuple(f"p{percent} ms" for percent in PERCENTILES)
    columns = ("backend", "batch", "beam", "bound ms", "highest/s", "held/s", "s", "requests", "lost", *percentiles)
    note = "Highest: requests per second of which the p99 keeps the bound. The other figures are of the rate held."
    return Table(SCENARIOS["server"], (*columns, "together"), found, note)


_RATES = ("images/s", "±", "CV", BY_REFERENCE)
_COSTS = ("MiB", "J/image", "open s", "first s")
_INTERVAL = (
    "±: half the 95 % interval of the rate. CV: coefficient of variation of the windows. "
    f"{BY_REFERENCE.capitalize()}: how many times its rate, turn by turn. MiB: peak, resident."
)


def _costs(row: Row) -> tuple[str, ...]:
    memory = f"{row.peak_mib:.0f}" + (f" + {row.device_mib:.0f}" if row.device_mib is not None else "")
    energy = "" if row.joules_per_image is None else f"{row.joules_per_image:.2f}"
    return memory, energy, f"{row.open_s:.2f}", f"{row.first_run_s:.2f}"


def _rate(rate: Spread | None) -> tuple[str, str, str]:
    return (f"{rate.mean:.1f}", f"{rate.half_width:.1%}", f"{rate.variation:.1%}") if rate else ("", "", "")


def by_reference(row: Row, rows: Sequence[Row]) -> str:
    """How many times the rate of the reference the row has, in the same turns and with the same load."""
    load = row.scenario, row.batch, row.beam
    bases = [one for one in rows if one.backend == _REFERENCE and (one.scenario, one.batch, one.beam) == load]
    one, other = bases[0].images_per_s if bases else None, row.images_per_s
    if row in bases or not one or not other or len(one.windows) != len(other.windows):
        return ""
    ratio = paired_ratio(one, other)
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _with_interval(rate: Spread | None) -> str:
    return f"{rate.mean:.1f} ±{rate.half_width:.1%}" if rate else ""
