from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.comparison_scores import changes, references_of
from benchmarks.scoring import tokenised
from saccade.errors import DataError
from training.metrics import bleu, bleu_counts, bleu_of, cider_d

RIGHT = [
    ["a red dog sits on the left", "the dog is red"],
    ["two balls on the grass", "a ball and a ball"],
    ["a green cat runs to the left of the ball"],
    ["one dog on the left of two cats", "a dog beside cats"],
]
GOOD = ["a red dog on the left", "a ball on the grass", "a green cat to the left of the ball", "a dog of two cats"]
BAD = ["a red dog on the left", "a cat", "<unk> blue cat <unk> to the left", "the the the the"]


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    """So that a resample of images is a sum."""
    known = [tokenised(texts) for texts in RIGHT]
    for side in (GOOD, BAD):
        said = tokenised(side)
        parts = [bleu_counts(said[part], known[part]).sum(axis=0) for part in (slice(1), slice(1, None))]
        assert bleu_of(np.sum(parts, axis=0)) == pytest.approx(bleu(said, known), rel=1e-12)
        assert bleu_of(parts[0]) != pytest.approx(bleu(said, known), rel=1e-3)


def test_the_change_is_that_of_both_sides_and_its_interval_holds_it() -> None:
    known = [tokenised(texts) for texts in RIGHT * 10]
    found = changes(GOOD * 10, BAD * 10, known)
    sides = [tokenised(GOOD * 10), tokenised(BAD * 10)]
    scores = {
        "BLEU-4": [bleu(side, known)[3] for side in sides],
        "CIDEr-D": [cider_d(side, known).score for side in sides],
    }
    for name, (reference, candidate) in scores.items():
        one = found[name]
        assert (one.reference, one.candidate) == pytest.approx((reference, candidate))
        assert one.change == pytest.approx(candidate - reference)
        assert one.low < one.change < one.high < 0


def test_the_same_captions_change_nothing_whichever_images_are_drawn() -> None:
    for one in changes(GOOD, GOOD, [tokenised(texts) for texts in RIGHT]).values():
        assert (one.change, one.low, one.high) == (0, 0, 0)


def test_the_interval_is_paired_over_images() -> None:
    """Each image loses the same: unpaired, its interval would be as wide as captions differ from each other."""
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(200)]
    right = [[" ".join(random.choice(words, 8))] for _ in range(60)]
    good = [texts[0] for texts in right]
    shorter = [" ".join(text.split()[:-1]) for text in good]
    found = changes(good, shorter, [tokenised(texts) for texts in right])["CIDEr-D"]
    assert found.high - found.low < 0.2 * -found.change


def test_references_are_read_in_two_forms(tmp_path: Path) -> None:
    coco, plain = tmp_path / "coco.json", tmp_path / "plain.json"
    coco.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png"}],
                "annotations": [{"image_id": 1, "caption": "a dog"}, {"image_id": 1, "caption": "dogs"}],
            }
        )
    )
    plain.write_text(json.dumps({"a.png": ["a dog", "dogs"]}))
    assert references_of(coco) == references_of(plain) == {"a.png": ["a dog", "dogs"]}


@pytest.mark.parametrize("text", ["no json", "[1]", '{"a.png": "a dog"}', '{"a.png": []}', '{"a.png": [3]}'])
def test_references_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "references.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"references\.json"):
        references_of(path)
