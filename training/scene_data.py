"""Which generated scenes training uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saccade.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSeeds:
    """A split of generated scenes: `count` scenes from `first_seed` on."""

    first_seed: int
    count: int

    def __post_init__(self) -> None:
        if self.first_seed < 0 or self.count < 1:
            raise ConfigError(f"first_seed must be 0 or more and count at least 1, got {self.first_seed}, {self.count}")

    @property
    def seeds(self) -> range:
        """The seeds of the split."""
        return range(self.first_seed, self.first_seed + self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneData:
    """Generated scenes for training, validation (chooses the checkpoint) and test (scored once, at the end).

    render_size : side of the drawn scene in pixels, before preprocessing
    """

    kind: Literal["scenes"]
    train: SceneSeeds
    validation: SceneSeeds
    test: SceneSeeds
    render_size: int = 224

    def __post_init__(self) -> None:
        splits = {"train": self.train.seeds, "validation": self.validation.seeds, "test": self.test.seeds}
        names = list(splits)
        overlapping = [
            f"{a} and {b}"
            for i, a in enumerate(names)
            for b in names[i + 1 :]
            if max(splits[a].start, splits[b].start) < min(splits[a].stop, splits[b].stop)
        ]
        if overlapping:
            raise ConfigError(f"splits share scenes: {', '.join(overlapping)}; give them disjoint seeds")
