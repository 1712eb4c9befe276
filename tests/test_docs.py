"""What the documents say is what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli_reference import PAGE, reference

ROOT = PAGE.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_command_reference_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_that_pages_mention_exist(page: Path) -> None:
    options = set(re.findall(r"`(--[a-z-]+)", page.read_text(encoding="utf-8")))
    known = set(re.findall(r"--[a-z-]+", reference()))
    assert options <= known
