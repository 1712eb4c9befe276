"""`saccade score`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarks.scoring import score_results

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--references", required=True, type=_file, help="COCO captions file; images are matched by file name.")
@click.option("--scenes", type=_file, help="scenes.json of `saccade scenes`: score objects, relations, attention.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def score(results: Path, references: Path, scenes: Path | None, as_json: bool) -> None:
    """Score RESULTS, a folder that `saccade caption --out` wrote, against reference captions.

    Reports BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D; for generated scenes also whether the captions name the right
    objects and relations and, if attention was stored, whether the words look at what they name.
    """
    scores = score_results(results, references, scenes)
    if as_json:
        click.echo(json.dumps(scores))
    else:
        for name, value in scores.items():
            click.echo(f"{name}\t{value:.4f}")
