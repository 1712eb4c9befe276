"""What training minimises: minus the likelihood of captions, a bound of it for hard attention, or minus rewards."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F

from training.concepts import Concepts
from training.config import TrainingConfig
from training.data import Batch, repeated
from training.hard_attention import Baseline, draw_choices, variational_loss
from training.losses import at_least_float32, doubly_stochastic_penalty, per_word
from training.model import Captioner
from training.sampling import as_it_captions, with_own_words
from training.self_critical import SelfCritical


class Losses(NamedTuple):
    """Of one batch, scalars; those of several processes add up.

    told : what a person is told of: negative log-likelihood per word, or the mean reward
    minimised : what gradients are taken of
    """

    told: Tensor
    minimised: Tensor


class Objective(Protocol):
    """What a phase of training is about. `tells` is what `Losses.told` is called."""

    tells: Literal["loss", "reward"]

    def losses(self, captioner: Captioner, batch: Batch, *, done: float) -> Losses:
        """Of a batch on the captioner's device; done : share of the phase's epochs, the present one included."""
        ...


class Likelihood:
    """Captions of the training split word by word, of soft and no attention; a bound of their likelihood, of hard.

    Beside them stand what the configuration asks for: label smoothing, words of the captioner's own, the doubly
    stochastic penalty, the concepts.
    """

    tells: Literal["loss", "reward"] = "loss"

    def __init__(self, config: TrainingConfig, *, baseline: Baseline, concepts: Concepts | None = None) -> None:
        """Baseline : that of hard attention, kept up to date; concepts : a task beside the captions."""
        self._config, self._baseline, self._concepts = config, baseline, concepts

    def losses(self, captioner: Captioner, batch: Batch, *, done: float) -> Losses:
        """See `Objective`."""
        options, decoder = self._config.optimisation, captioner.decoder
        annotations = captioner.annotate(batch.images)
        if options.scheduled_sampling:
            own = options.scheduled_sampling * done
            batch = batch._replace(tokens=with_own_words(decoder, batch.tokens, annotations, own))
        if self._config.decoder.attention == "hard":
            hard, places = self._config.hard, annotations.keys.shape[1]
            batch = repeated(batch, hard.samples)
            images, rows, steps = batch.tokens.shape
            choices = draw_choices(images, rows, steps, places, hard, batch.tokens.device)
            forced = decoder.teacher_forced(batch.tokens, batch.mask, annotations, choices)
            likelihood, loss = variational_loss(forced, batch.targets, batch.mask, choices, self._baseline, hard)
        else:
            forced = decoder.teacher_forced(batch.tokens, batch.mask, annotations)
            logits = at_least_float32(forced.logits)
            likelihood = per_word(F.cross_entropy(logits, batch.targets, reduction="sum"), batch.mask)
            loss = likelihood
            if smoothing := options.label_smoothing:
                smooth = F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=smoothing)
                loss = per_word(smooth, batch.mask)
        if self._concepts is not None:
            loss = loss + self._config.concepts.weight * self._concepts.loss(annotations.values, batch.indices)
        if options.doubly_stochastic:
            loss = loss + options.doubly_stochastic * doubly_stochastic_penalty(forced.alphas, batch.mask)
        return Losses(likelihood, loss)


class Rewards:
    """Captions that the decoder draws itself; the batch's own are only compared with."""

    tells: Literal["loss", "reward"] = "reward"

    def __init__(self, self_critical: SelfCritical) -> None:
        self._self_critical = self_critical

    def losses(self, captioner: Captioner, batch: Batch, *, done: float) -> Losses:  # noqa: ARG002 - always the same
        """See `Objective`."""
        with as_it_captions(captioner.decoder):
            annotations = captioner.annotate(batch.images)
        return Losses(*self._self_critical.losses(captioner.decoder, annotations, batch.indices))
