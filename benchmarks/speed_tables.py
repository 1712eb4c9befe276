"""Tables of docs/benchmarks.md: how fast all is, each from what one benchmark wrote.

With a table stands what it was measured on. Rates are images per second.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks.benchmark_results import Benchmark, Level, read
from benchmarks.benchmark_tables import BY_REFERENCE, LEVELS, by_reference
from benchmarks.machine import Machine
from benchmarks.markdown import markdown_table, plain
from benchmarks.repeatability import Repeated, table
from benchmarks.windows import Ratio, Spread, ratio_of
from saccade.errors import DataError
from saccade.structure import structure


def _speed(file: Path) -> str:
    record = _last_line(file)
    medians = {name: statistics.median(found) for name, found in record["captions_per_s"].items()}
    rows = [(name, f"{rate:.1f}", f"{record['ratios'].get(name, 1.0):.2f}") for name, rate in medians.items()]
    return markdown_table(("side", "captions/s", "times the tutorial's"), rows)


def _peers(file: Path) -> str:
    record = _last_line(file)
    options, ratios, same = record["options"], record["ratios"], record["same_words"]
    measured = (
        f"{options['images']} images in each of {options['rounds']} rounds, batches of {options['batch']}, "
        f"beam {options['beam']}, {options['encoder']}; captions of {record['words']:.1f} words"
    )
    rows = [
        (
            *(name, _rate(_spread(file, rate))),
            *(_ratio(ratios[base][name]) for base in ("tutorial", "cached")),
            f"{same[name]:.0%}" if name in same else "",
        )
        for name, rate in record["images_per_s"].items()
    ]
    columns = ("side", "images/s", "times the tutorial", "times cached", "same words as the tutorial")
    about = (measured, _where(_machine(file, record)), _command("benchmarks.peers", options))
    return _joined(*about, markdown_table(columns, rows), _absent(record["unavailable"]))


def _throughput(file: Path) -> str:
    record = _last_line(file)
    sides = next(iter(record["beams"].values()))
    rounds = len(sides["loop"]["images_per_s"])
    rows = [
        (
            *(beam, name, f"{statistics.median(rates):.2f}", f"{min(rates):.2f} to {max(rates):.2f}"),
            f"{side['ratio']:.2f}",
            ", ".join(f"{stage} {share:.0%}" for stage, share in side["shares"].items() if stage != "scan"),
        )
        for beam, found in record["beams"].items()
        for name, side in found.items()
        if (rates := side["images_per_s"])
    ]
    measured = f"{record['images']} files in each of {rounds} rounds, batches of {record['batch']}, {record['encoder']}"
    options = {"side": [name for name in sides if name != "loop"], "rounds": rounds, "beam": list(record["beams"])}
    options |= {name: record[name] for name in ("images", "batch", "encoder")}
    columns = ("beam", "side", "images/s, median", "lowest to highest", "times the loop", "shares of the time")
    command = _command("benchmarks.throughput", options)
    return _joined(measured, _environment(record), command, markdown_table(columns, rows))


def _roofline(file: Path) -> str:
    record = _last_line(file)
    options, ceilings, model = record["options"], record["ceilings"], record["model"]
    about = (_where(_machine(file, record)), _command("benchmarks.roofline", options))
    if not record["profiles"]:
        return _joined(*about, _absent(record["unavailable"]))
    rates = ", ".join(
        f"{name} {found['multiply_adds_per_s'] / 1e9:,.0f} thousand million multiply-adds/s"
        for name, found in ceilings.items()
    )
    copied = statistics.median(found["bytes_per_s"] for found in ceilings.values()) / 1e9
    measured = (
        f"{model['encoder']}, {model['rows']} x {model['columns']} places, {model['words']:,} words; batches of "
        f"{options['batch']}. One large product: {rates}; a copy: {copied:.0f} GB/s read and written"
    )
    tables = (_parts(record["profiles"], graph) for graph in ("encoder", "step"))
    return _joined(measured, *about, *tables, _absent(record["unavailable"]))


def _parts(profiles: Sequence[Mapping[str, Any]], graph: str) -> str:
    found = [one for one in profiles if one["graph"] == graph]
    rows = [
        (
            f"{one['precision']}, beam {one['beam']}" if graph == "step" else one["precision"],
            f"{sum(part['ms'] for part in one['parts']):.1f}",
            *(f"{part['ms']:.2f} ({part['ms'] / part['bound_ms']:.1f})" for part in one["parts"]),
        )
        for one in found
    ]
    names = [part["name"] for part in found[0]["parts"]]
    return markdown_table((f"{graph}: ms, and how many times the bound", "all", *names), rows)


def _repeatability(file: Path) -> str:
    record = _last_line(file)
    windows, runs = record["options"]["windows"], record["runs"]
    found = [
        Repeated(
            one["name"],
            tuple(_spread(file, rate) for rate in one["rates"]),
            tuple(Ratio(*ratio) for ratio in one["ratios"]),
        )
        for one in record["configurations"]
    ]
    measured = (
        f"{runs} runs, {windows['least']} to {windows['most']} windows of {windows['seconds']:g} s for each "
        f"configuration; {record['images']}, bundle {record['bundle'][:12]}"
    )
    return _joined(measured, _where(_machine(file, record)), table(found))


def _benchmark(file: Path) -> str:
    found = read(file)
    measured = (
        f"Bundle {found.fingerprint[:12]}, {found.encoder}; {found.images}; "
        f"windows of {found.options['windows']['seconds']:g} s"
    )
    warned = sum(bool(row.warnings) for row in found.rows)
    warnings = [f"- {plain(warning)}" for warning in found.warnings]
    if warned:
        warnings.append(f"- {warned} of {len(found.rows)} configurations have warnings of their own: see the file")
    absent = _absent({one.name: one.reason for one in found.unavailable})
    tables = (_single_stream(found), _offline(found), _server(found))
    return _joined(measured, _where(found.machine), *tables, absent, "\n".join(warnings))


def _single_stream(found: Benchmark) -> str:
    rows = [
        (
            *(row.name, str(row.beam), *(f"{row.latency.percentile(percent):.1f}" for percent in (50, 99))),
            *(_rate(row.images_per_s), by_reference(row, found.rows), f"{row.words:.1f}"),
        )
        for row in found.rows
        if row.scenario == "single-stream"
    ]
    columns = ("one image at a time", "beam", "p50 ms", "p99 ms", "images/s", BY_REFERENCE, "words")
    return markdown_table(columns, rows) if rows else ""


def _offline(found: Benchmark) -> str:
    offline = [row for row in found.rows if row.scenario == "offline"]
    levels = [level for level in get_args(Level) if any(level in row.levels for row in offline)]
    rows = [
        (
            *(row.name, str(row.batch), str(row.beam)),
            *(_rate(row.levels.get(level)) for level in levels),
            *(by_reference(row, offline), f"{row.words:.1f}"),
        )
        for row in offline
    ]
    columns = (
        "images/s, batch after batch",
        "batch",
        "beam",
        *(LEVELS[level] for level in levels),
        BY_REFERENCE,
        "words",
    )
    return markdown_table(columns, rows) if rows else ""


def _server(found: Benchmark) -> str:
    rows = [
        (
            *(row.name, str(row.batch), str(row.beam), f"{server.p99_bound_ms:g}"),
            "" if server.highest_rate is None else f"{server.highest_rate:.1f}",
            *(f"{server.held.rate:.1f}", f"{server.held.seconds:.0f}", str(server.held.requests)),
            *(str(server.held.lost), f"{server.held.p99_ms:.1f}"),
        )
        for row in found.rows
        if (server := row.server)
    ]
    asked = ("requests at random times", "batch", "beam", "bound of p99, ms")
    columns = (*asked, "highest rate", "held rate", "for seconds", "requests", "lost", "p99 ms")
    return markdown_table(columns, rows) if rows else ""


def _guard(file: Path) -> str:
    record = json.loads(file.read_text(encoding="utf-8"))
    rows = [(name, f"{ratio:.2f}") for name, ratio in record["ratios"].items()]
    return _joined(_where(_machine(file, record)), markdown_table(("ratio", "figure"), rows))


def _gpu(file: Path, *, with_loop: bool = True) -> str:
    record = json.loads(file.read_text(encoding="utf-8"))
    found = record["loop"] if with_loop else {}
    loop = {int(beam): _spread(file, one["images_per_s"]) for beam, one in found.items()}
    rows = []
    for row in record["rows"]:
        encoder, resident, host = (_spread(file, row[name]) for name in ("encoder", "resident", "host"))
        times = _ratio(ratio_of(loop[row["beam"]], resident)._asdict()) if row["beam"] in loop else ""
        rates = (*map(_whole, (encoder, resident, host)), f"{row['overlapped']:,.0f}")
        rows.append((row["side"], str(row["batch"]), str(row["beam"]), *rates, times, f"{row['same_words']:.0%}"))
    columns = ("side", "batch", "beam", "encoder alone", "resident", "host", "overlapped", "times the loop, resident")
    table = markdown_table((*columns, "same words as eager"), rows)
    files = [f"- {one['side']}, {_files(one)}" for one in record["files"]]
    loops = [f"- loop, beam {beam}: {_rate(rate)}" for beam, rate in loop.items()]
    about = _where(_machine(file, record))
    return _joined(about, table, "\n".join([*loops, *files]), _absent(record["unavailable"]))


def _files(found: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in found["shares"].items() if stage != "scan")
    return (
        f"{found['images']} files in batches of {found['batch']}, {found['loaders']} loaders: "
        f"{found['images_per_s']:,.0f} images/s ({shares} of the time)"
    )


def _whole(rate: Spread) -> str:
    return f"{rate.mean:,.0f} ±{rate.half_width:.0%}"


TABLES: dict[str, Callable[[Path], str]] = {
    "speed": _speed,
    "peers": _peers,
    "throughput": _throughput,
    "roofline": _roofline,
    "repeatability": _repeatability,
    "benchmark": _benchmark,
    "guard": _guard,
    "gpu": _gpu,
    "gpu_rates": partial(_gpu, with_loop=False),
}


def _last_line(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8").splitlines()[-1])


def _machine(file: Path, record: Mapping[str, Any]) -> Machine:
    return structure(record["machine"], Machine, source=f"{file}, machine", error=DataError)


def _spread(file: Path, values: Any) -> Spread:
    return structure(values, Spread, source=str(file), error=DataError)


def _rate(rate: Spread | None) -> str:
    return f"{rate.mean:.2f} ±{rate.half_width:.1%}" if rate else ""


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _where(machine: Machine) -> str:
    """What decides figures beside the work."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine.hardware}, load {machine.load:g}; {versions}{_commit(machine.commit, machine.changed)}"


def _environment(record: Mapping[str, Any]) -> str:
    ran = record["environment"]
    versions = ", ".join(f"{name} {ran[name]}" for name in ("saccade", "python", "torch"))
    commit = _commit(ran["commit"], ran["uncommitted_changes"])
    return f"{ran['device']}, {record['cores']} cores, load {record['load_before']:.2g}; {versions}{commit}"


def _commit(commit: str | None, changed: bool) -> str:
    return f", commit {commit[:12]}{' and changes' if changed else ''}" if commit else ""


def _command(module: str, options: Mapping[str, Any]) -> str:
    """What to type to measure the same again; options that are empty or zero are left at that."""
    return f"`{shlex.join(['python', '-m', module, *_arguments(options)])}`"


def _arguments(options: Mapping[str, Any]) -> Iterator[str]:
    for name, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            if name == "bundle":
                yield str(value)
            elif value:
                yield from (f"--{name}", str(value))


def _absent(reasons: Mapping[str, str]) -> str:
    """A line for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "\n".join(f"- {', '.join(alike)}: not available here: {plain(reason)}" for reason, alike in names.items())


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
