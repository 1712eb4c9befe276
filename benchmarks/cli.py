"""`saccade score`, and what other commands that report scores share with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import click

from benchmarks.scoring import ScoringOptions, Tokenizer, score_results
from training.java_metrics import METRICS

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _metric_names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    chosen = value.split(",") if value else []
    if unknown := [name for name in chosen if name not in METRICS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(METRICS)}.")
    return tuple(name for name in METRICS if name in chosen)


metrics_option = click.option(
    "--metrics",
    default="",
    callback=_metric_names,
    metavar="NAMES",
    help="Further metrics, with commas: meteor, spice. They need Java 17 and the extra metrics.",
)


def score_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Lines of scores, one column for each heading; without headings the first line is left out."""
    names = dict.fromkeys(name for scores in columns.values() for name in scores)
    width = max(map(len, names)) + 2
    lines = [" " * width + "".join(f"{heading:>10}" for heading in columns)] if any(columns) else []
    for name in names:
        values = (f"{scores[name]:.4f}" if name in scores else "" for scores in columns.values())
        lines.append(f"{name:<{width}}" + "".join(f"{value:>10}" for value in values))
    return "\n".join(line.rstrip() for line in lines)


@click.command()
@click.argument("results", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--references", required=True, type=_file, help="COCO captions file; images are matched by file name, or by id."
)
@click.option("--scenes", type=_file, help="scenes.json of `saccade scenes`: score objects, relations, attention.")
@metrics_option
@click.option(
    "--tokenizer",
    type=click.Choice(get_args(Tokenizer)),
    default="saccade",
    show_default=True,
    help="Cuts both sides into words; ptb is that of coco-caption and needs what --metrics needs.",
)
@click.option("--subset", is_flag=True, help="Leave out images that have references and no caption.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def score(
    results: Path,
    references: Path,
    scenes: Path | None,
    metrics: tuple[str, ...],
    tokenizer: Tokenizer,
    subset: bool,
    as_json: bool,
) -> None:
    """Score RESULTS, a folder that `saccade caption --out` wrote or a COCO results file, against reference captions.

    Reports BLEU-1 to BLEU-4 with and without brevity penalty, ROUGE-L and CIDEr-D; for generated scenes also whether
    the captions name the right objects and relations and, if attention was stored, whether the words look at what they
    name.
    """
    options = ScoringOptions(tokenizer=tokenizer, metrics=metrics, subset=subset)
    scores = score_results(results, references, scenes, options)
    if as_json:
        click.echo(json.dumps(scores | {"tokenizer": tokenizer}))
    else:
        click.echo(score_table({"": scores}))
        click.echo(f"tokenizer: {tokenizer}", err=True)
