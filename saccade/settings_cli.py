"""`saccade config` and `saccade completion`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from saccade.cli import configurable, load, root
from saccade.errors import BackendError
from saccade.settings import configure, files_to_read, options_of, origin, standard_files

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@dataclass(frozen=True, slots=True)
class Setting:
    """The value that an option has when the command line has none, None if it is not set, and where it is from."""

    key: str
    value: bool | int | float | str | list[Any] | None
    origin: str

    @property
    def toml(self) -> str:
        """A line of TOML, with the origin as its comment."""
        if self.value is None:
            return f"# {self.key}: not set"
        text = _toml(self.value)
        comment = "".join(character if character.isprintable() else "?" for character in self.origin)
        if any("\ud800" <= character <= "\udfff" for character in text):
            return f"# {self.key}: TOML cannot hold what is not UTF-8; {comment}"
        return f"{self.key} = {text}  # {comment}"


@click.group()
def config() -> None:
    """Show the options' values and where they are from."""


@config.command()
@click.argument("subcommand", required=False, metavar="[SUBCOMMAND]", type=click.Choice(configurable()))
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of TOML.")
@click.pass_context
def show(context: click.Context, subcommand: str | None, as_json: bool) -> None:
    """Show every option of SUBCOMMAND, or of all, with the value it has unless the command line says otherwise.

    What is printed is itself a configuration file for the working directory. Everything found wrong in the tables of
    what is shown is one error.
    """
    parent = context.find_root()
    commands = dict(_commands(subcommand))
    configure(parent, files_to_read(parent.params["config"]), commands, configurable())
    settings = {name: list(_settings(parent, name, command)) for name, command in commands.items()}
    click.echo(_json(settings) if as_json else _toml_tables(settings))


@config.command()
@click.pass_context
def path(context: click.Context) -> None:
    """Print the configuration files that are read, the stronger one first."""
    files = files_to_read(context.find_root().params["config"])
    for file in files:
        click.echo(file)
    if not files:
        click.echo(f"none: there is no {' and no '.join(map(str, standard_files()))}", err=True)


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    \b
    bash: saccade completion bash > ~/.local/share/bash-completion/completions/saccade
    zsh:  saccade completion zsh > "${fpath[1]}/_saccade"
    fish: saccade completion fish > ~/.config/fish/completions/saccade.fish
    """  # noqa: D301 - \b is for click: it keeps the lines of a paragraph
    click.echo(SHELLS[shell](root, {}, "saccade", "_SACCADE_COMPLETE").source())


def _commands(chosen: str | None) -> Iterator[tuple[str, click.Command]]:
    """The chosen subcommand, or all whose packages are installed."""
    for name in [chosen] if chosen else configurable():
        try:
            yield name, load(name)
        except BackendError as error:
            if chosen:
                raise
            click.echo(f"[{name}] is left out: {error}", err=True)


def _settings(parent: click.Context, name: str, command: click.Command) -> Iterator[Setting]:
    context = click.Context(command, info_name=name, parent=parent)
    for key, option in options_of(command).items():
        value, source = option.consume_value(context, {})
        context.set_parameter_source(option.name, source)
        # What a variable holds is text. Whether a path leads anywhere is seen when it is used.
        if source is ParameterSource.ENVIRONMENT and not isinstance(option.type, click.Path):
            value = option.type_cast_value(context, value)
        yield Setting(key, _plain(value), origin(context, option) or "default")


def _plain(value: Any) -> Any:
    """As TOML and JSON have it; None for click's sign of no value."""
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else None


def _toml_tables(settings: dict[str, list[Setting]]) -> str:
    return "\n\n".join("\n".join([f"[{name}]", *(one.toml for one in found)]) for name, found in settings.items())


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)  # JSON has other names for inf and nan
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _json(settings: dict[str, list[Setting]]) -> str:
    tables = {
        name: {one.key: {"value": one.value, "origin": one.origin} for one in found} for name, found in settings.items()
    }
    return json.dumps(tables)
