"""Teacher forcing batches, their mask, and the loss."""

from __future__ import annotations

import numpy as np
import torch

from saccade.preprocessing import PreprocessSpec
from saccade.vocabulary import Vocabulary
from training.concepts import ConceptHead, concept_targets
from training.data import Split, batch_count, batches, draw_pixels, generate_split
from training.losses import caption_loss

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
            batch.pixels[:, 0, 0, 0].tolist()
            for batch in batches(split, VOCABULARY, np.random.default_rng(seed), images=4, captions_per_image=1)
        ]
        for seed in (1, 1, 2)
    ]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    assert batch_count(split, 4) == 3
    assert sorted(image for batch in epochs[0] for image in batch) == list(range(10))
    assert epochs[0] == epochs[1] != epochs[2]


def test_padding_counts_for_nothing_in_the_loss() -> None:
    """Alphas at padded places may be anything; the penalty is that of the real steps."""
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    alphas = torch.rand(1, 2, 3, 4)
    logits, targets = torch.randn(3, 5), torch.tensor([1, 2, 3])
    likelihood, loss = caption_loss(logits, targets, alphas, mask, doubly_stochastic=2.0)
    expected = -logits.log_softmax(-1)[range(3), targets].mean()
    first, second = ((1 - alphas[0, 0, :2].sum(0)) ** 2).sum(), ((1 - alphas[0, 1, 0]) ** 2).sum()
    torch.testing.assert_close(likelihood, expected)
    torch.testing.assert_close(loss, expected + 2.0 * (first + second) / 3)
    changed = alphas.clone()
    changed[~mask] = 99.0
    torch.testing.assert_close(caption_loss(logits, targets, changed, mask, doubly_stochastic=2.0)[1], loss)


def test_generated_splits_are_the_scenes_of_their_seeds() -> None:
    """Drawn by several processes, preprocessed like files, in the order of the seeds."""
    split = generate_split(range(5, 8), SPEC, render_size=64)
    for pixels, seed in zip(split.pixels, range(5, 8), strict=True):
        np.testing.assert_array_equal(pixels, draw_pixels(seed, SPEC, render_size=64))
    assert [len(references) for references in split.captions] == [5, 5, 5]
    assert all(2 <= len(objects) <= 4 for objects in split.objects)


def test_concept_targets_are_the_share_of_references_with_the_word() -> None:
    targets = concept_targets(toy_split(), VOCABULARY)
    ids = {word: VOCABULARY.encode([word])[0] for word in "abc"}
    assert targets[0, ids["a"]] == 0.5
    assert targets[0, ids["b"]] == 1.0
    assert targets[1, ids["c"]] == 0.5
    assert targets[:, :4].sum() == 0


def test_concept_logits_add_up_the_odds_of_the_places() -> None:
    head = ConceptHead(3, 2)
    values = torch.randn(1, 4, 3)
    odds = head.words(values).exp().sum(dim=1)
    torch.testing.assert_close(head(values).exp(), odds)
