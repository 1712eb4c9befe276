"""Options from configuration files and environment variables, by click's own defaults and sources.

The command line wins over the environment, that over the project's file, that over the user's file, that over the
option's default. A file has a table for each subcommand and in it a key for each option: its long name without dashes
in front. Environment variables are named SACCADE_<SUBCOMMAND>_<OPTION>.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from json import dumps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from saccade.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Given:
    """A value for an option, and the file it is from. Paths in it start at the working directory."""

    value: Any
    file: Path


def standard_files() -> tuple[Path, Path]:
    """Where the files of the project and of the user are looked for, the stronger one first."""
    folder = _expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    return Path("saccade.toml"), Path(folder, "saccade/config.toml")


def files_to_read(chosen: str | None) -> tuple[Path, ...]:
    """The chosen file alone, otherwise those of the standard files that are there, the stronger one first."""
    if chosen:
        return (Path(chosen),)
    # Path.is_file raises in a folder that may not be searched, such as the home of somebody else.
    return tuple(file for file in standard_files() if os.path.isfile(file))  # noqa: PTH113


def options_of(command: click.Command) -> dict[str, click.Option]:
    """What can be configured, by its key: `--n-best` is `n-best`."""
    options = (one for one in command.params if isinstance(one, click.Option))
    return {max(option.opts, key=len).lstrip("-"): option for option in options}


def name_variables(name: str, command: click.Command) -> None:
    """Let environment variables set the options of the subcommand."""
    for key, option in options_of(command).items():  # click's automatic names would be those of Python's parameters
        option.envvar = f"SACCADE_{name}_{key}".upper().replace("-", "_")


def configure(
    root: click.Context, files: Iterable[Path], commands: Mapping[str, click.Command], tables: Collection[str]
) -> None:
    """Make the values in the files the defaults of these commands; where two files have a key, the first one wins.

    root : of the command line
    tables : what tables there may be; those of other subcommands than `commands` are left alone

    Raises ConfigError naming every table that belongs to no subcommand, and, in the tables of these, every key that is
    no option and every value of a wrong type. Whether a path leads anywhere is seen when its value is used.
    """
    given: dict[str, dict[str, Given]] = {name: {} for name in commands}
    problems: list[str] = []
    for file in files:
        for name, table in _read(file).items():
            if name not in tables:
                problems.append(f"{file}: unknown table {name}, {_instead(name, tables)}")
            elif not isinstance(table, dict):
                problems.append(f"{file}: {name} has to be a table, [{name}]")
            elif name in commands:
                found, wrong = _values(file, table, options_of(commands[name]))
                given[name] = found | given[name]
                problems += [f"{file}: [{name}] {problem}" for problem in wrong]
    if problems:
        raise ConfigError("; ".join(problems))
    root.obj = given
    root.default_map = {name: {key: one.value for key, one in found.items()} for name, found in given.items()}


def origin(context: click.Context, option: click.Option) -> str | None:
    """The environment variable or file that the option of a configured subcommand has its value from, if it has."""
    source = context.get_parameter_source(option.name)
    if source is ParameterSource.ENVIRONMENT:
        return str(option.envvar)
    if source is ParameterSource.DEFAULT_MAP:
        return str(context.obj[context.info_name][option.name].file)
    return None


def with_origin(error: click.BadParameter) -> Exception:
    """ConfigError naming the environment variable or file that is to blame; where none is, the error itself."""
    if error.ctx and isinstance(error.param, click.Option) and (blamed := origin(error.ctx, error.param)):
        return ConfigError(f"{blamed}: {error.format_message()}")
    return error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): choose another file with --config") from error
    except ValueError as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error


def _values(
    file: Path, table: Mapping[str, Any], options: Mapping[str, click.Option]
) -> tuple[dict[str, Given], list[str]]:
    """What a table gives, by Python's names of the options, and what is wrong in it."""
    given: dict[str, Given] = {}
    problems: list[str] = []
    for written, value in table.items():
        key = written.replace("_", "-")
        if key not in options:
            problems.append(f"unknown key {written}, {_instead(key, options)}")
        elif options[key].name in given:
            problems.append(f"{written} is there twice, with - and with _")
        else:
            try:
                given[options[key].name] = Given(_checked(options[key], value, file.parent), file)
            except click.BadParameter as error:
                problems.append(f"{written}: {error.message.rstrip('.')}")
    return given, problems


def _checked(option: click.Option, value: Any, folder: Path) -> Any:
    """The value for click, its paths relative to `folder`. Raises click's BadParameter."""
    if not option.multiple and option.nargs == 1:
        return _checked_one(option, value, folder)
    if not isinstance(value, list):
        raise click.BadParameter(f"expected a list, got {_shown(value)}")
    return [_checked_one(option, element, folder) for element in value]


def _checked_one(option: click.Option, value: Any, folder: Path) -> Any:
    types, expected = _expected(option.type)
    if type(value) not in types:
        raise click.BadParameter(f"expected {expected}, got {_shown(value)}")
    if isinstance(option.type, click.Path):
        return str(folder / _expanded(value))
    option.type(value, option)
    return value


def _expected(kind: click.ParamType[Any]) -> tuple[tuple[type, ...], str]:
    """The types of TOML for a type of click, which itself would take "5" and true for integers; and their name."""
    if isinstance(kind, click.types.BoolParamType):
        return (bool,), "true or false"
    if isinstance(kind, click.types.IntParamType):
        return (int,), "an integer"
    if isinstance(kind, click.types.FloatParamType):
        return (int, float), "a number"
    return (str,), "a string"


def _shown(value: Any) -> str:
    return dumps(value, ensure_ascii=False, default=str)


def _instead(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def _expanded(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 - Path's raises where there is no such home
