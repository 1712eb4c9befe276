"""`saccade build`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click

from export.tensorrt_rules import require_rules
from export.trtexec import trtexec_commands
from saccade.bundle import Bundle, Precision
from saccade.errors import BackendError
from saccade.plans import PlanOptions, PlanRecord, targets


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Numbers with commas between them, in ascending order, each once."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(sorted({int(part) for part in value.split(",")}))
        except ValueError:
            self.fail(f"{value!r} are no numbers with commas between them, as in 1,8,32", param, ctx)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--batch",
    "batches",
    type=_Numbers(),
    default="1,8,32,128",
    show_default=True,
    help="Buckets: a batch runs with what was tuned for the next larger one of these. Larger ones run in parts.",
)
@click.option(
    "--beam", "beams", type=_Numbers(), default="3", show_default=True, help="Beams to search with, as in 1,3,5."
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp16",
    show_default=True,
    help="Of the graphs; the bundle must have been exported with them.",
)
@click.option(
    "--show-trtexec", is_flag=True, help="Build nothing: print the commands of trtexec that build the same plans."
)
def build(
    bundle: Path, batches: tuple[int, ...], beams: tuple[int, ...], precision: Precision, show_trtexec: bool
) -> None:
    """Compile the graphs of BUNDLE for TensorRT on this machine.

    The plans go into the folder "plans" of the bundle. They belong to this version of TensorRT and this GPU, and are
    refused elsewhere.
    """
    options = PlanOptions(batches=batches, beams=beams, precision=precision)
    opened = Bundle.open(bundle)
    for target in targets(options):
        require_rules(opened.path / target.spec(opened).file, beam=target.beam)
    if show_trtexec:
        for command in trtexec_commands(opened, options):
            click.echo(command)
        return
    for path, record in _built(opened, options):
        megabytes = path.stat().st_size / 1e6
        click.echo(
            f"{path}: {megabytes:.1f} MB, {len(record.profiles)} profiles, {record.build_seconds:.0f} s", err=True
        )


def _built(bundle: Bundle, options: PlanOptions) -> Iterator[tuple[Path, PlanRecord]]:
    try:
        from export.tensorrt_plans import build_plans
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        raise BackendError(
            f"TensorRT cannot be imported here ({error}): pip install 'saccade[tensorrt]' on a machine with an NVIDIA "
            "GPU, or look at --show-trtexec"
        ) from error
    return build_plans(bundle, options)
