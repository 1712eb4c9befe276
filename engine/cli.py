"""`saccade gallery`, `inspect` and `doctor`."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import click

from engine.doctor import diagnose
from engine.gallery import write_gallery
from engine.inspection import describe
from engine.results import read_failures, read_records, read_run, results_folders
from saccade.bundle import Bundle

_bundle_type = click.Path(path_type=Path)


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
    folders = results_folders(results)
    details = read_run(folders[0])
    destination = out or results / "gallery.html"
    count = write_gallery(
        chain.from_iterable(map(read_records, folders)),
        destination,
        title=title or results.resolve().name,
        crop=details["geometry"] == "crop",
        failures=list(chain.from_iterable(map(read_failures, folders))),
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
