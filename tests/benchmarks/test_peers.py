"""The peers do the same work as the tutorial's loop, in other ways."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from benchmarks.imported import ModelSizes, random_model, random_pixels
from benchmarks.peers import Pixels, Side, agreement, alternate, blip, cached, table, times, tutorial
from benchmarks.tutorial_search import DecoderWithAttention, Encoder
from benchmarks.windows import spread_of
from saccade.errors import BackendError
from saccade.vocabulary import END, PAD, START, UNK, Vocabulary

SIZES = ModelSizes(architecture="resnet18", words=40, width=16, image_size=64)
VOCABULARY = Vocabulary((PAD, *(f"word{number}" for number in range(1, 37)), UNK, START, END))
PIXELS = random_pixels(3, 64)


@pytest.fixture(scope="module")
def model() -> tuple[Encoder, DecoderWithAttention]:
    return random_model(SIZES, PIXELS)


@pytest.fixture
def projections(model: tuple[Encoder, DecoderWithAttention]) -> Iterator[list[int]]:
    """Rows of annotations that were projected, call by call."""
    found: list[int] = []
    real = torch.nn.functional.linear

    def counted(given: torch.Tensor, weight: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        if given.shape[-2:] == (196, 512):
            found.append(len(given))
        return real(given, weight, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counted)
        yield found


def test_cached_projects_each_image_once_and_finds_the_same_words(
    model: tuple[Encoder, DecoderWithAttention], projections: list[int]
) -> None:
    expected = tutorial(*model, VOCABULARY, beam=3)(PIXELS)
    assert len(projections) == sum(projections) // 3 >= sum(map(len, expected)) >= 3  # 3 rows at first
    projections.clear()
    side = cached(*model, VOCABULARY, beam=3)
    assert side(PIXELS) == expected
    assert projections == [1, 1, 1]
    assert side(PIXELS[::-1].copy()) == expected[::-1]  # nothing is left of the image before
    assert tutorial(*model, VOCABULARY, beam=3)(PIXELS) == expected


def test_agreement_is_the_share_of_equal_captions() -> None:
    captions: dict[str, list[tuple[int, ...]]] = {
        "tutorial": [(1,), (2,), (3,), (4,)],
        "other": [(1,), (2,), (3,), (4, 5)],
    }
    assert agreement(captions) == {"tutorial": 1, "other": 0.75}


def test_sides_take_turns() -> None:
    turns: list[str] = []

    def side(name: str) -> Side:
        def caption(pixels: Pixels) -> list[tuple[int, ...]]:
            turns.append(name)
            return [(1,)] * len(pixels)

        return caption

    assert alternate({"a": side("a"), "b": side("b")}, PIXELS, rounds=2).keys() == {"a", "b"}
    assert turns == ["a", "b", "a", "b"]


def test_the_table_has_ratios_to_both_loops() -> None:
    rates = {"tutorial": spread_of([1.0, 1.0]), "cached": spread_of([2.0, 2.0]), "blip": spread_of([4.0, 4.0])}
    last = table(rates, {"tutorial": 1.0, "cached": 1.0, "blip": 0.0}).splitlines()[-1]
    assert last.split() == ["blip", "4.000", "4.00", "(4.00", "to", "4.00)", "2.00", "(2.00", "to", "2.00)"]


def test_ratios_are_of_the_same_round() -> None:
    found = times(spread_of([1.0, 4.0, 2.0]), spread_of([3.0, 12.0, 6.0]))
    assert (found.mean, found.low, found.high) == (3, 3, 3)


def test_without_transformers_blip_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendError, match="pip install transformers"):
        blip(words=5, batch=2, beam=1)
