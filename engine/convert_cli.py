"""`saccade convert`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from click.core import ParameterSource

from engine import conversion
from engine.conversion import FORMAT_FROM_SUFFIX, ConversionOptions, Format
from engine.sidecars import Existing, SidecarOptions
from saccade.progress import Reporter

_SIDECAR_OPTIONS = ("existing", "prefix", "suffix", "extension", "keep_suffix", "root")


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--to", type=click.Choice(get_args(Format)), help="What to write.  [default: told by the name of --out]")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; txt has none.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
@click.option("--partial", is_flag=True, help="Of a run in shards, take those that are there.")
@click.option(
    "--ids",
    default="number",
    show_default=True,
    metavar="RULE",
    help="coco: number (last digits of the file name), stem (file name without suffix), or a COCO annotations file.",
)
@click.option(
    "--existing",
    type=click.Choice(get_args(Existing)),
    default="skip",
    show_default=True,
    help="txt: what becomes of sidecars that are there already.",
)
@click.option("--prefix", default="", help="txt: text before each caption.")
@click.option("--suffix", default="", help="txt: text after each caption.")
@click.option("--extension", default=".txt", show_default=True, help="txt: of sidecars, in place of the image's.")
@click.option("--keep-suffix", is_flag=True, help="txt: add the extension to the image's; photo.jpg.txt.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    help="txt: write below this folder instead of beside the images.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@click.pass_context
def convert(
    context: click.Context,
    source: Path,
    to: Format | None,
    out: Path | None,
    overwrite: bool,
    partial: bool,
    ids: str,
    existing: Existing,
    prefix: str,
    suffix: str,
    extension: str,
    keep_suffix: bool,
    root: Path | None,
    quiet: bool,
) -> None:
    """Write results in another form: jsonl, csv, parquet, coco (results list) or txt (a file beside each image).

    SOURCE is a folder that `saccade caption --out` wrote, a folder of such folders for shards, or a file: .jsonl, .csv,
    .parquet, or .json for COCO results. What a run has not committed yet is not in it.
    """
    to = to or _format_from_name(out)
    _refuse_options_of_other_formats(context, to)
    if (out is None) != (to == "txt"):
        raise click.UsageError("--to txt has no --out, see --root; every other format needs --out")
    sidecars = SidecarOptions(
        existing=existing, prefix=prefix, suffix=suffix, extension=extension, keep_suffix=keep_suffix, root=root
    )
    options = ConversionOptions(format=to, out=out, overwrite=overwrite, partial=partial, ids=ids, sidecars=sidecars)
    reporter = Reporter(quiet=quiet)
    done = conversion.convert(source, options, reporter)
    if out is None:
        reporter.say(f"{root or source}: {done.records - done.left} sidecars written, {done.left} left as they were")
    else:
        reporter.say(f"{out}: {done.records} records")


def _format_from_name(out: Path | None) -> Format:
    suffix = out.suffix.lower() if out else ""
    if suffix not in FORMAT_FROM_SUFFIX:
        raise click.UsageError(f"give --to, or an --out named {', '.join(FORMAT_FROM_SUFFIX)}")
    return FORMAT_FROM_SUFFIX[suffix]


def _refuse_options_of_other_formats(context: click.Context, to: Format) -> None:
    for owner, names in (("coco", ("ids",)), ("txt", _SIDECAR_OPTIONS)):
        for name in names:
            if to != owner and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} is an option of --to {owner}")
