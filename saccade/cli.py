"""The `saccade` command. Subcommands are imported when they are run: `saccade --help` is quick and needs no runtime."""

from __future__ import annotations

import importlib
import io
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from saccade import __version__
from saccade.errors import BackendError, SaccadeError


@dataclass(frozen=True, slots=True)
class Subcommand:
    """Where a subcommand lives, what `saccade --help` says of it, and the extra that brings what it imports."""

    module: str
    help: str
    extra: str | None = None


SUBCOMMANDS = {
    "caption": Subcommand("engine.cli", "Caption images and folders of images with a bundle."),
    "gallery": Subcommand("engine.cli", "Make one HTML page of captions and where each word looked."),
    "train": Subcommand("training.cli", "Train a captioner from a TOML configuration.", "train"),
    "evaluate": Subcommand("benchmarks.evaluation_cli", "Caption a split of a data set and score it.", "train"),
    "export": Subcommand("export.cli", "Turn a checkpoint into a bundle of verified ONNX graphs.", "export"),
    "inspect": Subcommand("engine.cli", "Show what is in a bundle, after checking every file of it."),
    "score": Subcommand("benchmarks.cli", "Score captions against references."),
    "scenes": Subcommand("training.scenes_cli", "Draw captioned scenes to train and test on."),
    "doctor": Subcommand("engine.cli", "Tell what is installed, which backends run here, and what to install."),
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported by name."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Subcommands in the order people meet them."""
        return list(SUBCOMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Import the subcommand. Raises BackendError naming the extra whose packages are missing."""
        if name not in SUBCOMMANDS:
            return None
        subcommand = SUBCOMMANDS[name]
        try:
            module = importlib.import_module(subcommand.module)
        except ModuleNotFoundError as error:
            if subcommand.extra is None or error.name is None:
                raise
            raise BackendError(
                f"saccade {name} needs {error.name}, which is not installed: pip install 'saccade[{subcommand.extra}]'"
            ) from error
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, subcommand.help) for name, subcommand in SUBCOMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="saccade")
def root() -> None:
    """Caption images in batches and see what each word looked at (Show, Attend and Tell)."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for package in ("saccade", "training", "export", "engine", "benchmarks"):
        logging.getLogger(package).setLevel(logging.INFO)


class Terminated(BaseException):
    """SIGTERM arrived: unwinds like an interruption, so that what is done is kept and temporary folders vanish."""


def _terminate(*_: object) -> None:
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when done, 1 on an error, 2 on wrong usage, 130 when interrupted.

    arguments : as in `sys.argv[1:]`, which is the default
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Captions are in any script, and a file name that is not UTF-8 comes out as it went in.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(root.main(arguments, prog_name="saccade", standalone_mode=False))
    except SaccadeError as error:
        click.echo(f"saccade: error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("saccade: interrupted", err=True)
        sys.exit(130)
    except Terminated:
        click.echo("saccade: terminated", err=True)
        sys.exit(143)
