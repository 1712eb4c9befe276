"""`saccade compare`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.comparison_candidates import (
    Candidate,
    ComparisonOptions,
    Picture,
    compare_candidates,
    default_reference,
)
from benchmarks.comparison_report import write_report
from benchmarks.comparison_results import CandidateResult, Comparison, as_json
from benchmarks.comparison_scores import references_of
from engine.captioner import CaptionOptions
from engine.folders import images_below
from engine.images import ScanOptions
from saccade.bundle import Bundle, Precision
from saccade.errors import ConfigError, DataError, OutputError
from saccade.files import write_json
from saccade.progress import Reporter

REPORT, JSON = "comparison.html", "comparison.json"
_file = click.Path(dir_okay=False, path_type=Path)
_WIDTH = 120
_SHOWN = 3


def _candidates(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[Candidate]:
    try:
        return [Candidate.parse(one) for value in values for one in value.split(",")]
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def _reference(_: click.Context, __: click.Parameter, value: str | None) -> Candidate | None:
    if value is None:
        return None
    try:
        found = Candidate.parse(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error
    if found.bundle:
        raise click.BadParameter("the reference runs BUNDLE itself: give another bundle to a candidate")
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    callback=_reference,
    metavar="NAME",
    help="What is right, in float32 unless it says otherwise.  [default: pytorch where BUNDLE has weights, else ort]",
)
@click.option(
    "--candidates",
    required=True,
    multiple=True,
    callback=_candidates,
    metavar="NAMES",
    help="With commas: backend, backend:precision, and either with @OTHER, which is another bundle.",
)
@click.option(
    "--images",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images to compare on.",
)
@click.option("--limit", type=click.IntRange(min=1), help="The first N images only.")
@click.option(
    "--references",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Captions that are right: a COCO captions file, or an object of file names and lists of captions.",
)
@click.option("--beam", default=3, show_default=True, type=click.IntRange(min=1), help="Rows searched per image.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(min=1), help="Images searched together.")
@click.option("--threads", default=0, type=click.IntRange(min=0), help="For the arithmetic.  [default: the runtime's]")
@click.option(
    "--tolerances",
    type=click.Choice(get_args(Precision)),
    help="Those of this precision for all.  [default: those of the precision that each runs in]",
)
@click.option("--max-deviation", type=click.FloatRange(min=0), help="Of outputs, in units of their root mean square.")
@click.option("--max-score-error", type=click.FloatRange(min=0), help="Of the score of a word, in nats.")
@click.option("--max-errors", type=click.FloatRange(0, 1), help="Share of captions, and of words, that may be wrong.")
@click.option("--max-drop", type=click.FloatRange(min=0), help="Of CIDEr-D, with --references.")
@click.option("--layers", is_flag=True, help="Also find where in the encoder the error enters; needs onnx.")
@click.option("--worst", default=8, show_default=True, type=click.IntRange(min=0), help="Images shown on the page.")
@click.option("--json", "json_file", type=_file, help="Write all figures to this file.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Write {REPORT} and {JSON} to this folder.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
def compare(
    bundle: Path,
    reference: Candidate | None,
    candidates: list[Candidate],
    images: Path,
    limit: int | None,
    references: Path | None,
    beam: int,
    batch: int,
    threads: int,
    tolerances: Precision | None,
    layers: bool,
    worst: int,
    json_file: Path | None,
    out: Path | None,
    quiet: bool,
    **limits: float | None,
) -> None:
    """Tell how what candidates compute from BUNDLE differs from what the reference computes, and why.

    Every backend gets the same pixels. Outputs of both graphs are compared on the same inputs, the step's also as
    errors add up; then words, captions and attention. A caption that differs because two words are as good as each
    other is a near-tie and no error.

    Exits with 1 if a candidate fails, or if none runs here. One that does not run here is told of and is no failure.
    """
    reporter, opened = Reporter(quiet=quiet), Bundle.open(bundle)
    chosen = reference or default_reference(opened)
    options = ComparisonOptions(
        search=replace(CaptionOptions().search_options(opened), beam=beam),
        batch=batch,
        threads=threads,
        tolerances=tolerances,
        changes={_TOLERANCE[name]: limit for name, limit in limits.items() if limit is not None},
        layers=layers,
    )
    pictures = _pictures(images, limit, references)
    reporter.say(f"reference: {chosen}, {len(pictures)} images, beam {beam}")
    with reporter.task("comparing", len(pictures), unit="images") as progress:
        comparison = compare_candidates(opened, chosen, candidates, pictures, options, progress=progress)
    _print(comparison)
    if out:
        write_report(comparison, opened, out / REPORT, worst=worst)
    for path in [path for path in (json_file, out and out / JSON) if path]:
        _write(path, comparison)
    if not comparison.passes:
        sys.exit(1)


_TOLERANCE = {
    "max_deviation": "deviation",
    "max_score_error": "score",
    "max_errors": "errors",
    "max_drop": "drop",
}


def _pictures(folder: Path, limit: int | None, references: Path | None) -> list[Picture]:
    known = references_of(references) if references else {}
    sources = islice(images_below(str(folder), ScanOptions(order="name")), limit)
    paths = [source.content for source in sources if isinstance(source.content, Path)]
    pictures = [Picture(path, known.get(path.name, ())) for path in paths]
    if references and not any(picture.references for picture in pictures):
        raise DataError(f"{references} has no captions of the images in {folder}: file names have to be the same")
    return pictures


def _write(path: Path, comparison: Comparison) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, as_json(comparison))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another place") from error


def _print(comparison: Comparison) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=_WIDTH, highlight=False, markup=False, emoji=False)
    console.print(f"reference: {comparison.reference}; {comparison.images} images")
    console.print(_summary(comparison))
    for found in comparison.candidates:
        console.print(_outputs(found))
        for line in _lines(found):
            console.print(line, soft_wrap=True)
    for absent in comparison.unavailable:
        console.print(f"{absent.name}: not available here: {absent.reason}", soft_wrap=True)
    for found in comparison.candidates:
        console.print(Text(f"{found.verdict} {found.name}: {found.diagnosis}", style="bold"), soft_wrap=True)


def _summary(comparison: Comparison) -> Table:
    has_scores = any(found.scores for found in comparison.candidates)
    numbers = ["top-1", "top-k", "same", "near-ties", "errors", "overlap", *(["CIDEr-D"] if has_scores else [])]
    table = Table("candidate", "runs on", box=None, pad_edge=False)
    for name in numbers:
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for found in comparison.candidates:
        counts = [str(found.count(outcome)) for outcome in ("same", "near-tie", "error")]
        scores = [f"{found.scores['CIDEr-D'].change:+.3f}" if found.scores else ""] if has_scores else []
        shares = [f"{value:.2%}" for value in found.top]
        row = [found.name, found.runs_on, *shares, *counts, f"{found.overlap:.4f}", *scores, found.verdict]
        table.add_row(*row)
    return table


def _outputs(found: CandidateResult) -> Table:
    table = Table(found.name, box=None, pad_edge=False)
    for name in ("deviation", "max", "mean", "p99", "relative p99", "cosine", "NaN, Inf"):
        table.add_column(name, justify="right")
    parts = {"": found.encoder | found.step, "drift of ": found.drift}
    for prefix, outputs in parts.items():
        for name, errors in outputs.items():
            absolute = [f"{value:.1e}" for value in (errors.absolute.max, errors.absolute.mean, errors.absolute.p99)]
            rest = [f"{errors.relative.p99:.1e}", f"{errors.cosine:.7f}", str(errors.nan + errors.infinite)]
            table.add_row(prefix + name, f"{errors.deviation:.1e}", *absolute, *rest)
    return table


def _lines(found: CandidateResult) -> Iterator[str]:
    differing = sorted((one for one in found.captions if one.parting), key=lambda one: one.outcome)
    for caption in differing[:_SHOWN]:
        if parting := caption.parting:
            yield (
                f'{caption.outcome}: {caption.image}: "{caption.candidate}" instead of "{caption.reference}": step '
                f'{parting.step} holds "{parting.taken}" instead of "{parting.kept}", margin {parting.margin:.2g}, '
                f"rounding explains {parting.explained:.2g}"
            )
    if len(differing) > _SHOWN:
        yield f"and {len(differing) - _SHOWN} more captions, which --json and --out write"
    for name, change in found.scores.items():
        interval = f"{change.change:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
        yield f"{name}: {change.candidate:.4f} instead of {change.reference:.4f}, {interval}"
    if found.layers:
        enters = found.layers.enters
        yield found.layers.note or (
            f"the error enters the encoder at {enters.tensor} ({enters.operator}): {enters.deviation:.1e}, "
            f"before it {enters.before:.1e}"
            if enters
            else "no tensor in the encoder differs beyond rounding"
        )
    for problem in found.problems:
        yield f"fails: {problem}"
