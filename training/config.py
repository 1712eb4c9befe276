"""What a training run is told: one TOML file, read strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saccade.errors import ConfigError
from saccade.glimpses import DecodeMode
from saccade.preprocessing import PreprocessSpec
from saccade.search import SearchOptions
from saccade.structure import structure
from training.augmentation import AugmentationOptions
from training.datasets import PhotoData
from training.encoders import EncoderOptions
from training.hard_attention import HardOptions
from training.model import DecoderOptions
from training.optimisation import OptimisationOptions
from training.scene_data import SceneData
from training.self_critical import SelfCriticalOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyOptions:
    """min_count : rarer words become `<unk>`; max_words : keep only the most frequent, or all."""

    min_count: int = 5
    max_words: int | None = None

    def __post_init__(self) -> None:
        if self.min_count < 1 or (self.max_words is not None and self.max_words < 1):
            raise ConfigError(f"min_count and max_words must be at least 1, got {self.min_count}, {self.max_words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptOptions:
    """What the captions mention, not how they say it, as a task of the encoder (`training.concepts`).

    epochs : of pretraining, over the training split; 0 leaves it out
    learning_rate : at its beginning
    weight : of the task's loss beside that of the captions afterwards; 0 leaves it out
    pairs_within : also learn pairs of words, the second at most so many places after the first; 0 is words alone
    least_share : of the images whose captions must have a word or a pair for it to be learned
    """

    epochs: int = 0
    learning_rate: float = 3e-3
    weight: float = 0.0
    pairs_within: int = 0
    least_share: float = 0.01

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be 0 or more" for name in ("epochs", "weight", "pairs_within") if getattr(self, name) < 0
        ]
        if self.learning_rate <= 0:
            problems.append("learning_rate must be above 0")
        if not 0 <= self.least_share < 1:
            problems.append("least_share must be in [0, 1)")
        if problems:
            raise ConfigError("invalid concepts: " + "; ".join(problems))

    @property
    def is_wanted(self) -> bool:
        """Whether training has anything to do with concepts."""
        return self.epochs > 0 or self.weight > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationOptions:
    """Captions are decoded by beam search after each epoch; the best epoch by `metric` is kept.

    decode_mode : how hard attention takes its context
    metric : which epoch is kept; relation_accuracy is of generated scenes and needs right objects at both ends
    patience : epochs without improvement before training stops early, by likelihood and again by rewards
    """

    beam: int = 3
    max_length: int = 40
    decode_mode: DecodeMode = "expected"
    metric: Literal["CIDEr-D", "BLEU-4", "relation_accuracy"] = "CIDEr-D"
    patience: int = 5

    def __post_init__(self) -> None:
        # Raises on what the search would refuse later.
        SearchOptions(beam=self.beam, max_length=self.max_length, decode_mode=self.decode_mode)
        if self.patience < 1:
            raise ConfigError(f"patience must be at least 1, got {self.patience}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the result of `saccade train`, and where it keeps what it computes once.

    augmentation : of the training images, none without it
    self_critical : train on by rewards (`training.self_critical`) after the epochs by likelihood
    cache : folder for the annotations of a frozen encoder, which are computed once and kept
    """

    data: SceneData | PhotoData
    preprocessing: PreprocessSpec
    encoder: EncoderOptions
    decoder: DecoderOptions
    optimisation: OptimisationOptions
    hard: HardOptions = field(default_factory=HardOptions)
    concepts: ConceptOptions = field(default_factory=ConceptOptions)
    vocabulary: VocabularyOptions = field(default_factory=VocabularyOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    augmentation: AugmentationOptions | None = None
    self_critical: SelfCriticalOptions | None = None
    cache: str = "cache/annotations"

    def __post_init__(self) -> None:
        for problem, found in self._contradictions().items():
            if found:
                raise ConfigError(problem)

    def _contradictions(self) -> dict[str, bool]:
        """What must not be, and whether it is."""
        kind, optimisation = self.decoder.attention, self.optimisation
        starts = self.self_critical is not None and self.self_critical.start != ""
        return {
            f'[hard] is for attention = "hard", not "{kind}": remove it': kind != "hard" and self.hard != HardOptions(),
            f'decode_mode = "{self.validation.decode_mode}" is for attention = "hard", not "{kind}"': kind != "hard"
            and self.validation.decode_mode != "expected",
            "label_smoothing has no place in the bound that hard attention maximises: set it to 0": kind == "hard"
            and optimisation.label_smoothing > 0,
            "photographs have no relation_accuracy: choose another metric": self.validation.metric
            == "relation_accuracy"
            and not isinstance(self.data, SceneData),
            '[self_critical] knows soft attention and none, not "hard": remove it': kind == "hard"
            and self.self_critical is not None,
            "rewards begin with the weights of self_critical.start: set optimisation.epochs to 0": starts
            and optimisation.epochs > 0,
            "self_critical.start has learned the concepts already: remove [concepts]": starts
            and self.concepts.is_wanted,
            "rewards know no [augmentation], label_smoothing, scheduled_sampling, encoder_learning_rate: remove them": (
                starts
                and (self.augmentation is not None or any(getattr(optimisation, name) for name in _OF_LIKELIHOOD))
            ),
            "optimisation.epochs must be at least 1": not starts and optimisation.epochs < 1,
            "of photographs it is not known what is true: set self_critical.objects and relations to 0": (
                self.self_critical is not None
                and self.self_critical.asks_for_truth
                and not isinstance(self.data, SceneData)
            ),
            "[concepts] are of the encoder's own annotations: set annotation_width to 0": self.concepts.is_wanted
            and self.decoder.annotation_width > 0,
            "hard.start has learned the concepts already: set concepts.epochs to 0": bool(self.hard.start)
            and self.concepts.epochs > 0,
            "a frozen encoder learns no concepts: remove [concepts] or set frozen = false": self.encoder.frozen
            and self.concepts.is_wanted,
            "the annotations of a frozen encoder are computed once: remove [augmentation] or set frozen = false": (
                self.encoder.frozen and self.augmentation is not None
            ),
            "a frozen encoder has no encoder_learning_rate: remove it or set frozen = false": self.encoder.frozen
            and optimisation.encoder_learning_rate is not None,
            "plateau_patience must be shorter than validation.patience, which ends the training": (
                optimisation.schedule == "plateau" and optimisation.plateau_patience >= self.validation.patience
            ),
        }


_OF_LIKELIHOOD = ("label_smoothing", "scheduled_sampling", "encoder_learning_rate")
"""Fields of [optimisation] that mean nothing where captions are rewarded."""


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainingConfig:
    """Read a TOML file. Raises ConfigError naming every unknown, missing or invalid key.

    changes : lines of TOML with dotted keys, such as "optimisation.epochs = 2", which win over the file's
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
    for change in changes:
        try:
            table = _merged(table, tomllib.loads(change))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{change!r} is no line of TOML ({error}): write section.key = value") from error
    return structure(table, TrainingConfig, source=str(path), error=ConfigError)


def _merged(table: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return table | {
        key: _merged(table[key], value) if isinstance(value, dict) and isinstance(table.get(key), dict) else value
        for key, value in change.items()
    }
