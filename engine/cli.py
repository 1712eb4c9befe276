"""`saccade caption`, `gallery`, `inspect` and `doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import click

from engine.backends.base import BACKENDS
from engine.captioner import Captioner, CaptionOptions
from engine.doctor import diagnose
from engine.gallery import write_gallery
from engine.inspection import describe
from engine.records import Failure, Record
from engine.results import read_failures, read_records, read_run
from engine.run import run
from engine.sources import find_images
from saccade.bundle import Bundle
from saccade.glimpses import DecodeMode
from saccade.progress import Reporter
from saccade.search import SearchOptions

EXIT_TOO_MANY_FAILURES = 3

_bundle_type = click.Path(path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--bundle", required=True, type=_bundle_type, help="Folder that `saccade export` wrote.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Results folder; without it, lines to stdout."
)
@click.option("--show", is_flag=True, help="With --out: print the captions as well.")
@click.option("--attention", is_flag=True, help="Store where each word looked, for `saccade gallery`.")
@click.option("--beam", default=3, show_default=True, help="Rows searched per image; 1 is greedy.")
@click.option("--n-best", default=1, show_default=True, help="Captions per image.")
@click.option("--max-length", type=int, help="Longest caption in words.  [default: the bundle's]")
@click.option("--min-length", default=0, show_default=True, help="Shortest caption in words.")
@click.option("--length-penalty", default=0.0, show_default=True, help="a of score / length^a.")
@click.option("--suppress-unk", is_flag=True, help="Never write <unk>.")
@click.option(
    "--decode-mode",
    type=click.Choice(get_args(DecodeMode)),
    help="Where hard attention looks.  [default: the bundle's]",
)
@click.option("--seed", default=0, show_default=True, help="Of --decode-mode sample.")
@click.option("--batch", default=16, show_default=True, help="Images encoded and searched together.")
@click.option(
    "--backend", default="auto", show_default=True, type=click.Choice(["auto", *BACKENDS]), help="What runs the graphs."
)
@click.option("--threads", default=0, help="Arithmetic threads of CPU backends.  [default: the runtime's choice]")
@click.option(
    "--max-failures", default=0, show_default=True, help="Unreadable images that still mean success; -1: any."
)
@click.option("--overwrite", is_flag=True, help="Throw away earlier results in --out instead of continuing them.")
@click.option("--quiet", is_flag=True, help="No progress.")
def caption(
    paths: tuple[Path, ...],
    bundle: Path,
    out: Path | None,
    show: bool,
    attention: bool,
    beam: int,
    n_best: int,
    max_length: int | None,
    min_length: int,
    length_penalty: float,
    suppress_unk: bool,
    decode_mode: DecodeMode | None,
    seed: int,
    batch: int,
    backend: str,
    threads: int,
    max_failures: int,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Caption images: files, and folders with everything below them.

    Results go to --out in parts that are complete or absent; the same command continues where an earlier one stopped.
    An image that cannot be read is recorded with its reason and never stops a run.

    \b
    Exit codes: 0 done, 1 error, 2 wrong usage, 3 done with more failures than --max-failures,
    130 interrupted, 143 terminated. What was captioned until then is kept.
    """  # noqa: D301 - \b is for click: it keeps the lines of a paragraph
    if out is None and (attention or show or overwrite or n_best > 1):
        raise click.UsageError("--attention, --show, --overwrite and --n-best need --out: lines to stdout hold no more")
    reporter = Reporter(quiet=quiet, plain=show)
    opened = Bundle.open(bundle)
    options = CaptionOptions(
        search=SearchOptions(
            beam=beam,
            n_best=n_best,
            max_length=opened.manifest.max_length if max_length is None else max_length,
            min_length=min_length,
            length_penalty=length_penalty,
            suppress_unk=suppress_unk,
            decode_mode=decode_mode or opened.manifest.decode_mode,
            seed=seed,
        ),
        batch=batch,
        attention=attention,
        backend=backend,
        threads=threads,
    )
    with Captioner.open(opened, options) as captioner:
        reporter.say(f"backend: {captioner.backend.description}")
        if out is None:
            failed = _print_captions(captioner, paths)
        else:
            failed = _write_captions(captioner, paths, out, show=show, overwrite=overwrite, reporter=reporter)
    if 0 <= max_failures < failed:
        sys.exit(EXIT_TOO_MANY_FAILURES)


def _print_captions(captioner: Captioner, paths: tuple[Path, ...]) -> int:
    failed = 0
    for result in captioner.caption(find_images(paths)):
        _print(result)
        failed += isinstance(result, Failure)
    return failed


def _write_captions(
    captioner: Captioner, paths: tuple[Path, ...], out: Path, *, show: bool, overwrite: bool, reporter: Reporter
) -> int:
    summary = run(
        captioner, paths, out, overwrite=overwrite, reporter=reporter, show=_print if show else lambda _: None
    )
    rate = summary.captioned_now / max(summary.seconds, 1e-9)
    earlier = summary.totals.captioned - summary.captioned_now
    reporter.say(
        f"{out}: {summary.totals.captioned} captions, {summary.totals.failed} failures"
        + (f" ({earlier} captions from before)" if earlier else "")
        + f", {rate:.1f} images/s"
    )
    return summary.totals.failed


def _print(result: Record | Failure) -> None:
    if isinstance(result, Record):
        click.echo(f"{result.path}\t{result.caption}")
    else:
        click.echo(f"{result.path}: {result.kind}: {result.error}", err=True)


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: RESULTS/gallery.html]"
)
@click.option("--title", help="Heading of the page.  [default: the name of the folder]")
@click.option("--limit", type=click.IntRange(min=0), help="Show the first N images only.")
def gallery(results: Path, out: Path | None, title: str | None, limit: int | None) -> None:
    """Make one HTML page of RESULTS, a folder that `saccade caption --out` wrote.

    The page needs no network and no server. With `caption --attention` its words show where the model looked.
    """
    details = read_run(results)
    destination = out or results / "gallery.html"
    count = write_gallery(
        read_records(results),
        destination,
        title=title or results.resolve().name,
        crop=details["geometry"] == "crop",
        failures=list(read_failures(results)),
        limit=limit,
        root=Path(details["working_directory"]),
    )
    click.echo(f"{destination}: {count} images", err=True)


@click.command(name="inspect")
@click.argument("bundle", type=_bundle_type)
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Check every file of BUNDLE and show what it is: model, tensors, preprocessing, errors at export, scores."""
    click.echo(describe(Bundle.open(bundle), as_json=as_json))


@click.command()
@click.option("--bundle", type=_bundle_type, help="Also open this bundle on every backend.")
def doctor(bundle: Path | None) -> None:
    """Tell what is installed, which backends truly run here, what clashes and what to install.

    Exits with 1 if no backend runs.
    """
    report = diagnose(Bundle.open(bundle) if bundle else None)
    click.echo(report.text)
    if not report.runs:
        sys.exit(1)
