"""`saccade evaluate`."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.cli import metrics_option, score_table
from benchmarks.evaluation import Model, caption_split, coco_results, compared, open_model, split_scores
from benchmarks.scoring import read_coco_results
from engine.backends.base import BACKENDS
from saccade import __version__
from saccade.bundle import Precision
from saccade.errors import DataError, OutputError
from saccade.files import write_json
from saccade.glimpses import DecodeMode
from saccade.progress import Reporter
from training.config import load_config
from training.data import SplitName, load_split, open_data
from training.java_metrics import open_metrics


@click.command()
@click.argument(
    "models",
    nargs=-1,
    required=True,
    metavar="MODEL...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Training configuration; its [data] says what the splits are.",
)
@click.option("--split", required=True, type=click.Choice(["validation", "test"]), help="What is captioned.")
@click.option(
    "--beam",
    "beams",
    multiple=True,
    default=(3,),
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows searched per image; 1 is greedy. May be given several times.",
)
@click.option(
    "--decode-mode",
    type=click.Choice(get_args(DecodeMode)),
    help="Where hard attention looks.  [default: the bundle's; expected of a checkpoint]",
)
@click.option("--seed", default=0, show_default=True, help="Of --decode-mode sample.")
@click.option(
    "--backend", default="auto", show_default=True, type=click.Choice(["auto", *BACKENDS]), help="What runs a bundle."
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Of a bundle's arithmetic.  [default: the fastest float that the backend has here]",
)
@metrics_option
@click.option("--limit", type=click.IntRange(min=1), help="The first N images of the split only.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="X.json writes COCO results X.beam3.json for beam 3 and so on, and X.scores.json.",
)
@click.option(
    "--against",
    type=click.Path(dir_okay=False, path_type=Path),
    help="X.json: also tell how captions and CIDEr-D differ from those that --out X.json wrote.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
def evaluate(
    models: tuple[Path, ...],
    data: Path,
    split: SplitName,
    beams: tuple[int, ...],
    decode_mode: DecodeMode | None,
    seed: int,
    backend: str,
    precision: Precision | None,
    metrics: tuple[str, ...],
    limit: int | None,
    out: Path | None,
    against: Path | None,
    quiet: bool,
) -> None:
    """Caption a split with MODEL and score the captions: a column of scores for each beam.

    MODEL is a bundle, a checkpoint, or the folder of a training run, whose best epoch is then taken. Several
    checkpoints or runs are an ensemble, which chooses each word by the mean of their probabilities. Images are
    preprocessed as the model wants them, whatever the configuration says. Both sides are tokenised by saccade's own
    rule; for coco-caption's, give the results to `saccade score`.
    """
    config, reporter = load_config(data), Reporter(quiet=quiet)
    beams = tuple(dict.fromkeys(beams))
    earlier = {beam: read_coco_results(_path(against, f"beam{beam}")) for beam in beams} if against else {}
    report: dict[int, dict[str, float]] = {}
    with open_metrics(metrics) as measured, open_model(*models, backend=backend, precision=precision) as opened:
        own = opened.search_options
        opened = replace(opened, search_options=replace(own, decode_mode=decode_mode or own.decode_mode, seed=seed))
        reporter.say(f"{opened.name} on {opened.runs_on}")
        with reporter.task(f"loading {split}", limit, unit="images") as progress:
            images = load_split(open_data(config.data), split, opened.preprocessing, limit=limit, progress=progress)
        if images is None:
            raise DataError(f"{data} has no {split} split: choose another --split")
        if any(said.keys() != set(images.ids) for said in earlier.values()):
            raise DataError(f"{against} is of other images: compare runs over one split, with one --limit")
        for beam in beams:
            with reporter.task(f"beam {beam}", len(images), unit="images") as progress:
                found = caption_split(opened, images, beam, progress=progress)
            if out:
                _write(out, f"beam{beam}", coco_results(images.ids, found.captions))
            report[beam] = split_scores(opened, images, found, measured) | {"seconds": found.seconds}
            if against:
                report[beam] |= compared(found, earlier[beam], images)
        if out:
            about = {"data": str(data), "split": split, "images": len(images)}
            _write(out, "scores", _description(opened, metrics) | about | {"beams": report})
    click.echo(score_table({f"beam {beam}": scores for beam, scores in report.items()}))


def _path(out: Path, what: str) -> Path:
    return out.with_name(f"{out.stem}.{what}.json")


def _write(out: Path, what: str, value: Any) -> None:
    path = _path(out, what)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another --out") from error


def _description(model: Model, metrics: tuple[str, ...]) -> dict[str, Any]:
    packages = ("numpy", "torch", *(("pycocoevalcap",) if metrics else ()))
    return {
        "model": model.name,
        "runs_on": model.runs_on,
        "search": {name: value for name, value in asdict(model.search_options).items() if name != "beam"},
        "tokenizer": "saccade",
        "trained": list(model.provenance),
        "versions": {"saccade": __version__, "python": platform.python_version()}
        | {package: version(package) for package in packages},
    }
