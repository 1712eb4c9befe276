"""`saccade benchmark`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from benchmarks.benchmark_report import write_report
from benchmarks.benchmark_results import Benchmark, Level, Scenario, as_json, pairs_of, read, write
from benchmarks.benchmark_tables import comparison_table, label, markdown, print_benchmark, rich_table
from benchmarks.pictures import pictures_of
from benchmarks.server import ServerOptions
from benchmarks.sweep import sweep
from benchmarks.sweep_options import SweepOptions
from benchmarks.windows import WindowOptions
from engine.backends.base import BACKENDS
from saccade.bundle import Bundle, Precision
from saccade.errors import OutputError
from saccade.files import write_atomically
from saccade.progress import Reporter

JSON, MARKDOWN, PAGE = "benchmark.json", "benchmark.md", "benchmark.html"
_WIDTH = 160
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _listed(known: Sequence[str], *, everything: Sequence[str] = ()) -> Callable[..., tuple[str, ...]]:
    """A callback for names with commas, or several times; "all" is everything."""

    def chosen(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
        names = [name for value in values for name in value.split(",")]
        if everything and names == ["all"]:
            return tuple(everything)
        if unknown := [name for name in names if name not in known]:
            choices = ", ".join([*known, *(["all"] if everything else [])])
            raise click.BadParameter(f"{unknown[0]!r} is not one of {choices}.")
        return tuple(dict.fromkeys(names))

    return chosen


def _numbers(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[int, ...]:
    names = [name for value in values for name in value.split(",")]
    if wrong := [name for name in names if not name.isdecimal() or int(name) < 1]:
        raise click.BadParameter(f"{wrong[0]!r} is not a number above 0.")
    return tuple(dict.fromkeys(map(int, names)))


def _rate(_: click.Context, __: click.Parameter, value: str) -> dict[str, Any]:
    """`80%` is a share of the highest rate, `12.5` requests per second."""
    number = value.removesuffix("%")
    try:
        found = float(number)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor a percentage.")
    return {"rate": None, "share": found / 100} if number != value else {"rate": found, "share": 0.8}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("all",),
    show_default=True,
    callback=_listed([*BACKENDS], everything=[*BACKENDS]),
    metavar="NAMES",
    help=f"With commas: {', '.join(BACKENDS)}.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    callback=_listed(get_args(Precision), everything=get_args(Precision)),
    metavar="NAMES",
    help=f"With commas: {', '.join(get_args(Precision))}, or all.  [default: the best of each backend without int8]",
)
@click.option(
    "--batch", "batches", multiple=True, default=("1,8,16",), show_default=True, callback=_numbers, metavar="NUMBERS"
)
@click.option("--beam", "beams", multiple=True, default=("3",), show_default=True, callback=_numbers, metavar="NUMBERS")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    default=("single-stream,offline",),
    show_default=True,
    callback=_listed(get_args(Scenario), everything=get_args(Scenario)),
    metavar="NAMES",
    help=f"With commas: {', '.join(get_args(Scenario))}, or all.",
)
@click.option(
    "--level",
    "levels",
    multiple=True,
    default=("all",),
    show_default=True,
    callback=_listed(get_args(Level), everything=get_args(Level)),
    metavar="NAMES",
    help=f"Where the images of offline come from, with commas: {', '.join(get_args(Level))}.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images.  [default: 64 random ones]",
)
@click.option(
    "--seconds", default=0.5, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Of a window."
)
@click.option(
    "--windows",
    default=8,
    show_default=True,
    type=click.IntRange(min=2),
    help="At least; up to four times as many until the rate is known to ±2 %.",
)
@click.option(
    "--rate",
    default="80%",
    show_default=True,
    callback=_rate,
    metavar="RATE",
    help="Requests per second that a server is to hold, or a share of the highest.",
)
@click.option(
    "--hold-s", type=click.FloatRange(min=0, min_open=True), help="Seconds to hold it.  [default: seconds x windows]"
)
@click.option(
    "--p99-bound-ms",
    default=500.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Latency of a server that 99 % of the requests stay below.",
)
@click.option(
    "--wait-ms",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="A server's request waits so long for others.",
)
@click.option("--threads", default=0, type=click.IntRange(min=0), help="For the arithmetic.  [default: the runtime's]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Write {PAGE}, {MARKDOWN} and {JSON} to this folder.",
)
@click.option("--json", "as_object", is_flag=True, help="One JSON object instead of tables.")
@click.option("--compare", nargs=2, type=_file, metavar="A B", help=f"Measure nothing: compare two {JSON} files.")
@click.option("--force", is_flag=True, help="Compare what was not measured under the same conditions.")
@click.option("--quiet", is_flag=True, help="No progress.")
def benchmark(
    bundle: Path | None,
    images: Path | None,
    out: Path | None,
    as_object: bool,
    compare: tuple[Path, Path] | None,
    force: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Measure how fast BUNDLE captions images here: latency, throughput, stages, and what a server holds.

    Each backend is measured in each precision, batch, beam and scenario. Rates are means over windows of time with a
    95 % interval; warm-up is left out. What does not run here is told of, with the reason.

    With --compare A B no bundle is needed: ratios of two files that --out wrote.
    """
    if compare:
        _compare(*compare, force=force, as_object=as_object)
        return
    if bundle is None:
        raise click.UsageError("Missing argument 'BUNDLE'.")
    opened, options, reporter = Bundle.open(bundle), _options(**given), Reporter(quiet=quiet)
    with pictures_of(images, opened.manifest.preprocessing) as pictures:
        reporter.say(f"captioning {pictures.source}")
        measured = sweep(opened, pictures, options, reporter)
    if out:
        _write(measured, out)
    if as_object:
        click.echo(json.dumps(as_json(measured)))
    else:
        print_benchmark(measured, _console())


def _options(
    *, seconds: float, windows: int, rate: dict[str, Any], p99_bound_ms: float, wait_ms: float, **given: Any
) -> SweepOptions:
    given["precisions"] = given["precisions"] or (None,)
    return SweepOptions(
        windows=WindowOptions(seconds=seconds, least=windows, most=4 * windows),
        server=ServerOptions(p99_ms=p99_bound_ms, wait_ms=wait_ms),
        **rate,
        **given,
    )


def _compare(one: Path, other: Path, *, force: bool, as_object: bool) -> None:
    pairs = pairs_of(read(one), read(other), force=force)
    if as_object:
        click.echo(json.dumps([{"configuration": label(pair.one), **pair.ratio._asdict()} for pair in pairs]))
    else:
        _console().print(rich_table(comparison_table(pairs)))


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(width=_WIDTH, highlight=False, markup=False, emoji=False)


def _write(measured: Benchmark, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(measured, out / JSON)
        write_atomically(out / MARKDOWN, markdown(measured))
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}): choose another place") from error
    write_report(measured, out / PAGE)
