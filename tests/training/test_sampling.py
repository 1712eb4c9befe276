"""Words of the decoder's own, in the place of a reference's."""

import pytest
import torch
from torch import Tensor

from training.annotations import Annotations
from training.model import Decoder, DecoderOptions
from training.sampling import with_own_words

WORDS, ROWS = 5, 20_000
START = 1


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


def captions(rows: int) -> Tensor:
    return torch.tensor([START, 3, 4]).expand(1, rows, -1)


def predictions(decoder: Decoder, annotations: Annotations, tokens: list[int]) -> Tensor:
    """Probabilities (T, V) of the next word after each of the tokens, without dropout."""
    given = torch.tensor([[tokens]])
    decoder.eval()
    logits = decoder.teacher_forced(given, torch.ones_like(given, dtype=torch.bool), annotations).logits
    decoder.train()
    return logits.softmax(dim=-1).detach()


def assert_drawn_from(probabilities: Tensor, words: Tensor) -> None:
    counts = torch.bincount(words, minlength=WORDS)
    deviations = (probabilities * (1 - probabilities) / len(words)).sqrt()
    assert ((counts / len(words) - probabilities).abs() < 4 * deviations).all()


def test_without_a_share_the_references_are_fed(decoder: Decoder, annotations: Annotations) -> None:
    assert torch.equal(with_own_words(decoder, captions(7), annotations, 0.0), captions(7))


def test_words_are_drawn_as_the_decoder_predicts_them_after_what_was_fed(
    decoder: Decoder, annotations: Annotations
) -> None:
    fed = with_own_words(decoder, captions(ROWS), annotations, 1.0)[0]
    assert decoder.training
    assert (fed[:, 0] == START).all()
    assert_drawn_from(predictions(decoder, annotations, [START])[0], fed[:, 1])
    for word in range(WORDS):
        assert_drawn_from(predictions(decoder, annotations, [START, word])[1], fed[fed[:, 1] == word, 2])


def test_a_share_of_the_words_is_replaced(decoder: Decoder, annotations: Annotations) -> None:
    with torch.no_grad():
        decoder.output.bias[0] += 1e3  # a word that is in no reference
    fed = with_own_words(decoder, captions(ROWS), annotations, 0.3)[0]
    own = (fed[:, 1:] == 0).double().mean(dim=0)
    assert ((own - 0.3).abs() < 4 * (0.3 * 0.7 / ROWS) ** 0.5).all()
    assert torch.equal(fed[:, 1:][fed[:, 1:] != 0], captions(ROWS)[0, :, 1:][fed[:, 1:] != 0])


def test_weights_learn_under_autocast_after_words_were_drawn(decoder: Decoder) -> None:
    """Older versions of PyTorch reuse the casts of the weights that were made without gradients."""
    decoder.float()
    tokens = captions(2)
    with torch.autocast("cpu", torch.bfloat16):
        annotations = decoder.annotate(torch.randn(1, 3, 3))
        fed = with_own_words(decoder, tokens, annotations, 1.0)
        logits = decoder.teacher_forced(fed, torch.ones_like(fed, dtype=torch.bool), annotations).logits
    torch.autograd.backward(logits.logsumexp(dim=-1).sum())
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
