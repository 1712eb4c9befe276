"""docs/cli.md, generated from the help texts: `make docs` writes it, a test compares it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from saccade.cli import root

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


def reference() -> str:
    """The whole page."""
    settings = dict(root.context_settings)
    context = click.Context(root, info_name="saccade", terminal_width=100, max_content_width=100, **settings)
    title = "# Commands\n\nGenerated from the help texts; `make docs` renews it.\n\n"
    return title + "\n".join(_sections(root, context))


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from _sections(subcommand, click.Context(subcommand, info_name=name, parent=context))


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
