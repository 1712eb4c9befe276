"""docs/cli.md, generated from the help texts: `make docs` writes it, a test compares it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from saccade.cli import SUBCOMMANDS, root

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"


def reference() -> str:
    """The whole page."""
    return "# Commands\n\nGenerated from the help texts; `make docs` renews it.\n\n" + "\n".join(_sections())


def _sections() -> Iterator[str]:
    settings = dict(root.context_settings)
    context = click.Context(root, info_name="saccade", terminal_width=100, max_content_width=100, **settings)
    yield _section("saccade", root.get_help(context))
    for name in SUBCOMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        own = click.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
        yield _section(f"saccade {name}", command.get_help(own))


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```\n{text}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
