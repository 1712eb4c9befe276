"""The gradient estimator of hard attention against the bound it estimates, by enumeration of every path."""

from itertools import product

import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from training.annotations import Annotations
from training.hard_attention import Baseline, HardOptions, draw_choices, variational_loss
from training.model import Choice, Decoder, DecoderOptions, Forced

PLACES, WORDS = 3, 5
CAPTION = torch.tensor([1, 3, 4])  # <start> and two words
TARGETS = torch.tensor([3, 4, 2])
PATHS = list(product(range(PLACES), repeat=len(CAPTION)))


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    options = DecoderOptions(attention="hard", attention_width=4, embedding_width=3, hidden_width=4, dropout=0.0)
    made = Decoder(3, WORDS, options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)  # so that the places differ in what they say
    return made


@pytest.fixture
def annotations(decoder: Decoder) -> Annotations:
    torch.manual_seed(1)
    return decoder.annotate(2 * torch.randn(1, PLACES, 3, dtype=torch.float64))


def forced(decoder: Decoder, annotations: Annotations, choices: list[Choice], rows: int = 1) -> Forced:
    tokens = CAPTION.expand(1, rows, -1)
    return decoder.teacher_forced(tokens, torch.ones_like(tokens, dtype=torch.bool), annotations, choices)


def along(path: tuple[int, ...]) -> list[Choice]:
    """Noise so large that the path is taken."""
    noise = torch.nn.functional.one_hot(torch.tensor(path), PLACES)[:, None, None] * 1e6
    return [Choice(one, torch.tensor([True])) for one in noise.double()]


def log_likelihood_and_path(result: Forced) -> tuple[Tensor, Tensor]:
    """log p(y | s, a) and log p(s | a) of one row, from first principles."""
    assert result.place_log_probs is not None
    return result.logits.log_softmax(-1)[range(3), TARGETS].sum(), result.place_log_probs.sum()


def exact_gradient(decoder: Decoder, annotations: Annotations) -> list[Tensor]:
    """Of the bound L_s = sum_s p(s | a) log p(y | s, a), Eq. 10, over all 27 paths."""
    bound = torch.zeros((), dtype=torch.float64)
    for path in PATHS:
        likelihood, log_path = log_likelihood_and_path(forced(decoder, annotations, along(path)))
        bound = bound + log_path.exp() * likelihood
    return gradient(bound, decoder)


