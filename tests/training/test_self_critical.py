"""The gradient estimator of self-critical training against the expected reward, by enumeration of every caption."""

from dataclasses import replace
from itertools import product
from math import prod
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.vocabulary import Vocabulary
from tests.toys import toy_vocabulary
from training.annotations import Annotations
from training.metrics import cider_d
from training.model import Decoder, DecoderOptions
from training.sampling import drawn_captions
from training.scene_objects import SceneObject
from training.self_critical import SelfCritical, SelfCriticalOptions

VOCABULARY = toy_vocabulary(6)  # <pad> <start> <end> <unk> a b
START, END, WORDS = VOCABULARY.start, VOCABULARY.end, len(VOCABULARY)
MAX_LENGTH = 2
REFERENCES: list[list[tuple[str, ...]]] = [[("a", "b"), ("a",)], [("b", "c")], [("c",)]]
CAPTIONS = [(END, END)] + [pair for pair in product(range(WORDS), repeat=MAX_LENGTH) if pair[0] != END]
"""Every caption of the first image that can be drawn; one that ends early is padded with `<end>`."""

Baseline = Literal["others", "greedy"]


@pytest.fixture
def decoder() -> Decoder:
    """With dropout that would change its predictions much."""
    torch.manual_seed(0)
    options = DecoderOptions(attention_width=4, embedding_width=3, hidden_width=4, dropout=0.8)
    made = Decoder(3, WORDS, options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made


@pytest.fixture
def annotations(decoder: Decoder) -> Annotations:
    torch.manual_seed(1)
    return decoder.annotate(2 * torch.randn(1, 3, 3, dtype=torch.float64))


def self_critical(baseline: Baseline, samples: int) -> SelfCritical:
    options = SelfCriticalOptions(epochs=1, learning_rate=1.0, samples=samples, baseline=baseline)
    return SelfCritical(options, REFERENCES, VOCABULARY, max_length=MAX_LENGTH)


def log_prob(decoder: Decoder, annotations: Annotations, caption: tuple[int, ...]) -> Tensor:
    """log p(y | a) without dropout, word by word."""
    decoder.eval()
    state, before, total = decoder.initial_rows(annotations, 1), START, torch.zeros((), dtype=torch.float64)
    for word in caption:
        logits, _, state = decoder.step(torch.tensor([[before]]), state, annotations)
        total = total + logits.log_softmax(-1)[0, 0, word]
        before = word
        if word == END:
            break
    decoder.train()
    return total


def reward(caption: tuple[int, ...]) -> float:
    """CIDEr-D with `<end>` as a word, of the first image."""
    words = VOCABULARY.decode(caption if END not in caption else caption[: caption.index(END) + 1])
    references = [[(*reference, "<end>") for reference in image] for image in REFERENCES]
    return float(cider_d([words, (), ()], references).per_image[0])


def gradient(value: Tensor, decoder: Decoder) -> Tensor:
    found = torch.autograd.grad(value, list(decoder.parameters()), retain_graph=True, allow_unused=True)
    parts = zip(decoder.parameters(), found, strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in parts])


def exact_gradient(decoder: Decoder, annotations: Annotations) -> Tensor:
    """Of J = sum_y p(y | a) r(y)."""
    parts = [log_prob(decoder, annotations, caption).exp() * reward(caption) for caption in CAPTIONS]
    return gradient(torch.stack(parts).sum(), decoder)


def test_the_captions_have_probabilities_that_sum_to_one_and_rewards_that_differ(
    decoder: Decoder, annotations: Annotations
) -> None:
    total = sum(log_prob(decoder, annotations, caption).exp() for caption in CAPTIONS)
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))
    assert len({round(reward(caption), 3) for caption in CAPTIONS}) > 4


