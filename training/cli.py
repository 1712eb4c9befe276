"""`saccade train`."""

from __future__ import annotations

import logging
from pathlib import Path

import click
import torch

from saccade.errors import BackendError
from saccade.progress import Reporter
from training.config import load_config
from training.distribution import device_number, is_main, joined
from training.evaluation import check_attention
from training.trainer import Trainer


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run.  [default: runs/<config name>]"
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help='Change CONFIG by a line of TOML, such as "optimisation.epochs = 2". May be given several times.',
)
@click.option("--device", default="auto", show_default=True, help='"auto", "cpu", "cuda" or "cuda:N".')
@click.option("--overwrite", is_flag=True, help="Throw away an earlier run in the folder instead of resuming it.")
@click.option("--quiet", is_flag=True, help="No progress.")
def train(config: Path, out: Path | None, changes: tuple[str, ...], device: str, overwrite: bool, quiet: bool) -> None:
    """Train a captioner as CONFIG, a TOML file, says.

    Every epoch ends with a validation by beam search and an atomic checkpoint. The same command continues an
    interrupted run after its last finished epoch. At the end the best epoch is scored on the test split; where its
    attention does not move, that is an error.
    """
    settings, chosen = load_config(config, changes), _device(device)
    folder = out or Path("runs") / config.stem
    with joined(chosen):
        if not is_main():  # the others say only what goes wrong
            logging.getLogger("training").setLevel(logging.WARNING)
        trainer = Trainer(settings, folder, device=chosen, reporter=Reporter(quiet=quiet or not is_main()))
        scores = trainer.run(overwrite=overwrite)
        for name, value in scores.items() if is_main() else ():
            click.echo(f"{name}\t{value:.4f}")
    check_attention(settings.decoder.attention, scores)


def _device(name: str) -> torch.device:
    """The device that is meant, tried; of "auto" and "cuda" each process that torchrun starts has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{device_number()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackendError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}): try --device cpu"
        ) from error
    return device