def gradient(value: Tensor, decoder: Decoder) -> list[Tensor]:
    grads = torch.autograd.grad(value, list(decoder.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(decoder.parameters(), grads, strict=True)]


def constant_baseline(value: float) -> Baseline:
    return Baseline(value, updates=1)


def estimate(
    decoder: Decoder, annotations: Annotations, choices: list[Choice], baseline: Baseline, *, rows: int = 1
) -> list[Tensor]:
    """The estimator's gradient of the bound; the loss is minus it, per word."""
    mask = torch.ones(1, rows, 3, dtype=torch.bool)
    result = forced(decoder, annotations, choices, rows)
    options = HardOptions(expected_share=0.0, entropy=0.0)
    _, loss = variational_loss(result, TARGETS.repeat(rows), mask, choices, baseline, options)
    return gradient(-loss * 3, decoder)


def test_the_paths_have_probabilities_that_sum_to_one(decoder: Decoder, annotations: Annotations) -> None:
    total = sum(log_likelihood_and_path(forced(decoder, annotations, along(path)))[1].exp() for path in PATHS)
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("baseline", [0.0, -4.2])
def test_the_estimator_is_unbiased_whatever_the_baseline(
    decoder: Decoder, annotations: Annotations, baseline: float
) -> None:
    """Every path weighted by its probability: no sampling error, so the expectation is exact."""
    expected = [torch.zeros_like(parameter) for parameter in decoder.parameters()]
    for path in PATHS:
        probability = log_likelihood_and_path(forced(decoder, annotations, along(path)))[1].exp().item()
        found = estimate(decoder, annotations, along(path), constant_baseline(baseline))
        expected = [total + probability * part for total, part in zip(expected, found, strict=True)]
    for found_part, exact in zip(expected, exact_gradient(decoder, annotations), strict=True):
        torch.testing.assert_close(found_part, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", [0.0, -4.2])
def test_sampled_gradients_average_to_the_exact_one(
    decoder: Decoder, annotations: Annotations, baseline: float
) -> None:
    torch.manual_seed(2)
    rows = 20_000
    choices = draw_choices(1, rows, 3, PLACES, HardOptions(expected_share=0.0), torch.device("cpu"))
    found = estimate(decoder, annotations, choices, constant_baseline(baseline), rows=rows)
    exact = torch.cat([part.flatten() for part in exact_gradient(decoder, annotations)])
    error = torch.cat([part.flatten() for part in found]) - exact
    assert error.norm() < 0.08 * exact.norm()


def test_a_baseline_near_the_reward_lowers_the_variance(decoder: Decoder, annotations: Annotations) -> None:
    def variance(baseline: float) -> float:
        torch.manual_seed(3)
        estimates = []
        for _ in range(60):
            choices = draw_choices(1, 1, 3, PLACES, HardOptions(expected_share=0.0), torch.device("cpu"))
            parts = estimate(decoder, annotations, choices, constant_baseline(baseline))
            estimates.append(torch.cat([part.flatten() for part in parts]))
        return float(torch.stack(estimates).var(dim=0).sum())

    likelihoods = [log_likelihood_and_path(forced(decoder, annotations, along(path)))[0].item() for path in PATHS]
    assert variance(sum(likelihoods) / len(likelihoods)) < variance(0.0)


def test_places_are_sampled_as_often_as_their_alphas_say(decoder: Decoder, annotations: Annotations) -> None:
    torch.manual_seed(4)
    rows = 20_000
    choices = draw_choices(1, rows, 3, PLACES, HardOptions(expected_share=0.0), torch.device("cpu"))
    result = forced(decoder, annotations, choices, rows)
    assert result.place_log_probs is not None
    alphas = result.alphas[0, 0, 0]
    for alpha in alphas:
        share = (result.place_log_probs[0, :, 0] - alpha.log()).abs().lt(1e-12).double().mean()
        assert abs(share - alpha) < 4 * (alpha * (1 - alpha) / rows) ** 0.5


def test_an_image_without_samples_gives_the_gradient_of_soft_attention(
    decoder: Decoder, annotations: Annotations
) -> None:
    options = HardOptions(expected_share=1.0, entropy=0.0)
    choices = draw_choices(1, 1, 3, PLACES, options, torch.device("cpu"))
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    baseline = Baseline()
    _, loss = variational_loss(forced(decoder, annotations, choices), TARGETS, mask, choices, baseline, options)
    soft = decoder.teacher_forced(CAPTION[None, None], mask, annotations)
    likelihood = torch.nn.functional.cross_entropy(soft.logits, TARGETS)
    for ours, theirs in zip(gradient(loss, decoder), gradient(likelihood, decoder), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert baseline.updates == 0


def test_padding_counts_for_nothing(decoder: Decoder, annotations: Annotations) -> None:
    """The words behind a caption, and where they looked, change neither loss nor gradient."""
    torch.manual_seed(5)
    choices = draw_choices(1, 1, 3, PLACES, HardOptions(expected_share=0.0), torch.device("cpu"))
    mask = torch.tensor([[[True, True, False]]])
    found = []
    for padding in (0, 4):
        tokens = torch.tensor([[[1, 3, padding]]])
        result = decoder.teacher_forced(tokens, mask, annotations, choices)
        options = HardOptions(expected_share=0.0, entropy=0.3)
        _, loss = variational_loss(result, TARGETS[:2], mask, choices, Baseline(), options)
        found.append((loss, gradient(loss, decoder)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(("per", "distinct"), [("image", (1, 40)), ("batch", (1, 1)), ("step", (40, 1))])
def test_what_the_expected_annotation_is_drawn_for(per: str, distinct: tuple[int, int]) -> None:
    torch.manual_seed(6)
    options = HardOptions(expected_per=per)  # type: ignore[arg-type]
    choices = draw_choices(40, 1, 40, PLACES, options, torch.device("cpu"))
    sampled = torch.stack([choice.sampled for choice in choices])  # (T, B)
    assert sampled.shape == (40, 40)
    assert (sampled == sampled[:1]).all() == (distinct[0] == 1)
    assert (sampled == sampled[:, :1]).all() == (distinct[1] == 1)


def test_the_baseline_is_a_moving_average_from_the_first_reward() -> None:
    baseline = Baseline()
    baseline.update(-50.0, decay=0.9)
    baseline.update(-40.0, decay=0.9)
    assert baseline.value == pytest.approx(-49.0)


def test_entropy_is_rewarded(decoder: Decoder, annotations: Annotations) -> None:
    choices = along((0, 1, 2))
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    result = forced(decoder, annotations, choices)
    losses = [
        variational_loss(result, TARGETS, mask, choices, Baseline(), HardOptions(entropy=weight))[1]
        for weight in (0.0, 1.0)
    ]
    entropy = -(result.alphas * result.alphas.log()).sum(-1).mean()
    torch.testing.assert_close(losses[0] - losses[1], entropy)


def test_all_invalid_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"samples.*expected_share.*entropy"):
        HardOptions(samples=0, expected_share=1.5, entropy=-1.0)
