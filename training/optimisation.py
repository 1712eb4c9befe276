"""How the weights are fitted: optimiser, learning rate, clipping, accumulation and averaging, resumable bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from saccade.errors import ConfigError
from training.distribution import is_main, total_gradients
from training.model import Captioner
from training.muon import Muon
from training.precision import Precision

_OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": partial(AdamW, fused=True),
    "adam": partial(Adam, fused=True),
    "rmsprop": RMSprop,
    "muon": Muon,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimisationOptions:
    """How the weights are fitted. A step is one update of the weights.

    epochs : passes over the training split; 0 only where rewards begin with another run's weights
    batch_images : images per batch
    captions_per_image : references of each image that are drawn per epoch
    accumulate : batches per step; their gradients are averaged
    optimiser : the paper uses RMSprop and Adam; AdamW is Adam with a weight decay that its moments do not see; Muon
        is AdamW but for matrices and filters, and learns from scratch out of far fewer images
    learning_rate : the largest, at the end of the warm-up
    encoder_learning_rate : that of the encoder, None for the same; small for pretrained weights
    schedule : after the warm-up "cosine" and "linear" fall to zero at the last step, "plateau" is multiplied by
        plateau_factor whenever the validation score has not risen for plateau_patience epochs, "constant" stays
    warmup_steps : linear rise of the learning rate from almost nothing
    plateau_factor : see schedule
    plateau_patience : see schedule; validation.patience, which ends the training, should be longer
    weight_decay : of matrices and filters; not of biases, norms and embeddings
    gradient_clip : largest norm of the gradient
    label_smoothing : share of the target's probability that is spread over all words
    scheduled_sampling : probability, in the last epoch, that the decoder is fed a word of its own instead of the
        reference's; it rises in equal steps, one an epoch. 0 leaves out the pass that draws the words
    average_decay : validate and keep an exponential moving average of the weights, which keeps this share of itself at
        each step and so remembers about 1 / (1 - average_decay) steps; 0 keeps the weights themselves
    doubly_stochastic : lambda of the penalty that asks every place to be looked at (Eq. 14)
    precision : of the arithmetic, "float32", "bfloat16", or "auto" for bfloat16 where the device multiplies it in
        hardware; weights and optimiser stay float32
    seed : of the initial weights, the order of the data and all else that is drawn
    """

    epochs: int
    batch_images: int = 32
    captions_per_image: int = 5
    accumulate: int = 1
    optimiser: Literal["adamw", "adam", "rmsprop", "muon"] = "adamw"
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "plateau", "constant"] = "cosine"
    warmup_steps: int = 200
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    weight_decay: float = 0.0
    gradient_clip: float = 5.0
    label_smoothing: float = 0.0
    scheduled_sampling: float = 0.0
    average_decay: float = 0.0
    doubly_stochastic: float = 1.0
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {wanted}, got {value}"
            for wanted, (fits, names) in _RANGES.items()
            for name in names
            if (value := getattr(self, name)) is not None and not fits(value)
        ]
        if problems:
            raise ConfigError("invalid optimisation: " + "; ".join(problems))


_RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda value: value >= 1,
        ("batch_images", "captions_per_image", "accumulate", "plateau_patience"),
    ),
    "0 or more": (lambda value: value >= 0, ("epochs", "warmup_steps", "weight_decay", "doubly_stochastic", "seed")),
    "above 0": (lambda value: value > 0, ("learning_rate", "encoder_learning_rate", "gradient_clip")),
    "above 0 and below 1": (lambda value: 0 < value < 1, ("plateau_factor",)),
    "in [0, 1)": (lambda value: 0 <= value < 1, ("label_smoothing", "scheduled_sampling", "average_decay")),
}
"""What a value must be, and of which fields; not-a-number is nothing of this."""


class Optimisation:
    """Fits the weights of a captioner that are not frozen, and those of a task beside it.

    Build it when the captioner is on its device; `restore` continues an earlier one.
    """

    def __init__(
        self, captioner: Captioner, options: OptimisationOptions, *, batches: int, beside: nn.Module | None = None
    ) -> None:
        """In all, `step` will be given the losses of `batches` batches; the cosine and linear schedules end there."""
        self._options = options
        parts: list[tuple[nn.Module, float]] = [
            (captioner.decoder, options.learning_rate),
            (captioner.encoder, options.encoder_learning_rate or options.learning_rate),
        ]
        if beside is not None:
            parts.append((beside, options.learning_rate))
        self._optimiser = build_optimiser(parts, options)
        self._trained = nn.ParameterList(
            parameter for group in self._optimiser.param_groups for parameter in group["params"]
        )
        self._schedule = _schedule(self._optimiser, options, batches // options.accumulate)
        self._plateau = ReduceLROnPlateau(
            self._optimiser,
            mode="max",
            factor=options.plateau_factor,
            patience=options.plateau_patience - 1,  # PyTorch counts the epochs that are forgiven
            threshold=0.0,
        )
        update = get_ema_multi_avg_fn(options.average_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self._trained, multi_avg_fn=update) if options.average_decay else None
        self._pending = 0  # batches whose gradients wait for a step
        self._set_aside: list[Tensor] | None = None  # the weights, while the captioner holds their average

    @property
    def rate(self) -> float:
        """The decoder's learning rate at the next step."""
        return float(self._optimiser.param_groups[0]["lr"])

    def step(self, loss: Tensor) -> None:
        """Add the gradient of a batch's loss, and with the last of `accumulate` batches move the weights.

        Batches that are left over at the end of an epoch count towards the first step of the next. Several processes
        give their parts of each loss, and all make the same step.
        """
        if not self._pending or not is_main():  # among several processes, the main one keeps what has been added up
            self._optimiser.zero_grad()
        torch.autograd.backward(loss / self._options.accumulate)
        total_gradients(self._trained)
        self._pending = (self._pending + 1) % self._options.accumulate
        if self._pending:
            return
        nn.utils.clip_grad_norm_(self._trained, self._options.gradient_clip)
        self._optimiser.step()
        self._schedule.step()
        if self._average is not None:
            self._average.update_parameters(self._trained)

    def after_epoch(self, score: float) -> None:
        """Take note of a validation score, higher is better: the plateau schedule may lower the learning rate."""
        if self._options.schedule == "plateau":
            self._plateau.step(score)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the captioner hold the averaged weights, if there are any, for validation and saving; no steps inside.

        Buffers are the captioner's own: an average of batch statistics would be one of other weights' statistics.
        """
        if self._average is None:
            yield
            return
        self._set_aside = [parameter.data for parameter in self._trained]
        try:
            self._hold([parameter.data for parameter in self._average.parameters()])
            yield
        finally:
            self._hold(self._set_aside)
            self._set_aside = None

    def _hold(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self._trained, weights, strict=True):
            parameter.data = weight

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `restore` needs beside the captioner's own state: tensors for safetensors, and values for JSON.

        Copies, the same inside and outside of `averaged_weights`. With an average the weights are among them, since
        the captioner may be saved with the average.
        """
        tensors = {
            f"moments.{number}.{name}": moment
            for number, moments in self._optimiser.state_dict()["state"].items()
            for name, moment in moments.items()
        }
        if self._average is not None:
            weights = self._set_aside or [parameter.data for parameter in self._trained]
            tensors |= {f"weights.{number}": weight for number, weight in enumerate(weights)}
            tensors |= {f"average.{name}": tensor for name, tensor in self._average.state_dict().items()}
        if self._pending:
            gradients = {number: parameter.grad for number, parameter in enumerate(self._trained)}
            tensors |= {f"gradients.{number}": grad for number, grad in gradients.items() if grad is not None}
        plateau = self._plateau.state_dict().items()
        values = {
            "rates": [group["lr"] for group in self._optimiser.param_groups],
            "schedule": self._schedule.state_dict(),
            "plateau": {name: value for name, value in plateau if value != -math.inf},  # which JSON does not know
            "pending": self._pending,
        }
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continue bit by bit where `state` was taken, by an optimisation with the same options and batches.

        The captioner has been given its own state: the weights and buffers that it held then or, with an average, that
        of either kind.
        """
        moments: dict[int, dict[str, Tensor]] = {}
        for key, moment in below("moments.", tensors).items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = _laid_out_like(self._trained[int(number)], moment)
        groups = self._optimiser.state_dict()["param_groups"]
        for group, rate in zip(groups, values["rates"], strict=True):
            group["lr"] = rate
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self._schedule.load_state_dict(values["schedule"])
        self._plateau.load_state_dict(values["plateau"])
        if self._average is not None:
            self._trained.load_state_dict(below("weights.", tensors))
            self._average.load_state_dict(below("average.", tensors))
        self._pending = values["pending"]
        for key, gradient in below("gradients.", tensors).items():
            self._trained[int(key)].grad = _laid_out_like(self._trained[int(key)], gradient)


def build_optimiser(parts: Iterable[tuple[nn.Module, float]], options: OptimisationOptions) -> Optimizer:
    """The optimiser of modules with their learning rates. Frozen parameters are in no group.

    Matrices and filters, but not embeddings, are what weight decay and Muon are for.
    """
    groups = []
    for part, rate in parts:
        embeddings = {module.weight for module in part.modules() if isinstance(module, nn.Embedding)}
        trained = {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}
        matrices = {
            name: parameter
            for name, parameter in trained.items()
            if name.endswith("weight") and parameter.ndim > 1 and parameter not in embeddings
        }
        others = [parameter for name, parameter in trained.items() if name not in matrices]
        groups.append(
            {"params": [*matrices.values()], "lr": rate, "weight_decay": options.weight_decay, "orthogonal": True}
        )
        groups.append({"params": others, "lr": rate, "weight_decay": 0.0, "orthogonal": False})
    return _OPTIMISERS[options.optimiser]([group for group in groups if group["params"]])


def _schedule(optimiser: Optimizer, options: OptimisationOptions, steps: int) -> LRScheduler:
    """Linear warm-up, then what the options name. It scales the rate it finds, and so keeps a plateau's reductions."""
    warmup = options.warmup_steps
    rise = LinearLR(optimiser, start_factor=1 / max(1, warmup), total_iters=max(0, warmup - 1))
    following = max(1, steps - warmup)
    fall: LRScheduler
    if options.schedule == "cosine":
        fall = CosineAnnealingLR(optimiser, T_max=following)
    elif options.schedule == "linear":
        fall = LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=following)
    else:
        return rise
    return SequentialLR(optimiser, [rise, fall], milestones=[warmup])


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy with the parameter's device and strides: sums and vector instructions of another order round otherwise."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
