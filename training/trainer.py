"""`saccade train`: fits a captioner, validates by decoding, keeps the best, resumes where it stopped."""

from __future__ import annotations

import logging
import math
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.errors import CheckpointError, ConfigError, DivergenceError
from saccade.files import write_json
from saccade.progress import Reporter
from saccade.search import SearchOptions
from saccade.structure import structure, unstructure
from saccade.vocabulary import Vocabulary
from training.augmentation import Augmentation
from training.checkpoint import (
    FORMAT_VERSION,
    Description,
    load_checkpoint,
    load_trainer,
    load_weights,
    read_description,
    resolve_checkpoint,
    save_checkpoint,
    start_from,
)
from training.concepts import Concepts, pretrain_encoder
from training.config import TrainingConfig
from training.data import Batch, Split, batch_count, batches
from training.distribution import from_main, is_main, main_first, number, share, total
from training.environment import environment
from training.evaluation import attention_stays, evaluate
from training.hard_attention import Baseline
from training.metrics_log import MetricsLog
from training.model import Captioner, build_captioner
from training.objectives import Likelihood, Objective, Rewards
from training.optimisation import Optimisation, OptimisationOptions, below
from training.precision import arithmetic
from training.run_data import RunData, load_run_data
from training.run_folder import RunFolder
from training.self_critical import SelfCritical, SelfCriticalOptions

log = logging.getLogger(__name__)

_OPTIMISATION, _CONCEPTS = "optimisation.", "concepts."
"""What the names of the trainer's tensors begin with."""

_Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""What `Optimisation.state` gave."""


@dataclass(slots=True)
class TrainerState:
    """Where a run stands after an epoch; `rewarded` of its epochs, the last ones, went by rewards."""

    epoch: int = 0
    rewarded: int = 0
    step: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    baseline: Baseline = field(default_factory=Baseline)

    def take(self, scores: dict[str, float], score: float) -> None:
        """Note what the epoch scored, and whether it is the best so far by `score`."""
        self.scores = scores
        if score > self.best_score:
            self.best_epoch, self.best_score = self.epoch, score


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    """Epochs with one objective, by likelihood or by rewards, and what they need.

    options : the phase's own, those of [optimisation] with other rates and epochs where it is by rewards
    augmentation : of pixels; rewards have annotations for images
    beside : what is trained with the captioner
    """

    objective: Objective
    options: OptimisationOptions
    data: RunData
    augmentation: Augmentation | None = None
    beside: Concepts | None = None


class Trainer:
    """One training run in one folder (`RunFolder`).

    Of several processes, each with its trainer, the main one alone writes and validates (`training.distribution`).
    """

    def __init__(self, config: TrainingConfig, folder: Path, *, device: torch.device, reporter: Reporter) -> None:
        self.config = config
        self._folder = RunFolder(folder)
        self.device = device
        self._reporter = reporter
        self._environment = environment(device)  # of the code that runs, whatever is committed meanwhile
        self._state = TrainerState()
        self._concepts: Concepts | None = None
        self._rewarding = False

    def run(self, *, overwrite: bool = False) -> dict[str, float]:
        """Train to the end, anew or from the last finished epoch, and score the best epoch on the test split.

        overwrite : throw away an earlier run in the folder
        Raises ConfigError or OutputError where the folder holds another run, or something else.
        """
        resuming = from_main(
            lambda: self._folder.prepare(unstructure(self.config), self._environment, overwrite=overwrite)
        )
        torch.manual_seed(self.config.optimisation.seed)
        data = load_run_data(self.config, self._reporter)
        vocabulary = data.vocabulary(self.config)
        start, start_option = self._start()
        captioner = self._captioner(vocabulary, pretrained=not resuming and not start)
        self._concepts = self._concept_task(captioner, data.train, vocabulary)
        resumed = self._resume(captioner, vocabulary) if resuming else None
        if start and not resuming:
            start_from(captioner, Path(start), self._describe(vocabulary, {}), option=start_option)
        elif not resuming:
            self._pretrain(captioner, data.train)
        if self.config.encoder.frozen:
            data = data.annotated(captioner, self.config, Path(self.config.cache), self._reporter)
        if self.config.optimisation.epochs and not self._state.rewarded:
            self._train_epochs(captioner, vocabulary, self._by_likelihood(data), resumed)
        if rewards := self.config.self_critical:
            resumed = resumed if self._state.rewarded else None
            self._train_by_rewards(rewards, captioner, vocabulary, data, resumed)
        grid = captioner.encoder.grid(self.config.preprocessing.size)
        test = data.test
        return from_main(lambda: self._score_best(test, self._search_options(), grid) if test else self._best_scores())

    def _by_likelihood(self, data: RunData) -> _Phase:
        config = self.config
        beside = self._concepts if config.concepts.weight else None
        wanted = config.augmentation
        return _Phase(
            objective=Likelihood(config, baseline=self._state.baseline, concepts=beside),
            options=config.optimisation,
            data=data,
            augmentation=Augmentation(wanted, size=config.preprocessing.size) if wanted else None,
            beside=beside,
        )

    def _train_by_rewards(
        self,
        options: SelfCriticalOptions,
        captioner: Captioner,
        vocabulary: Vocabulary,
        data: RunData,
        resumed: _Saved | None,
    ) -> None:
        """Train the decoder of the best epoch by the rewards of what it says, or on from what was saved."""
        if self._state.best_epoch and not resumed:
            with main_first():  # who has written them
                load_weights(captioner, self._folder.checkpoint(self._state.best_epoch))
        captioner.encoder.requires_grad_(False)
        self._rewarding = True
        cache = self._folder.annotations
        if self._has_epochs_left(options.epochs):
            self_critical = SelfCritical(
                options,
                data.train.captions,
                vocabulary,
                max_length=self.config.validation.max_length,
                objects=data.train.objects,
            )
            if not self.config.encoder.frozen:
                began = time.monotonic()
                data = data.annotated(captioner, self.config, cache, self._reporter)
                self._state.seconds += time.monotonic() - began
            optimisation = replace(
                self.config.optimisation,
                epochs=options.epochs,
                learning_rate=options.learning_rate,
                captions_per_image=1,  # references are only compared with
            )
            phase = _Phase(objective=Rewards(self_critical), options=optimisation, data=data)
            self._train_epochs(captioner, vocabulary, phase, resumed)
        if not self.config.encoder.frozen:
            from_main(lambda: shutil.rmtree(cache, ignore_errors=True))  # nobody reads it any more

    def _train_epochs(
        self, captioner: Captioner, vocabulary: Vocabulary, phase: _Phase, resumed: _Saved | None
    ) -> None:
        """Train, validate and keep, until the last epoch or the end of patience."""
        options = phase.options
        optimisation = Optimisation(
            captioner,
            options,
            batches=options.epochs * batch_count(phase.data.train, options.batch_images),
            beside=phase.beside,
        )
        if resumed:
            optimisation.restore(*resumed)
        state, metrics = self._state, MetricsLog(self._folder.path, self._state.step)
        grid = captioner.encoder.grid(self.config.preprocessing.size)
        metric = self.config.validation.metric
        while self._has_epochs_left(options.epochs):
            began = time.monotonic()
            state.epoch += 1
            state.rewarded += self._rewarding
            self._train_epoch(captioner, optimisation, vocabulary, phase, metrics)
            with optimisation.averaged_weights():
                scores = from_main(
                    lambda: (
                        evaluate(captioner, vocabulary, phase.data.validation, self._search_options(), grid=grid).scores
                    )
                )
                score = scores.get(metric, 0.0)  # of relations there is none where none was stated
                optimisation.after_epoch(score)
                state.seconds += time.monotonic() - began
                state.take(scores, score)
                metrics.write(state.step, {"epoch": state.epoch} | {f"validation/{n}": v for n, v in scores.items()})
                if is_main():
                    self._keep(captioner, optimisation, vocabulary)
            self._say(scores)
        metrics.close()

    def _has_epochs_left(self, epochs: int) -> bool:
        """Whether the phase goes on, which has so many epochs if patience does not end first."""
        return self._epoch_of_phase() < epochs and not self._is_out_of_patience()

    def _epoch_of_phase(self) -> int:
        """How many epochs by likelihood, or by rewards, are done."""
        return self._state.rewarded if self._rewarding else self._state.epoch

    def _search_options(self) -> SearchOptions:
        validation = self.config.validation
        return SearchOptions(beam=validation.beam, max_length=validation.max_length, decode_mode=validation.decode_mode)

    def _captioner(self, vocabulary: Vocabulary, *, pretrained: bool) -> Captioner:
        config = self.config
        captioner = build_captioner(
            config.encoder,
            config.decoder,
            words=len(vocabulary),
            mean=config.preprocessing.mean,
            std=config.preprocessing.std,
            pretrained=pretrained,
        )
        captioner.encoder.to(memory_format=torch.channels_last)
        return captioner.to(self.device).train()

    def _concept_task(self, captioner: Captioner, train: Split, vocabulary: Vocabulary) -> Concepts | None:
        options = self.config.concepts
        if not options.is_wanted:
            return None
        return Concepts(captioner.encoder.width, train, vocabulary, options).to(self.device)

    def _start(self) -> tuple[str, str]:
        """The run or checkpoint whose weights this one starts from, or "", and the option that says so."""
        if self.config.self_critical:
            return self.config.self_critical.start, "self_critical.start"
        return self.config.hard.start, "hard.start"

    def _pretrain(self, captioner: Captioner, train: Split) -> None:
        options = self.config.concepts
        if self._concepts is None or not options.epochs:
            return
        began = time.monotonic()
        with self._reporter.task("pretraining the encoder", options.epochs * len(train), unit="images") as progress:
            pretrain_encoder(captioner, self._concepts, train, options, self.config.optimisation, progress=progress)
        self._state.seconds += time.monotonic() - began

    def _train_epoch(
        self,
        captioner: Captioner,
        optimisation: Optimisation,
        vocabulary: Vocabulary,
        phase: _Phase,
        metrics: MetricsLog,
    ) -> None:
        options, state = phase.options, self._state
        torch.manual_seed(_noise_seed(options.seed, state.epoch))
        epoch = batches(
            phase.data.train,
            vocabulary,
            np.random.default_rng((options.seed, state.epoch)),
            images=options.batch_images,
            captions_per_image=options.captions_per_image,
            share=share(),
        )
        share_done = self._epoch_of_phase() / options.epochs
        total_images, done, tells = len(phase.data.train), 0, phase.objective.tells
        with self._reporter.task(f"epoch {state.epoch}", total_images, unit="images") as progress:
            for batch in epoch:
                rate = optimisation.rate
                if phase.augmentation is not None:
                    batch = batch._replace(images=phase.augmentation(batch.images))
                told = self.train_step(captioner, optimisation, phase.objective, batch, done=share_done)
                done = min(done + options.batch_images, total_images)
                if state.step % 20 == 0:
                    metrics.write(state.step, {f"train/{tells}": told, "train/learning_rate": rate})
                progress(done, **{tells: told})  # type: ignore[arg-type]  # which is not `total`

    def train_step(
        self, captioner: Captioner, optimisation: Optimisation, objective: Objective, batch: Batch, *, done: float = 1.0
    ) -> float:
        """Train on one batch; returns what `Losses.told` is of all processes. Raises DivergenceError.

        done : share of the phase's epochs, the present one included
        """
        batch = Batch(*(part.to(self.device) for part in batch))
        with arithmetic(self.config.optimisation.precision, self.device):
            losses = objective.losses(captioner, batch, done=done)
        if not torch.isfinite(losses.minimised):
            raise DivergenceError(
                f"the loss became {losses.minimised.item()} at step {self._state.step + 1}: "
                "lower learning_rate or gradient_clip, or use float32"
            )
        optimisation.step(losses.minimised)
        self._state.step += 1
        return float(total(losses.told.detach()))

    def _is_out_of_patience(self) -> bool:
        """Whether the best epoch is long ago; rewards have their own patience."""
        last_best = max(self._state.best_epoch, self._state.epoch - self._epoch_of_phase())
        out = self._state.epoch - last_best >= self.config.validation.patience
        if out:
            log.info("no better epoch than %d for %d epochs", self._state.best_epoch, self.config.validation.patience)
        return out

    def _keep(self, captioner: Captioner, optimisation: Optimisation, vocabulary: Vocabulary) -> None:
        """Write this epoch's checkpoint, then point to it, then drop the ones no pointer names."""
        state = self._state
        tensors, values = optimisation.state()
        save_checkpoint(
            self._folder.checkpoint(state.epoch),
            captioner,
            self._describe(vocabulary, {f"validation/{metric}": value for metric, value in state.scores.items()}),
            trainer_tensors=_trainer_tensors(tensors, self._concepts),
            trainer_state={"trainer": unstructure(state), "optimisation": values},
            overwrite=True,
        )
        self._folder.keep(state.epoch, best=state.best_epoch, score=state.best_score)

    def _describe(self, vocabulary: Vocabulary, scores: dict[str, float]) -> Description:
        return Description(
            format_version=FORMAT_VERSION,
            encoder=replace(self.config.encoder, weights="none"),  # the trained weights are in the checkpoint
            decoder=self.config.decoder,
            preprocessing=self.config.preprocessing,
            vocabulary=vocabulary.as_json(),
            max_length=self.config.validation.max_length,
            provenance={
                "config": unstructure(self.config),
                "environment": self._environment,
                "epoch": self._state.epoch,
                "rewarded": self._state.rewarded,
                "training_seconds": round(self._state.seconds, 1),
            },
            scores=scores,
        )

    def _resume(self, captioner: Captioner, vocabulary: Vocabulary) -> _Saved:
        """Take the captioner, the concepts and the state back; returns what the optimisation needs."""
        folder = self._folder.latest()
        if read_description(folder).vocabulary != vocabulary.as_json():
            raise ConfigError(
                f"{folder} was trained on other words than the training split has now: the data or the version of "
                "saccade changed; start anew with --overwrite"
            )
        load_weights(captioner, folder)
        tensors, state = load_trainer(folder)
        self._state = structure(state["trainer"], TrainerState, source=str(folder), error=CheckpointError)
        if is_main():
            # A crash between two pointers may have left the other one behind.
            self._folder.point_to_best(self._state.best_epoch, self._state.best_score)
        log.info("resuming after epoch %d", self._state.epoch)
        return _restore_trainer(tensors, self._concepts), state["optimisation"]

    def _say(self, scores: dict[str, float]) -> None:
        shown = ("CIDEr-D", "BLEU-4", "object_f1", "relation_accuracy", "pointing_nouns", "pointing_words")
        text = ", ".join(f"{name} {scores[name]:.3f}" for name in shown if name in scores)
        mark = " (best)" if self._state.best_epoch == self._state.epoch else ""
        if attention_stays(self.config.decoder.attention, scores):
            mark += f"; the attention hardly moves: alpha_variation {scores['alpha_variation']:.4f}"
        log.info("epoch %d, %.0f s: %s%s", self._state.epoch, self._state.seconds, text, mark)

    def _best_scores(self) -> dict[str, float]:
        """What the best epoch scored on the validation split, where there is no test split."""
        return read_description(resolve_checkpoint(self._folder.path)).scores

    def _score_best(self, test: Split, options: SearchOptions, grid: tuple[int, int]) -> dict[str, float]:
        """Score the best epoch on the test split and write the scores into its checkpoint."""
        folder = resolve_checkpoint(self._folder.path)
        checkpoint = load_checkpoint(folder)
        with self._reporter.task("scoring the test split", len(test), unit="images") as progress:
            scores = evaluate(
                checkpoint.captioner.to(self.device),
                checkpoint.vocabulary,
                test,
                options,
                grid=grid,
                progress=progress,
            ).scores
        scores = {f"test/{name}": value for name, value in scores.items()}
        description = replace(checkpoint.description, scores=checkpoint.description.scores | scores)
        write_json(folder / "checkpoint.json", unstructure(description))
        return scores


def _noise_seed(seed: int, epoch: int) -> int:
    """What torch draws in an epoch follows from: another in every process, the same when an epoch is repeated."""
    return int(np.random.SeedSequence((seed, epoch, number())).generate_state(1, np.uint64)[0])


def _trainer_tensors(optimisation: dict[str, Tensor], concepts: Concepts | None) -> dict[str, Tensor]:
    """The optimisation's own tensors, and the concepts' head."""
    head = {} if concepts is None else concepts.state_dict()
    return {f"{_OPTIMISATION}{name}": value for name, value in optimisation.items()} | {
        f"{_CONCEPTS}{name}": value.contiguous() for name, value in head.items()
    }


def _restore_trainer(tensors: dict[str, Tensor], concepts: Concepts | None) -> dict[str, Tensor]:
    """Take back the concepts' head; returns what belongs to the optimisation."""
    if concepts is not None:
        concepts.load_state_dict(below(_CONCEPTS, tensors))
    return below(_OPTIMISATION, tensors)
