import functools
import gzip
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.errors import DataError
from training.metrics import CiderD, CorpusScore, bleu, caption_scores, cider_d, rouge_l

SYSTEMS = ["human_1", *(f"{kind}_{i}" for kind in ("init", "merge", "par", "pre") for i in (1, 2, 3))]
FIXTURE_NAMES = {
    "BLEU-1": "Bleu_1",
    "BLEU-2": "Bleu_2",
    "BLEU-3": "Bleu_3",
    "BLEU-4": "Bleu_4",
    "ROUGE-L": "ROUGE_L",
    "CIDEr-D": "CIDEr",
}


class Published:
    """Captions of 13 systems for the Flickr8k test images, with their scores by pycocoevalcap 1.2."""

    def __init__(self, path: Path) -> None:
        fixture: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        self.references = [[re.findall("[a-z0-9]+", text.lower()) for text in texts] for texts in fixture["references"]]
        self.systems: dict[str, dict[str, Any]] = {system["name"]: system for system in fixture["systems"]}
        self.per_image: dict[str, Any] = fixture["per_image"]

    def hypotheses(self, system: str) -> list[list[str]]:
        return [caption.split() for caption in self.systems[system]["captions"]]


load_published = functools.cache(Published)


@pytest.fixture
def published(shared: Path) -> Published:
    return load_published(shared / "data/metric_fixtures/where_image2_flickr8k.json.gz")


def words(*captions: str) -> list[list[str]]:
    return [caption.split() for caption in captions]


@pytest.mark.parametrize("system", SYSTEMS)
def test_corpus_scores_agree_with_pycocoevalcap_and_with_the_published_ones(published: Published, system: str) -> None:
    scores = caption_scores(published.hypotheses(system), published.references)
    assert list(scores) == list(FIXTURE_NAMES)
    for name, score in scores.items():
        expected = published.systems[system]
        tight, loose = (1e-9, 1e-4) if name.startswith("BLEU") else (1e-6, 1e-3)
        assert score == pytest.approx(expected["pycocoevalcap_1_2"][FIXTURE_NAMES[name]], rel=0, abs=tight)
        assert score == pytest.approx(expected["published"][FIXTURE_NAMES[name]], rel=0, abs=loose)


@pytest.mark.parametrize(("metric", "name"), [(rouge_l, "ROUGE_L"), (cider_d, "CIDEr")])
def test_every_image_scores_as_pycocoevalcap_scores_it(
    published: Published, metric: Callable[..., CorpusScore], name: str
) -> None:
    result = metric(published.hypotheses(published.per_image["system"]), published.references)
    expected = np.array(published.per_image[name])  # rounded to six digits
    np.testing.assert_allclose(result.per_image, expected, rtol=0, atol=5.001e-7)
    assert result.score == pytest.approx(expected.mean(), abs=5e-7)


def test_a_thousand_images_are_scored_in_under_two_seconds() -> None:
    """The best of five: what other processes take away is not ours."""
    generator = np.random.default_rng(0)
    captions = [[f"w{i}" for i in ids] for ids in np.minimum(generator.zipf(1.3, (6000, 20)), 3000)]
    references = [captions[i : i + 5] for i in range(1000, 6000, 5)]

    def seconds() -> float:
        began = time.process_time()
        caption_scores(captions[:1000], references)
        return time.process_time() - began

    assert any(seconds() < 2 for _ in range(5))


def test_bleu_of_two_images_by_hand() -> None:
    """Counts are summed before they are divided: 4 of 7 words, 2 of 5 pairs; 7 words written where 8 were due.

    "the" is right once though written twice; the pairs are "the dog" and "a cat".
    """
    hypotheses = words("the the dog", "a cat on snow")
    references = [words("the dog runs home"), words("a cat sits here")]
    penalty = math.exp(1 - 8 / 7)
    one, two, three, four = bleu(hypotheses, references)
    assert one == pytest.approx(penalty * 4 / 7)
    assert two == pytest.approx(penalty * math.sqrt(4 / 7 * 2 / 5))
    # no triple and no quadruple matches: only coco-caption's epsilon is left
    assert three == pytest.approx(penalty * (4 / 7 * 2 / 5 * 1e-15 / 3) ** (1 / 3))
    assert four == pytest.approx(penalty * (4 / 7 * 2 / 5 * 1e-15 / 3 * 1e-15 / 1) ** (1 / 4))


