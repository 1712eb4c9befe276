"""Teacher forcing batches, their mask, and the loss."""

from __future__ import annotations

import numpy as np
import torch

from saccade.preprocessing import PreprocessSpec
from saccade.vocabulary import Vocabulary
from training.concepts import Concepts, concept_targets
from training.config import ConceptOptions
from training.data import Split, batch_count, batches, draw_pixels, generate_split, repeated
from training.losses import doubly_stochastic_penalty

SPEC = PreprocessSpec(size=32, geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CAPTIONS = ((("a", "b"), ("b",)), (("a", "b", "b"), ("c", "a")))
VOCABULARY = Vocabulary.from_captions((w for refs in CAPTIONS for w in refs), min_count=1)


def toy_split() -> Split:
    return Split(np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), CAPTIONS)


def test_a_batch_holds_each_word_as_the_target_of_the_words_before_it() -> None:
    (batch,) = batches(toy_split(), VOCABULARY, np.random.default_rng(0), images=2, captions_per_image=2)
    spelled = set()
    targets = iter(batch.targets.tolist())
    for image in range(2):
        for row in range(2):
            inputs = batch.tokens[image, row][batch.mask[image, row]].tolist()
            following = [next(targets) for _ in inputs]
            assert inputs[0] == VOCABULARY.start
            assert following[-1] == VOCABULARY.end
            assert inputs[1:] == following[:-1]
            spelled.add(VOCABULARY.decode(following[:-1]))
            assert set(batch.tokens[image, row][~batch.mask[image, row]].tolist()) <= {VOCABULARY.pad}
    assert spelled == {words for references in CAPTIONS for words in references}


def test_an_epoch_has_every_image_once_and_depends_on_the_seed_alone() -> None:
    split = Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=3), CAPTIONS * 5)
    epochs = [
        [
            batch.images[:, 0, 0, 0].tolist()
            for batch in batches(split, VOCABULARY, np.random.default_rng(seed), images=4, captions_per_image=1)
        ]
        for seed in (1, 1, 2)
    ]
    assert sorted(len(batch) for batch in epochs[0]) == [2, 4, 4]
    assert batch_count(split, 4) == 3
    assert sorted(image for batch in epochs[0] for image in batch) == list(range(10))
    assert epochs[0] == epochs[1] != epochs[2]


def test_captions_of_about_one_length_share_a_batch() -> None:
    lengths = np.random.default_rng(0).permutation(64) % 16 + 1
    captions = [(("a",) * int(length),) for length in lengths]
    split = Split(np.zeros((64, 1, 1, 3), np.uint8), captions)
    drawn = list(batches(split, VOCABULARY, np.random.default_rng(0), images=4, captions_per_image=1))
    assert all(batch.mask.all() for batch in drawn)  # four captions of every length: no padding at all
    assert [batch.tokens.shape[2] for batch in drawn] != sorted(batch.tokens.shape[2] for batch in drawn)


def test_the_captions_of_an_image_stand_from_the_longest_to_the_shortest() -> None:
    references = tuple(("a",) * length for length in (2, 5, 1, 4, 3))
    split = Split(np.zeros((8, 1, 1, 3), np.uint8), [references] * 8)
    lengths = set()
    for batch in batches(split, VOCABULARY, np.random.default_rng(0), images=2, captions_per_image=3):
        for rows in batch.mask.sum(dim=-1).tolist():
            assert rows == sorted(rows, reverse=True)
            lengths.add(tuple(rows))
    assert len(lengths) > 1  # which of them are drawn is left to chance


def test_padding_counts_for_nothing_in_the_penalty() -> None:
    """Alphas at padded places may be anything; the penalty is that of the real steps."""
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    alphas = torch.rand(1, 2, 3, 4)
    first, second = ((1 - alphas[0, 0, :2].sum(0)) ** 2).sum(), ((1 - alphas[0, 1, 0]) ** 2).sum()
    penalty = doubly_stochastic_penalty(alphas, mask)
    torch.testing.assert_close(penalty, (first + second) / 3)
    changed = alphas.clone()
    changed[~mask] = 99.0
    torch.testing.assert_close(doubly_stochastic_penalty(changed, mask), penalty)


