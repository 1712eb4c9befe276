"""Tables of docs/results.md, benchmarks.md, backends.md and performance.md: what models reach, and how fast all is.

They are made of result files and stand between pairs of markers; only they are written, the text around them is a
person's. A table is of a folder or of a file, relative to the page; one that is not there yet is called not measured:

    <!-- scores FOLDER -->        caption metrics on Flickr8k, a row for each model and beam, and those of the paper
    <!-- scenes FOLDER -->        what captions of generated scenes say and where they look
    <!-- captions FOLDER -->      some of the captions themselves, from X.beam3.json beside X.scores.json
    <!-- variants FOLDER -->      what other configurations of one recipe reach, named by how they differ from base
    <!-- precisions FOLDER -->    what each backend and precision scores, beside what `--against` compared with
    <!-- speed FILE -->           the ratios of `python -m benchmarks.training`, from its last line
    <!-- peers FILE -->           the last line of `python -m benchmarks.peers`
    <!-- throughput FILE -->      that of `python -m benchmarks.throughput`
    <!-- roofline FILE -->        that of `python -m benchmarks.roofline`
    <!-- repeatability FILE -->   that of `python -m benchmarks.repeatability`
    <!-- benchmark FILE -->       what `saccade benchmark --out` wrote: a single stream, rates by level, a server
    <!-- guard FILE -->           the figures of `python -m benchmarks.guard --write`
    <!-- gpu FILE -->             rates on a GPU, of `python -m benchmarks.gpu`
    <!-- gpu_rates FILE -->       the same without the loop
    <!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from benchmarks import speed_tables, trained_tables
from saccade.errors import DataError

_NAMES = ("results.md", "benchmarks.md", "backends.md", "performance.md")
PAGES = tuple(Path(__file__).parent.parent / "docs" / name for name in _NAMES)

_MARKED = re.compile(r"(<!-- (\w+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_UNMEASURED = "Not measured yet."
_TABLES = trained_tables.TABLES | speed_tables.TABLES


def renewed(page: str, folder: Path) -> str:
    """The page with the tables of what lies in `folder` now.

    Where nothing was measured yet, the page says so. Raises DataError where a table cannot be made or has lost its
    file, or a marker has no end of its own.
    """

    def table(match: re.Match[str]) -> str:
        begin, kind, source, within, end = match.groups()
        if kind not in _TABLES:
            raise DataError(f"{begin.strip()} asks for an unknown table: choose from {', '.join(_TABLES)}")
        if "<!--" in within:
            raise DataError(f"{begin.strip()} has no {end} before the next marker: add it after the table")
        if (folder / source).exists():
            return f"{begin}{_TABLES[kind](folder / source)}\n{end}"
        if within.strip() not in ("", _UNMEASURED):
            raise DataError(f"{folder / source}, of which the page has a table, does not exist: measure again")
        return f"{begin}{_UNMEASURED}\n{end}"

    return _MARKED.sub(table, page)


@click.command()
def main() -> None:
    """Renew the tables of docs/results.md, docs/benchmarks.md and docs/backends.md."""
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")


if __name__ == "__main__":
    main()
