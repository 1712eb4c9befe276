"""The folder of a training run: what lies where, and what may be thrown away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from saccade.errors import ConfigError, OutputError
from saccade.files import differences, write_json
from training.checkpoint import read_json


class RunFolder:
    """One run of `saccade train`.

    It holds run.json (configuration, versions), metrics.jsonl, tensorboard/, checkpoints/epoch-NNNN of the last and the
    best epoch, latest.json and best.json that name them and, while rewards need it, annotations/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.annotations = path / "annotations"
        self._checkpoints, self._latest, self._best = path / "checkpoints", path / "latest.json", path / "best.json"

    def prepare(self, config: Any, environment: dict[str, Any], *, overwrite: bool) -> bool:
        """Whether there is something to resume.

        config : the run's configuration as JSON
        overwrite : throw away an earlier run
        Raises ConfigError where the folder holds a run of another configuration, OutputError where it holds something
        else.
        """
        record = self.path / "run.json"
        before = read_json(record) if record.is_file() else {}
        if "config" not in before and self.path.exists() and any(self.path.iterdir()):
            raise OutputError(f"{self.path} is not empty and is no training run: choose another --out")
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        if not self._latest.is_file():  # nothing of an earlier run is worth keeping
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(record, {"config": config, "environment": environment})
            return False
        changed = differences(before["config"], config)
        if changed:
            raise ConfigError(
                f"{self.path} holds a run with another configuration ({', '.join(changed)}): "
                "choose another --out, or start anew with --overwrite"
            )
        return True

    def checkpoint(self, epoch: int) -> Path:
        """Where the checkpoint of an epoch belongs."""
        return self._checkpoints / f"epoch-{epoch:04d}"

    def latest(self) -> Path:
        """The checkpoint to resume from. Raises CheckpointError."""
        return self._checkpoints / str(read_json(self._latest)["checkpoint"])

    def keep(self, epoch: int, *, best: int, score: float) -> None:
        """Point to the checkpoint of this epoch and to that of the best, and drop the others."""
        write_json(self._latest, {"checkpoint": self.checkpoint(epoch).name})
        self.point_to_best(best, score)
        for old in self._checkpoints.iterdir():
            if old not in (self.checkpoint(epoch), self.checkpoint(best)):
                shutil.rmtree(old)

    def point_to_best(self, epoch: int, score: float) -> None:
        """Name the checkpoint of the best epoch."""
        write_json(self._best, {"checkpoint": self.checkpoint(epoch).name, "score": score})