def test_bleu_without_brevity_penalty_is_precision_alone() -> None:
    """The captions of the test above, one word shorter than due: the same counts, and nothing taken off for it."""
    hypotheses = words("the the dog", "a cat on snow")
    references = [words("the dog runs home"), words("a cat sits here")]
    one, two, *_ = bleu(hypotheses, references, brevity_penalty=False)
    assert one == pytest.approx(4 / 7)
    assert two == pytest.approx(math.sqrt(4 / 7 * 2 / 5))


def test_bleu_clips_a_word_at_the_reference_that_has_it_most() -> None:
    one, *_ = bleu(words("the the the the"), [words("the the a b", "the c d e")])
    assert one == pytest.approx(2 / 4)


def test_bleu_takes_the_shorter_of_two_equally_close_references() -> None:
    """Four words lie between three and five: with three due there is no penalty, with five there would be."""
    for references in (words("a b c", "a b c d e"), words("a b c d e", "a b c")):
        assert bleu(words("a b c d"), [references]) == pytest.approx((1, 1, 1, 1), abs=1e-8)


def test_rouge_l_by_hand() -> None:
    """The common subsequence "a c d" is 3 of 4 written words and 3 of 5 in the reference."""
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(words("a c x d"), [words("a b c d e")]).score == pytest.approx(expected)


def test_rouge_l_takes_precision_and_recall_from_the_best_reference_for_each() -> None:
    precision, recall = 3 / 4, 1.0  # of the long reference; of the short one
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(words("a b c d"), [words("a b c x y z", "d")]).score == pytest.approx(expected)


def test_rouge_l_agrees_with_the_textbook_table_on_random_captions() -> None:
    def common_subsequence_length(a: list[str], b: list[str]) -> int:
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, left in enumerate(a):
            for j, right in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if left == right else max(table[i, j + 1], table[i + 1, j])
        return int(table[-1, -1])

    generator = np.random.default_rng(1)
    for _ in range(200):
        a, b = ([*"abcde"[: generator.integers(1, 6)] * 3] for _ in range(2))
        generator.shuffle(a)
        generator.shuffle(b)
        common = common_subsequence_length(a, b)
        precision, recall = common / len(a), common / len(b)
        expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
        assert rouge_l([a], [[b]]).score == pytest.approx(expected)


def test_cider_d_by_hand() -> None:
    """Two images, so a word of one of them weighs log 2 and a word of both nothing.

    Image 0: words a, dog of weight log 2; its hypothesis "dog" has cosine 1/sqrt(2) for n = 1 and no longer n-gram; its
    length is off by one. Image 1: "a cat cat" writes cat twice where the reference has it once: the product is clipped.
    """
    hypotheses, references = words("dog", "a cat cat"), [words("big dog"), words("a cat")]
    result = cider_d(hypotheses, references)
    damping = math.exp(-1 / 72)
    first = 10 / 4 * damping / math.sqrt(2)
    # n = 1: (1, 2) against (1, 1) clipped to (1, 1); n = 2: "a cat", "cat cat" against "a cat"
    second = 10 / 4 * damping * (2 / (math.sqrt(5) * math.sqrt(2)) + 1 / math.sqrt(2))
    np.testing.assert_allclose(result.per_image, [first, second], rtol=1e-12)
    assert result.score == pytest.approx((first + second) / 2)


def test_cider_d_ignores_words_that_every_image_has_and_averages_over_references() -> None:
    hypotheses = words("a dog", "a")
    references = [words("a dog", "a bird"), words("a cat")]
    result = cider_d(hypotheses, references)
    # "a" weighs nothing: against "a dog" the cosine is 1 for n = 1 and 2, against "a bird" it is 0
    np.testing.assert_allclose(result.per_image, [10 / 4 * (2 + 0) / 2, 0], rtol=1e-12)


def test_a_perfect_caption_of_four_words_has_a_cider_d_of_ten() -> None:
    references = [words("a b c d"), words("e f g h")]
    np.testing.assert_allclose(cider_d(words("a b c d", "e f g h"), references).per_image, [10, 10], rtol=1e-12)


