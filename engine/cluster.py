"""One run on many machines: Ray Data hands shards to actors, each of which holds an opened bundle.

A shard is a run like any other, in its own folder of results, with its own lock and its own resumption. So an actor
that dies costs the images it had begun: Ray starts another, which continues the shard where its results end.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.captioner import Captioner, CaptionOptions
from engine.results import shards_in
from engine.run import RunOptions, folder_of, run
from saccade.errors import ConfigError, OutputError
from saccade.progress import Reporter, Update

_SHARDS_PER_ACTOR = 8
"""By default: so that actors which began late, or died, find something left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """How a run is spread.

    actors : processes that caption
    shards : parts of the run; 0 is as many as the folder holds already, or eight an actor
    gpus : GPUs of each actor; None is one where the cluster has any
    """

    actors: int
    shards: int = 0
    gpus: float | None = None

    def __post_init__(self) -> None:
        problems = [f"{name} must be 0 or more" for name in ("shards", "gpus") if (getattr(self, name) or 0) < 0]
        if self.actors < 1:
            problems.append(f"actors must be at least 1, got {self.actors}")
        if problems:
            raise ConfigError("invalid cluster options: " + "; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSummary:
    """What the shards did, all together."""

    captioned_now: int
    failed_now: int
    captioned: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every actor needs to know. Paths mean the same on every machine."""

    bundle: Path
    inputs: tuple[str, ...]
    folder: Path
    caption: CaptionOptions
    run: RunOptions
    working_directory: Path


class CaptionShards:
    """An actor: opens the bundle once and captions the shards it is given."""

    def __init__(self, job: _Job) -> None:
        os.chdir(job.working_directory)
        self._job = job
        self._captioner = Captioner.open(job.bundle, job.caption)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows with a column `shard` to rows that say what came of it."""
        rows = [self._caption(int(shard)) for shard in batch["shard"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _caption(self, shard: int) -> dict[str, Any]:
        job = self._job
        options = replace(job.run, selection=replace(job.run.selection, shard=shard))
        row: dict[str, Any] = {"shard": shard, "error": "", "counts": [0, 0, 0, 0]}
        try:
            found = run(self._captioner, job.inputs, job.folder, options, reporter=Reporter(quiet=True))
        except Exception as error:  # noqa: BLE001 - whatever ends a shard, the others go on
            return row | {"error": str(error) or type(error).__name__}
        totals = found.totals
        return row | {"counts": [found.captioned_now, found.failed_now, totals.captioned, totals.failed]}


def run_on_cluster(
    bundle: Path,
    inputs: Sequence[str],
    folder: Path,
    options: RunOptions,
    caption: CaptionOptions,
    cluster: ClusterOptions,
    *,
    reporter: Reporter,
) -> ClusterSummary:
    """Caption with actors on the Ray cluster that RAY_ADDRESS names, or on this machine without it.

    Bundle, inputs and folder are on a file system that every machine sees at the same place.
    Raises ConfigError where Ray is missing or the options do not go together, and OutputError naming the shards that
    failed.
    """
    if "-" in inputs:
        raise ConfigError("standard input reaches no actor: write the list to a file, and give @FILE")
    if options.selection.limit is not None:
        raise ConfigError("a limit would be one for each shard: use --sample")
    shards = cluster.shards or next((count for _, count in shards_in(folder)), _SHARDS_PER_ACTOR * cluster.actors)
    options = replace(options, selection=replace(options.selection, shards=shards))
    folder_of(folder, options.selection)  # raises where others have written there
    job = _Job(
        bundle=bundle.resolve(),
        inputs=tuple(inputs),
        folder=folder,
        caption=caption,
        run=options,
        working_directory=Path.cwd(),
    )
    # Ray prints the deaths of its processes to stdout, where results belong.
    with redirect_stdout(sys.stderr), reporter.task("captioning", shards, unit="shards") as update:
        return _total(_rows(job, shards, cluster), shards, update)


def _total(rows: Iterator[dict[str, Any]], shards: int, update: Update) -> ClusterSummary:
    totals, failed = [0, 0, 0, 0], dict[int, str]()
    for done, row in enumerate(rows, start=1):
        totals = [total + int(count) for total, count in zip(totals, row["counts"], strict=True)]
        if row["error"]:
            failed[int(row["shard"])] = row["error"]
        update(done, images=totals[0] + totals[1], **({"failed shards": len(failed)} if failed else {}))
    if failed:
        reasons = "; ".join(f"shard {shard}: {reason}" for shard, reason in sorted(failed.items()))
        raise OutputError(f"{len(failed)} of {shards} shards failed ({reasons}): run the same command again")
    return ClusterSummary(captioned_now=totals[0], failed_now=totals[1], captioned=totals[2], failed=totals[3])


def _rows(job: _Job, shards: int, cluster: ClusterOptions) -> Iterator[dict[str, Any]]:
    """What came of each shard, as they end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # and tell of actors that it restarts anyway
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'saccade[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    try:
        rows = ray.data.from_items([{"shard": shard} for shard in range(shards)], override_num_blocks=shards)
        yield from rows.map_batches(
            CaptionShards,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ActorPoolStrategy(size=cluster.actors),
            num_cpus=1,
            num_gpus=_gpus(cluster, ray.cluster_resources()),  # type: ignore[no-untyped-call]
        ).iter_rows()
    finally:
        if ours:
            ray.shutdown()


def _gpus(cluster: ClusterOptions, resources: dict[str, float]) -> float:
    """GPUs of each actor. Raises ConfigError where the cluster has too little, for which Ray would wait for ever."""
    gpus = float("GPU" in resources) if cluster.gpus is None else cluster.gpus
    for name, each in (("CPU", 1.0), ("GPU", gpus)):
        if cluster.actors * each > (there := resources.get(name, 0.0)):
            raise ConfigError(
                f"{cluster.actors} actors need {cluster.actors * each:g} {name}s, the cluster has {there:g}: "
                "take fewer --actors, or add machines"
            )
    return gpus
