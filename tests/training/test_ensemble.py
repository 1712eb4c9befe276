"""Several captioners that write one caption, against the probabilities of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.errors import ConfigError
from saccade.glimpses import DecodeMode
from saccade.search import SearchOptions
from tests.bundles import patchworks
from tests.toys import toy_vocabulary
from training.decoding import TorchDecoder
from training.encoders import EncoderOptions
from training.ensemble import Ensemble
from training.model import Captioner, DecoderOptions, build_captioner

VOCABULARY = toy_vocabulary(7)
START, END = VOCABULARY.start, VOCABULARY.end
IMAGES = patchworks(3, seed=5)


def captioner(seed: int, grid: int = 0, **options: object) -> Captioner:
    """A captioner of some conviction: what two of them say differs."""
    torch.manual_seed(seed)
    decoder = DecoderOptions(attention_width=7, embedding_width=6, hidden_width=5, **options)  # type: ignore[arg-type]
    made = build_captioner(
        EncoderOptions(name="compact", grid=grid), decoder, words=7, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
    )
    with torch.no_grad():
        made.decoder.embedding.weight *= 10
        made.decoder.output.weight *= 6
    return made.eval()


def forced(one: Captioner, words: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Probabilities (B, T, V) after `<start>` and each of the words, and the alphas (B, T, L)."""
    annotations = one.annotate(torch.from_numpy(IMAGES))
    tokens = torch.tensor([START, *words]).expand(len(IMAGES), 1, -1)
    result = one.decoder.teacher_forced(tokens, torch.ones_like(tokens, dtype=torch.bool), annotations)
    return result.logits.softmax(-1).view(len(IMAGES), len(words) + 1, -1), result.alphas[:, 0]


@torch.inference_mode()
def test_every_caption_scores_the_mean_of_the_members_probabilities_word_by_word() -> None:
    """All captions of at most two steps, with members that see different places."""
    members = [captioner(1), captioner(2, grid=6, query="hidden+word"), captioner(3, attention="none")]
    options = SearchOptions(beam=49, n_best=49, max_length=2)
    found = Ensemble(members, VOCABULARY).search(IMAGES, options, with_alphas=True)
    for first in range(len(VOCABULARY)):
        probabilities, alphas = zip(*(forced(member, (first,)) for member in members), strict=True)
        mean = torch.stack(probabilities).mean(dim=0).log()  # (B, 2, V)
        for image, hypotheses in enumerate(found):
            ours = {hypothesis.tokens: hypothesis for hypothesis in hypotheses}
            assert len(ours) == len(hypotheses) == 1 + 6 + 36
            if first == END:
                assert ours[()].log_prob == pytest.approx(mean[image, 0, END].item(), abs=1e-5)
                continue
            for second in range(len(VOCABULARY)):
                total = mean[image, 0, first] + mean[image, 1, second]
                words = (first,) if second == END else (first, second)
                assert ours[words].log_prob == pytest.approx(total.item(), abs=1e-5)
                seen = ours[words].alphas
                assert seen is not None
                np.testing.assert_allclose(seen, alphas[0][image, : len(words)], atol=1e-6)


@pytest.mark.parametrize("mode", ["expected", "argmax", "sample"])
def test_two_of_the_same_say_what_one_says(mode: DecodeMode) -> None:
    one = captioner(4, attention="hard")
    options = SearchOptions(beam=3, max_length=6, decode_mode=mode, seed=3)
    alone = TorchDecoder(one, VOCABULARY).search(IMAGES, options)
    together = Ensemble([one, one], VOCABULARY).search(IMAGES, options)
    assert [best[0].tokens for best in together] == [best[0].tokens for best in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours[0].log_prob == pytest.approx(theirs[0].log_prob, abs=1e-4)


def test_a_decode_mode_must_be_known_to_every_member() -> None:
    members = [captioner(4, attention="hard"), captioner(1)]
    with pytest.raises(ConfigError, match='"argmax" is for hard attention; this model has "soft"'):
        Ensemble(members, VOCABULARY).search(IMAGES, SearchOptions(decode_mode="argmax"))
