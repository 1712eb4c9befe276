"""`saccade caption`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from engine.backends.base import BACKENDS
from engine.captioner import Captioner, CaptionOptions
from engine.cluster import ClusterOptions, run_on_cluster
from engine.conversion import FORMAT_FROM_SUFFIX, ConversionOptions, Format, convert
from engine.images import Order, ScanOptions
from engine.names import Selection
from engine.records import Failure, Record
from engine.run import RunOptions, Summary, Survey, run, selected, survey
from engine.stopping import Signals
from saccade.bundle import Bundle, Precision
from saccade.glimpses import DecodeMode
from saccade.progress import Reporter
from saccade.search import SearchOptions

EXIT_TOO_MANY_FAILURES = 3

_SUFFIX_FROM_FORMAT = {form: suffix for suffix, form in FORMAT_FROM_SUFFIX.items()}

Command = TypeVar("Command", bound=Callable[..., None])


def _together(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_input_options = _together(
    click.option(
        "--order",
        default="folder",
        show_default=True,
        type=click.Choice(get_args(Order)),
        help="Of the files in a folder: sorted up to 10,000 and beyond as the disk has them, or always by name.",
    ),
    click.option("--hidden", is_flag=True, help="Take hidden files and folders, too."),
    click.option("--column", help="Column of Parquet files that holds the images.  [default: found by its name]"),
    click.option("--limit", type=click.IntRange(min=0), help="Only the first N images."),
    click.option(
        "--sample",
        default=1.0,
        show_default=True,
        type=click.FloatRange(0, 1, min_open=True),
        help="Only a share of the images, chosen by their names: the same ones each time.",
    ),
    click.option(
        "--num-shards",
        "shards",
        type=click.IntRange(min=1),
        help="Runs that share the images among them.  [default: 1; with --actors, 8 for each]",
    ),
    click.option(
        "--shard-index", "shard", type=click.IntRange(min=0), help="Which of them this is, from 0.  [default: 0]"
    ),
)
_output_options = _together(
    click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), help="Results folder; without it, lines to stdout."
    ),
    click.option(
        "--format",
        "formats",
        multiple=True,
        type=click.Choice(get_args(Format)),
        help="When all is done, also convert the results: to --out/captions.csv and so on, txt to files beside the "
        "images. `saccade convert` has more options. May be given several times.",
    ),
    click.option("--show", is_flag=True, help="With --out: print the captions as well."),
    click.option("--json", "as_json", is_flag=True, help="Print records, or with --out what the run did, as JSON."),
    click.option("--attention", is_flag=True, help="Store where each word looked, for `saccade gallery`."),
    click.option("--overwrite", is_flag=True, help="Throw away earlier results in --out instead of continuing them."),
    click.option("--retry-failures", is_flag=True, help="Try images again that could not be read before."),
    click.option(
        "--max-failures", default=0, show_default=True, help="Unreadable images that still mean success; -1: any."
    ),
    click.option("--dry-run", is_flag=True, help="Count what would be captioned, and read no image."),
    click.option("--quiet", is_flag=True, help="No progress."),
)
_search_options = _together(
    click.option("--beam", default=3, show_default=True, help="Rows searched per image; 1 is greedy."),
    click.option("--n-best", default=1, show_default=True, help="Captions per image."),
    click.option("--max-length", type=int, help="Longest caption in words.  [default: the bundle's]"),
    click.option("--min-length", default=0, show_default=True, help="Shortest caption in words."),
    click.option("--length-penalty", default=0.0, show_default=True, help="a of score / length^a."),
    click.option("--suppress-unk", is_flag=True, help="Never write <unk>."),
    click.option(
        "--decode-mode",
        type=click.Choice(get_args(DecodeMode)),
        help="Where hard attention looks.  [default: the bundle's]",
    ),
    click.option("--seed", default=0, show_default=True, help="Of --decode-mode sample."),
)
_machine_options = _together(
    click.option("--batch", default=16, show_default=True, help="Images encoded and searched together."),
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", *BACKENDS]),
        help="What runs the graphs.",
    ),
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", *get_args(Precision)]),
        help="Of the arithmetic; auto is the fastest float that the backend has here.",
    ),
    click.option("--threads", default=0, help="Arithmetic threads of CPU backends.  [default: the runtime's choice]"),
    click.option("--loaders", default=0, help="Threads that read images.  [default: one a core, 8 at most]"),
    click.option(
        "--time-limit", default=30.0, show_default=True, help="Seconds to read one image; then it is a failure."
    ),
)
_cluster_options = _together(
    click.option(
        "--actors",
        type=click.IntRange(min=1),
        help="Processes that caption on the Ray cluster that RAY_ADDRESS names, or else on this machine.",
    ),
    click.option("--gpus-per-actor", type=float, help="[default: 1 where the cluster has any]"),
)


@click.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Folder that `saccade export` wrote.")
@_output_options
@_input_options
@_search_options
@_machine_options
@_cluster_options
def caption(inputs: tuple[str, ...], bundle: Path, out: Path | None, **given: Any) -> None:
    """Caption images: files, folders with everything below them, patterns, lists, archives, tables and URLs.

    INPUTS may be files, folders, patterns such as 'photos/**/*.jpg', @list.txt or - with one input a line, tar shards
    such as 'shard-{000..099}.tar', Parquet files, and URLs of any kind fsspec knows.

    Results go to --out in parts that are complete or absent; the same command continues where an earlier one stopped.
    An image that cannot be read is recorded with its reason and never stops a run.

    \b
    Exit codes: 0 done, 1 error, 2 wrong usage, 3 done with more failures than --max-failures,
    130 interrupted, 143 terminated. What was captioned until then is kept.
    """  # noqa: D301 - \b is for click: it keeps the lines of a paragraph
    _check_usage(out, given)
    reporter = Reporter(quiet=given["quiet"], plain=given["show"])
    opened = Bundle.open(bundle)
    options, chosen = _caption_options(given, opened), _run_options(given)
    if given["dry_run"]:
        _print_survey(survey(opened, options, inputs, out, chosen), as_json=given["as_json"])
        return
    if given["actors"] and out is not None:
        failed = _caption_on_cluster(bundle, inputs, out, chosen, options, given, reporter)
    else:
        with Captioner.open(opened, options) as captioner:
            reporter.say(f"backend: {captioner.backend.description}")
            if out is None:
                failed = _print_captions(captioner, inputs, chosen, as_json=given["as_json"])
            else:
                failed = _write_captions(captioner, inputs, out, chosen, given, reporter)
    if 0 <= given["max_failures"] < failed:
        sys.exit(EXIT_TOO_MANY_FAILURES)


def _check_usage(out: Path | None, given: dict[str, Any]) -> None:
    need_out = [name for name in ("attention", "show", "overwrite", "retry_failures", "formats") if given[name]]
    if given["n_best"] > 1 and not given["as_json"]:
        need_out.append("n_best")
    if given["attention"] and given["as_json"]:
        need_out.remove("attention")
    if out is None and need_out:
        options = ", ".join(f"--{name.replace('_', '-').replace('formats', 'format')}" for name in need_out)
        raise click.UsageError(f"without --out nothing is kept, and {options} need --out")
    if given["shards"] is not None and given["shard"] is None and not given["actors"]:
        raise click.UsageError("--num-shards needs --shard-index, which of them this run is, or --actors")
    if given["gpus_per_actor"] is not None and not given["actors"]:
        raise click.UsageError("--gpus-per-actor needs --actors")
    if given["actors"] and given["overwrite"]:
        raise click.UsageError("--actors continue what is there: choose another --out instead of --overwrite")
    if given["actors"] and (out is None or given["show"] or given["shard"] is not None or given["dry_run"]):
        raise click.UsageError("--actors needs --out, and knows no --show, --shard-index and --dry-run")
    if given["show"] and given["as_json"]:
        raise click.UsageError("--show and --json both write to stdout: choose one")
    if given["overwrite"] and given["retry_failures"]:
        raise click.UsageError("--overwrite leaves no failures to --retry-failures: choose one")


def _caption_options(given: dict[str, Any], bundle: Bundle) -> CaptionOptions:
    manifest = bundle.manifest
    search = SearchOptions(
        beam=given["beam"],
        n_best=given["n_best"],
        max_length=manifest.max_length if given["max_length"] is None else given["max_length"],
        min_length=given["min_length"],
        length_penalty=given["length_penalty"],
        suppress_unk=given["suppress_unk"],
        decode_mode=given["decode_mode"] or manifest.decode_mode,
        seed=given["seed"],
    )
    return CaptionOptions(
        search=search,
        batch=given["batch"],
        attention=given["attention"],
        backend=given["backend"],
        precision=None if given["precision"] == "auto" else given["precision"],
        threads=given["threads"],
        loaders=given["loaders"],
        time_limit_s=given["time_limit"],
    )


def _run_options(given: dict[str, Any]) -> RunOptions:
    return RunOptions(
        scan=ScanOptions(hidden=given["hidden"], order=given["order"], column=given["column"]),
        selection=Selection(
            shard=given["shard"] or 0,
            shards=1 if given["actors"] else given["shards"] or 1,
            sample=given["sample"],
            limit=given["limit"],
        ),
        overwrite=given["overwrite"],
        retry_failures=given["retry_failures"],
    )


def _print_captions(captioner: Captioner, inputs: tuple[str, ...], options: RunOptions, *, as_json: bool) -> int:
    failed = 0
    for result in captioner.caption(selected(inputs, options)):
        (_print_json if as_json else _print)(result)
        failed += isinstance(result, Failure)
    return failed


def _write_captions(
    captioner: Captioner,
    inputs: tuple[str, ...],
    out: Path,
    options: RunOptions,
    given: dict[str, Any],
    reporter: Reporter,
) -> int:
    show = _print if given["show"] else lambda _: None
    signals = Signals(reporter)
    summary = run(captioner, inputs, out, options, reporter=reporter, stop=signals.stop, during=signals, show=show)
    _print_summary(summary, reporter, as_json=given["as_json"])
    signals.raise_what_came()
    _convert(summary.folder, given, reporter)
    return summary.totals.failed


def _convert(out: Path, given: dict[str, Any], reporter: Reporter) -> None:
    for form in given["formats"]:
        file = out / f"captions{_SUFFIX_FROM_FORMAT[form]}" if form in _SUFFIX_FROM_FORMAT else None
        convert(out, ConversionOptions(format=form, out=file, overwrite=file is not None), reporter)
        reporter.say(f"{file or 'beside the images'}: {form}")


def _caption_on_cluster(
    bundle: Path,
    inputs: tuple[str, ...],
    out: Path,
    options: RunOptions,
    caption: CaptionOptions,
    given: dict[str, Any],
    reporter: Reporter,
) -> int:
    cluster = ClusterOptions(actors=given["actors"], shards=given["shards"] or 0, gpus=given["gpus_per_actor"])
    done = run_on_cluster(bundle, inputs, out, options, caption, cluster, reporter=reporter)
    if given["as_json"]:
        click.echo(json.dumps({"out": str(out)} | asdict(done)))
    reporter.say(f"{out}: {done.captioned} captions, {done.failed} failures")
    _convert(out, given, reporter)
    return done.failed


def _print(result: Record | Failure) -> None:
    if isinstance(result, Record):
        click.echo(f"{result.path}\t{result.caption}")
    else:
        click.echo(f"{result.path}: {result.kind}: {result.error}", err=True)


def _print_json(result: Record | Failure) -> None:
    click.echo(json.dumps(result.as_json()))


def _print_summary(summary: Summary, reporter: Reporter, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"out": str(summary.folder)} | summary.as_json()))
    earlier = summary.totals.captioned - summary.captioned_now
    reporter.say(
        f"{summary.folder}: {summary.totals.captioned} captions, {summary.totals.failed} failures"
        + (f" ({earlier} captions from before)" if earlier else "")
        + f", {summary.images_per_s:.1f} images/s"
    )
    busy = ", ".join(f"{name} {share:.0%}" for name, share in summary.stages.items())
    if summary.captioned_now:
        reporter.say(f"at work: {busy}; {summary.bottleneck} is the bottleneck")


def _print_survey(found: Survey, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        click.echo(f"{found.waiting} images to caption, {found.done} done, {found.again} named more than once")