@pytest.mark.parametrize(("baseline", "samples", "rows"), [("others", 2, 2), ("greedy", 1, 1), ("greedy", 2, 2)])
def test_the_expected_estimate_is_the_gradient_of_the_expected_reward(
    decoder: Decoder,
    annotations: Annotations,
    monkeypatch: pytest.MonkeyPatch,
    baseline: Baseline,
    samples: int,
    rows: int,
) -> None:
    """Every draw weighted by its probability: no sampling error, so the expectation is exact."""
    probabilities = [log_prob(decoder, annotations, caption).exp().item() for caption in CAPTIONS]
    greedy = [CAPTIONS[int(np.argmax(probabilities))]] if baseline == "greedy" else []
    trained = self_critical(baseline, samples)
    expected = torch.zeros(sum(parameter.numel() for parameter in decoder.parameters()), dtype=torch.float64)
    for chosen in product(range(len(CAPTIONS)), repeat=rows):
        if list(chosen) != sorted(chosen):
            continue  # the order of the rows does not matter
        orders = 1 if len(set(chosen)) == 1 else rows
        words = torch.tensor([greedy + [CAPTIONS[index] for index in chosen]])
        monkeypatch.setattr("training.self_critical.drawn_captions", lambda *_, words=words, **__: words)
        _, loss = trained.losses(decoder, annotations, torch.tensor([0]))
        expected -= orders * prod(probabilities[index] for index in chosen) * gradient(loss, decoder)
    exact = exact_gradient(decoder, annotations)
    torch.testing.assert_close(expected, exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_estimates_from_drawn_captions_average_to_the_gradient(
    decoder: Decoder, annotations: Annotations, baseline: Baseline
) -> None:
    torch.manual_seed(2)
    loss = self_critical(baseline, 30_000).losses(decoder, annotations, torch.tensor([0]))[1]
    exact = exact_gradient(decoder, annotations)
    assert (-gradient(loss, decoder) - exact).norm() < 0.05 * exact.norm()
    assert decoder.training


def test_captions_are_drawn_with_their_probabilities(decoder: Decoder, annotations: Annotations) -> None:
    torch.manual_seed(3)
    count = 30_000
    decoder.eval()
    drawn = drawn_captions(
        decoder, annotations, rows=count + 2, greedy_rows=2, start=START, end=END, max_length=MAX_LENGTH
    )
    found = [tuple(words) for words in drawn[0].tolist()]
    for caption in CAPTIONS:
        probability = log_prob(decoder, annotations, caption).exp().item()
        deviation = (probability * (1 - probability) / count) ** 0.5
        assert abs(found[2:].count(caption) / count - probability) < 4 * deviation, caption


def test_rows_that_are_greedy_say_the_likeliest_words(decoder: Decoder, annotations: Annotations) -> None:
    decoder.eval()
    with torch.no_grad():
        decoder.output.bias[END] -= 3
    found = drawn_captions(decoder, annotations, rows=5, greedy_rows=2, start=START, end=END, max_length=4)
    state, said = decoder.initial_rows(annotations, 1), torch.tensor([[START]])
    for place in range(4):
        logits, _, state = decoder.step(said, state, annotations)
        said = logits.argmax(dim=-1)
        assert (found[0, :2, place] == said).all()
        assert said.item() != END


def test_the_mean_reward_rises() -> None:
    """Four images whose references differ; nothing but rewards tells the decoder which belong to which."""
    torch.manual_seed(4)
    vocabulary = toy_vocabulary(8)
    references = [[tuple(words)] for words in ("aab", "bc", "cda", "d")]
    options = SelfCriticalOptions(epochs=1, learning_rate=1.0, samples=8)
    trained = SelfCritical(options, references, vocabulary, max_length=5)
    decoder = Decoder(6, 8, DecoderOptions(attention_width=8, embedding_width=8, hidden_width=16, dropout=0.5))
    values = torch.randn(4, 3, 6)
    optimiser = torch.optim.Adam(decoder.parameters(), lr=0.01)
    rewards = []
    for _ in range(150):
        reward, loss = trained.losses(decoder, decoder.annotate(values), torch.arange(4))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        rewards.append(float(reward))
    assert np.mean(rewards[-10:]) > 5 > 1 > np.mean(rewards[:10])


def test_an_unfinished_caption_is_rewarded_less_than_the_same_one_finished() -> None:
    trained = self_critical("others", 2)
    words = torch.tensor([[[4, 5, END, END], [4, 5, 4, 5]], [[4, 5, END, END], [3, 3, 3, 3]]])
    rewards = trained._rewards(words, torch.tensor([0, 1]))
    assert rewards[0, 0] > rewards[0, 1] > rewards[1, 1] == 0
    assert rewards[0, 0] > rewards[1, 0] > 0  # each image has its own references


def test_what_is_said_of_a_scene_is_rewarded_if_it_is_right() -> None:
    """A relation counts from a probability of `confidence` on, an object from even odds if it is tied to another."""
    vocabulary = Vocabulary.from_captions([("a", "red", "star", "left", "of", "blue", "ring", "the")], min_count=1)
    box, other = (0.1, 0.4, 0.3, 0.6), (0.6, 0.4, 0.8, 0.6)
    objects = [
        SceneObject(colour="red", shape="star", size="small", texture="plain", box=box, whole=box),
        SceneObject(colour="blue", shape="ring", size="small", texture="plain", box=other, whole=other),
    ]
    options = SelfCriticalOptions(epochs=1, learning_rate=1.0, samples=2, objects=2.0, relations=3.0, confidence=0.75)
    trained = SelfCritical(options, [[("the",)]], vocabulary, max_length=20, objects=[objects])
    said = [
        "a red star left of a blue ring",
        "a blue ring left of a red star",
        "a red star",
        "a red star left of a red star",
    ]
    longest = max(len(caption.split()) for caption in said) + 1
    rows = [[*vocabulary.encode(tuple(caption.split()))] for caption in said]
    words = torch.tensor([[row + [vocabulary.end] * (longest - len(row)) for row in rows]])
    rewards = trained._rewards(words, torch.tensor([0]))[0]
    without = SelfCritical(
        replace(options, objects=0.0, relations=0.0), [[("the",)]], vocabulary, max_length=20
    )._rewards(words, torch.tensor([0]))[0]
    assert (rewards - without).tolist() == pytest.approx([2 + 3 * 0.25, 2 - 3 * 0.75, 1 - 2, -3 * 0.75])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"objects": -1.0}, "objects and relations must be 0 or more"),
        ({"confidence": 1.5}, r"confidence must be in \[0, 1\]"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"samples": 0, "baseline": "greedy"}, "samples must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SelfCriticalOptions(**{"epochs": 1, "learning_rate": 1e-3} | changed)
