"""The `saccade` command. Subcommands are imported when they are run: `saccade --help` is quick and needs no runtime.

Nor does it need their settings, which are imported with them.
"""

from __future__ import annotations

import importlib
import io
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from saccade import __version__
from saccade.errors import BackendError, SaccadeError


@dataclass(frozen=True, slots=True)
class Subcommand:
    """Where a subcommand lives, what `saccade --help` says of it, and the extra that brings what it imports.

    configurable : whether configuration files and environment variables set its options
    variable : what it is called in the module; None is its own name
    """

    module: str
    help: str
    extra: str | None = None
    configurable: bool = True
    variable: str | None = None


SUBCOMMANDS = {
    "caption": Subcommand("engine.caption_cli", "Caption images and folders of images with a bundle."),
    "gallery": Subcommand("engine.cli", "Make one HTML page of captions and where each word looked."),
    "convert": Subcommand("engine.convert_cli", "Write results as CSV, Parquet, COCO results or a text file an image."),
    "train": Subcommand("training.cli", "Train a captioner from a TOML configuration.", "train"),
    "evaluate": Subcommand("benchmarks.evaluation_cli", "Caption a split of a data set and score it.", "train"),
    "import": Subcommand(
        "training.import_cli",
        "Turn a model of other programs into a checkpoint.",
        "train",
        configurable=False,
        variable="group",
    ),
    "export": Subcommand("export.cli", "Turn a checkpoint into a bundle of verified ONNX graphs.", "export"),
    "build": Subcommand("export.build_cli", "Compile the graphs of a bundle for TensorRT on this machine.", "tensorrt"),
    "inspect": Subcommand("engine.cli", "Show what is in a bundle, after checking every file of it."),
    "score": Subcommand("benchmarks.cli", "Score captions against references."),
    "benchmark": Subcommand("benchmarks.benchmark_cli", "Measure latency, throughput and stages of a bundle here."),
    "compare": Subcommand("benchmarks.compare_cli", "Tell how backends and precisions differ, and why."),
    "scenes": Subcommand("training.scenes_cli", "Draw captioned scenes to train and test on."),
    "doctor": Subcommand("engine.cli", "Tell what is installed, which backends run here, and what to install."),
    "config": Subcommand("saccade.settings_cli", "Show the values of options and their origin.", configurable=False),
    "completion": Subcommand("saccade.settings_cli", "Print a shell's script that completes.", configurable=False),
}


def load(name: str) -> click.Command:
    """Import the subcommand. Raises BackendError naming the extra whose packages are missing."""
    from saccade.settings import name_variables

    subcommand = SUBCOMMANDS[name]
    try:
        module = importlib.import_module(subcommand.module)
    except ModuleNotFoundError as error:
        if subcommand.extra is None or error.name is None:
            raise
        raise BackendError(
            f"saccade {name} needs {error.name}, which is not installed: pip install 'saccade[{subcommand.extra}]'"
        ) from error
    command: click.Command = getattr(module, subcommand.variable or name)
    if subcommand.configurable:
        name_variables(name, command)
    return command


def configurable() -> list[str]:
    """The subcommands that have a table in configuration files."""
    return [name for name, subcommand in SUBCOMMANDS.items() if subcommand.configurable]


class LazyGroup(click.Group):
    """A group whose subcommands are imported by name."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Subcommands in the order people meet them."""
        return list(SUBCOMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the subcommand. Raises BackendError naming the extra whose packages are missing."""
        if name not in SUBCOMMANDS:
            return None
        try:
            return load(name)
        except BackendError:
            if context.resilient_parsing:  # a shell completes a line: it has no place for errors
                return click.Command(name)
            raise

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand. Of a value that it refuses, the error names the file or environment variable."""
        try:
            return super().invoke(context)
        except click.BadParameter as error:
            from saccade.settings import with_origin

            raise with_origin(error) from None

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """Complete subcommands without importing them."""
        names = [name for name in SUBCOMMANDS if name.startswith(incomplete)]
        subcommands = [CompletionItem(name, help=SUBCOMMANDS[name].help) for name in names]
        return subcommands + click.Command.shell_complete(self, context, incomplete)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, subcommand.help) for name, subcommand in SUBCOMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="saccade")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    envvar="SACCADE_CONFIG",
    show_envvar=True,
    help="TOML file of options.  [default: saccade.toml here, and that of the user]",
)
@click.pass_context
def root(context: click.Context, config: str | None) -> None:
    """Caption images in batches and see what each word looked at (Show, Attend and Tell)."""
    from saccade.settings import configure, files_to_read

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for package in ("saccade", "training", "export", "engine", "benchmarks"):
        logging.getLogger(package).setLevel(logging.INFO)
    if (name := context.invoked_subcommand) in (tables := configurable()):
        configure(context, files_to_read(config), {name: load(name)}, tables)


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
