"""What one training run reads: its splits, as pixels or as annotations of an encoder that stays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from saccade.errors import ConfigError
from saccade.progress import Reporter
from saccade.vocabulary import Vocabulary
from training.config import TrainingConfig
from training.data import Data, Split, SplitName, load_split, open_data
from training.distribution import main_first, processes
from training.features import cached_annotations
from training.model import Captioner
from training.scene_data import SceneData


@dataclass(frozen=True, slots=True)
class RunData:
    """The splits of a run; `load_run_data` reads them."""

    train: Split
    validation: Split
    test: Split | None

    def vocabulary(self, config: TrainingConfig) -> Vocabulary:
        """The words of the training split."""
        captions = (words for references in self.train.captions for words in references)
        options = config.vocabulary
        return Vocabulary.from_captions(captions, min_count=options.min_count, max_words=options.max_words)

    def annotated(self, captioner: Captioner, config: TrainingConfig, cache: Path, reporter: Reporter) -> RunData:
        """What the encoder, which stays, makes of the images to train and validate on, computed once.

        cache : folder in which it is kept
        """

        def annotations_for(split: Split) -> Split:
            with main_first(), reporter.task("annotating images", len(split), unit="images") as progress:
                annotations = cached_annotations(
                    captioner, split.images, split.identities, config.preprocessing, folder=cache, progress=progress
                )
            return replace(split, images=annotations)

        return replace(self, train=annotations_for(self.train), validation=annotations_for(self.validation))


def load_run_data(config: TrainingConfig, reporter: Reporter) -> RunData:
    """Read the splits. Raises ConfigError where one is missing, or too small for all processes."""
    data = open_data(config.data)
    train, validation = (_required(name, _load(data, name, config, reporter)) for name in ("train", "validation"))
    _check_shares(train, config.optimisation.batch_images)
    return RunData(train, validation, _load(data, "test", config, reporter))


def _load(data: Data, name: SplitName, config: TrainingConfig, reporter: Reporter) -> Split | None:
    total = len(getattr(data, name).seeds) if isinstance(data, SceneData) else None
    with reporter.task(f"reading the {name} split", total, unit="images") as progress:
        return load_split(data, name, config.preprocessing, progress=progress)


def _required(name: SplitName, split: Split | None) -> Split:
    if split is None:
        raise ConfigError(f"training needs a {name} split, and [data] has none")
    return split


def _check_shares(train: Split, batch_images: int) -> None:
    """Raise ConfigError where a process would get no image of a batch."""
    smallest = len(train) % batch_images or batch_images
    if smallest < processes():
        raise ConfigError(
            f"{len(train)} images in batches of {batch_images} leave a last batch of {smallest}, too few for "
            f"{processes()} processes: choose another batch_images, or fewer processes"
        )
