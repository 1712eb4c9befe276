"""Training of hard attention: the variational lower bound of section 4.1 of the paper, by REINFORCE.

Where the decoder looks is a latent variable s, one place a word, drawn from the alphas. Training maximises

    L_s = sum_s p(s | a) log p(y | s, a)  <=  log p(y | a)                                          (Eq. 10)

whose gradient is estimated from N sampled paths s^n (Eq. 12, and the learning rule after it),

    1/N sum_n [ d log p(y | s^n, a) + lambda_r (log p(y | s^n, a) - b) d log p(s^n | a) + lambda_e d H[s^n] ]

with a moving average b of the reward as baseline, and the entropy H of the alphas against places that are never tried.
To lower the variance further, the expected annotation takes the place of the sample half of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saccade.errors import ConfigError
from training.distribution import total
from training.losses import at_least_float32, caption_log_probs, per_word
from training.model import Choice, Forced


@dataclass(frozen=True, slots=True, kw_only=True)
class HardOptions:
    """How hard attention is trained; the names of the paper in brackets.

    samples : paths per caption [N]
    expected_share : probability of the expected annotation instead of a sample
    expected_per : what that is drawn for: each "image" (the paper), each "batch" (the released code), or each "step"
    reinforce : weight of the REINFORCE term [lambda_r]
    entropy : weight of the entropy, per word [lambda_e]
    baseline_decay : of the moving average of the reward
    reward : the log-likelihood of a caption as the "sum" over its words (the paper) or their "mean"
    start : run or checkpoint of the same model, with soft or hard attention, whose weights it starts from; "" for
        random ones (the paper)
    """

    samples: int = 1
    expected_share: float = 0.5
    expected_per: Literal["image", "batch", "step"] = "image"
    reinforce: float = 1.0
    entropy: float = 0.002
    baseline_decay: float = 0.9
    reward: Literal["sum", "mean"] = "sum"
    start: str = ""

    def __post_init__(self) -> None:
        problems = []
        if self.samples < 1:
            problems.append(f"samples must be at least 1, got {self.samples}")
        problems += [
            f"{name} must be in [0, 1], got {getattr(self, name)}"
            for name in ("expected_share", "baseline_decay")
            if not 0 <= getattr(self, name) <= 1
        ]
        problems += [f"{name} must be 0 or more" for name in ("reinforce", "entropy") if getattr(self, name) < 0]
        if problems:
            raise ConfigError("invalid hard: " + "; ".join(problems))


@dataclass(slots=True)
class Baseline:
    """b <- decay b + (1 - decay) reward, starting from the first reward."""

    value: float = 0.0
    updates: int = 0

    def update(self, reward: float, decay: float) -> None:
        """Take in the mean reward of a batch."""
        self.value = decay * self.value + (1 - decay) * reward if self.updates else reward
        self.updates += 1


def draw_choices(
    images: int, rows: int, steps: int, places: int, options: HardOptions, device: torch.device
) -> list[Choice]:
    """Gumbel noise and which images look at samples, for every word; from torch's global random state."""
    noise = -torch.empty(steps, images, rows, places, device=device).exponential_().log()
    shape = {"image": (1, images), "batch": (1, 1), "step": (steps, 1)}[options.expected_per]
    sampled = (torch.rand(shape, device=device) >= options.expected_share).expand(steps, images)
    return [Choice(*pair) for pair in zip(noise, sampled, strict=True)]


def variational_loss(
    forced: Forced,
    targets: Tensor,
    mask: Tensor,
    choices: list[Choice],
    baseline: Baseline,
    options: HardOptions,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per word, and the loss whose gradient is minus the learning rule's, per word.

    targets : (N,), the words at the N places of `mask` (B, K, T), where K counts the sampled paths of each caption
    Updates the baseline by the mean reward of the rows that looked at samples. Of several processes each gets its part
    of both numbers, as `per_word` has it, and all get the same baseline.
    """
    if forced.place_log_probs is None:
        raise ValueError("the captions were not forced with choices")
    log_likelihood = caption_log_probs(forced.logits, targets, mask)
    sampled = torch.stack([choice.sampled for choice in choices], dim=-1)[:, None] & mask  # (B, K, T)
    path = (at_least_float32(forced.place_log_probs) * sampled).sum(
        -1
    )  # log p(s | a); an expected annotation is no choice
    reward = log_likelihood.detach()  # log p(y | s, a)
    if options.reward == "mean":
        reward = reward / mask.sum(-1).clamp(min=1)
    rows = sampled.any(-1)
    before = baseline.value
    summed, count = total(torch.stack([reward[rows].sum(), rows.sum().to(reward.dtype)])).tolist()
    if count:
        baseline.update(summed / count, options.baseline_decay)
    advantage = reward - (before if baseline.updates > 1 else baseline.value)
    alphas = at_least_float32(forced.alphas)
    entropy = -(alphas * alphas.clamp(min=1e-12).log()).sum(-1)
    bound = log_likelihood.sum() + options.reinforce * (advantage * path).sum()
    bound = bound + options.entropy * (entropy * mask).sum()
    return per_word(-log_likelihood.sum().detach(), mask), per_word(-bound, mask)