def test_repeated_captions_stand_side_by_side() -> None:
    batch = next(batches(toy_split(), VOCABULARY, np.random.default_rng(0), images=2, captions_per_image=2))
    twice = repeated(batch, 2)
    for name in ("tokens", "mask"):
        torch.testing.assert_close(getattr(twice, name)[:, ::2], getattr(batch, name))
        torch.testing.assert_close(getattr(twice, name)[:, 1::2], getattr(batch, name))
    following = torch.zeros_like(twice.tokens).masked_scatter(twice.mask, twice.targets)
    once = torch.zeros_like(batch.tokens).masked_scatter(batch.mask, batch.targets)
    torch.testing.assert_close(following[:, 1::2], once)


def test_generated_splits_are_the_scenes_of_their_seeds() -> None:
    """Drawn by several processes, preprocessed like files, in the order of the seeds."""
    split = generate_split(range(5, 8), SPEC, render_size=64)
    for pixels, seed in zip(split.images[:], range(5, 8), strict=True):
        np.testing.assert_array_equal(pixels, draw_pixels(seed, SPEC, render_size=64))
    assert [len(references) for references in split.captions] == [5, 5, 5]
    assert all(2 <= len(objects) <= 4 for objects in split.objects)


def test_concept_targets_are_the_share_of_references_with_the_word() -> None:
    concepts, targets = concept_targets(toy_split(), VOCABULARY, ConceptOptions(least_share=0.0))
    shares = dict(zip(concepts, targets.T.tolist(), strict=True))
    a, b, c = (tuple(VOCABULARY.encode([word])) for word in "abc")
    assert (shares[a][0], shares[b][0], shares[c][1]) == (0.5, 1.0, 0.5)
    assert set(concepts) == {a, b, c}


def test_concepts_may_be_pairs_of_near_words_in_their_order() -> None:
    captions = [(("a", "b", "c"), ("a", "x", "c")), (("b",), ("b",))]  # x is unknown
    split = Split(np.zeros((2, 1, 1, 3), np.uint8), captions)
    concepts, targets = concept_targets(split, VOCABULARY, ConceptOptions(pairs_within=2, least_share=0.0))
    a, b, c = VOCABULARY.encode("abc")
    shares = dict(zip(concepts, targets[0].tolist(), strict=True))
    assert shares == {(a,): 1.0, (b,): 0.5, (c,): 1.0, (a, b): 0.5, (b, c): 0.5, (a, c): 1.0}
    frequent, _ = concept_targets(split, VOCABULARY, ConceptOptions(pairs_within=2, least_share=0.6))
    assert frequent == [(b,)]  # of both images


def test_concept_logits_add_up_the_odds_of_the_places() -> None:
    concepts = Concepts(3, toy_split(), VOCABULARY, ConceptOptions(least_share=0.0))
    values = torch.randn(1, 4, 3)
    odds = concepts.head(values).exp().sum(dim=1)
    torch.testing.assert_close(concepts(values).exp(), odds)


def test_the_loss_of_concepts_is_of_the_images_that_are_named() -> None:
    split = toy_split()
    concepts = Concepts(3, split, VOCABULARY, ConceptOptions(least_share=0.0))
    _, targets = concept_targets(split, VOCABULARY, ConceptOptions(least_share=0.0))
    values = torch.randn(2, 4, 3)
    logits = concepts(values)
    probabilities, wanted = logits.sigmoid(), targets[[1, 0]]
    expected = -(wanted * probabilities.log() + (1 - wanted) * (1 - probabilities).log()).sum(dim=1).mean()
    torch.testing.assert_close(concepts.loss(values, torch.tensor([1, 0])), expected)