def test_cider_d_of_one_image_is_zero_because_no_word_tells_it_from_others() -> None:
    assert cider_d(words("a dog runs fast"), [words("a dog runs fast")]).score == 0


def test_cider_d_keeps_its_references_and_scores_any_choice_of_their_images() -> None:
    references = [words("a dog runs", "the dog ran"), words("a cat"), words("two birds fly off")]
    hypotheses = words("a dog ran", "the cat", "birds fly off")
    scorer = CiderD(references)
    whole = scorer.score(hypotheses)
    np.testing.assert_array_equal(whole.per_image, cider_d(hypotheses, references).per_image)
    chosen = scorer.score([hypotheses[2], hypotheses[0], hypotheses[2]], images=[2, 0, 2])
    np.testing.assert_array_equal(chosen.per_image, whole.per_image[[2, 0, 2]])
    assert scorer.score(hypotheses).score == whole.score


def test_an_unknown_word_scores_as_a_word_that_no_reference_has() -> None:
    references = [words("a <unk> runs on <unk>", "<unk> <unk>"), words("the <unk> sits")]
    unknown = words("a <unk> runs <unk>", "<unk> cat sits")
    wrong = words("a zebra runs zebra", "zebra cat sits")
    assert caption_scores(unknown, references) == caption_scores(wrong, references)


def test_nothing_but_unknown_words_scores_nothing() -> None:
    references = [words("<unk> <unk> <unk> <unk>"), words("a cat")]
    scores = caption_scores(words("<unk> <unk> <unk> <unk>", "<unk> <unk>"), references)
    assert scores == pytest.approx(dict.fromkeys(FIXTURE_NAMES, 0), abs=1e-12)


def test_the_unknown_word_counts_as_length() -> None:
    """With it the caption is as long as its reference and escapes the brevity penalty; one word in four is wrong."""
    one, *_ = bleu(words("a dog runs <unk>"), [words("a dog runs home")])
    assert one == pytest.approx(3 / 4)


def test_the_unknown_word_can_have_another_name() -> None:
    assert rouge_l(words("UNK"), [words("UNK")]).score == 1
    assert rouge_l(words("UNK"), [words("UNK")], unknown="UNK").score == 0


def test_an_empty_hypothesis_scores_zero_and_costs_bleu_its_length() -> None:
    references = [words("a dog runs fast"), words("the cat sits here")]
    hypotheses = words("", "the cat sits here")
    assert rouge_l(hypotheses, references).per_image.tolist() == [0, 1]
    np.testing.assert_allclose(cider_d(hypotheses, references).per_image, [0, 10], rtol=1e-12)
    assert bleu(hypotheses, references) == pytest.approx([math.exp(1 - 8 / 4)] * 4)


def test_nothing_written_at_all_scores_zero() -> None:
    scores = caption_scores(words("", ""), [words("a dog"), words("a cat")])
    assert scores == dict.fromkeys(FIXTURE_NAMES, 0)


def test_an_empty_reference_is_a_caption_that_nothing_matches() -> None:
    hypotheses, references = words("a b c d", "x"), [words("", "a b c d"), words("")]
    assert rouge_l(hypotheses, references).per_image.tolist() == [1, 0]
    np.testing.assert_allclose(cider_d(hypotheses, references).per_image, [5, 0], rtol=1e-12)
    assert bleu(hypotheses, references)[0] == pytest.approx(4 / 5)


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider_d, caption_scores])
@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "corpus is empty"),
        (words("a"), [words("a"), words("b")], "1 hypotheses for 2 images"),
        (words("a", "b"), [words("a")], "2 hypotheses for 1 images"),
        (words("a", "b"), [words("a"), []], "image 1 has no references"),
        (["a dog"], [words("a dog")], "hypothesis 0 is the string 'a dog'"),
        (words("a dog"), [["a dog"]], "image 0, reference 0 is the string 'a dog'"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    metric: Callable[..., object], hypotheses: list[Any], references: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        metric(hypotheses, references)


def test_cider_d_refuses_a_batch_that_does_not_name_one_image_for_each_caption() -> None:
    scorer = CiderD([words("a dog"), words("a cat")])
    with pytest.raises(DataError, match="2 hypotheses for 1 images"):
        scorer.score(words("a", "b"), images=[0])
    with pytest.raises(DataError, match="no hypothesis to score"):
        scorer.score([], images=[])
