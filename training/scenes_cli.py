"""`saccade scenes`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from training.scenes import write_scenes


@click.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option("--count", default=24, show_default=True, type=click.IntRange(1), help="Number of scenes.")
@click.option("--first-seed", default=0, show_default=True, type=click.IntRange(0), help="Scene i has seed first + i.")
@click.option("--size", default=224, show_default=True, type=click.IntRange(32, 4096), help="Side in pixels.")
@click.option(
    "--format", "kind", default="png", show_default=True, type=click.Choice(["png", "jpg"]), help="Image files."
)
def scenes(out: Path, count: int, first_seed: int, size: int, kind: Literal["png", "jpg"]) -> None:
    """Draw captioned scenes: images/, captions.json (COCO format) and scenes.json (objects, boxes, relations).

    The same seeds give the same files. Scenes to test on must not share seeds with those trained on.
    """
    write_scenes(out, first_seed=first_seed, count=count, size=size, format=kind)
    click.echo(f"{out}: {count} scenes", err=True)
