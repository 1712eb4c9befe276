"""The peers do the same work as the tutorial's loop, in other ways."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks import peers
from benchmarks.imported import ModelSizes, random_model, random_pixels
from benchmarks.peers import Pixels, Side, agreement, alternate, blip, cached, table, tutorial
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
    last = table(rates, {"tutorial": 1.0, "cached": 1.0}).splitlines()[-1]
    assert last.split() == ["blip", "4.000", "4.00", "(4.00", "to", "4.00)", "2.00", "(2.00", "to", "2.00)"]


def test_without_transformers_blip_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BackendError, match="pip install transformers"):
        blip(words=5, batch=2, beam=1)


def test_blip_says_as_many_words_as_it_is_told_in_batches_of_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Model:
        def eval(self) -> Model:
            return self

        def generate(self, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
            asked.append(options | {"images": tuple(pixel_values.shape)})
            return torch.arange(options["max_length"]).repeat(len(pixel_values), 1)

    fake = SimpleNamespace(BlipConfig=lambda: None, BlipForConditionalGeneration=lambda _: Model())
    monkeypatch.setitem(sys.modules, "transformers", fake)
    assert blip(words=5, batch=2, beam=4)(PIXELS) == [(1, 2, 3, 4, 5)] * 3
    assert [one["images"] for one in asked] == [(2, 3, 384, 384), (1, 3, 384, 384)]
    assert {(one["min_length"], one["max_length"], one["num_beams"]) for one in asked} == {(7, 7, 4)}


@pytest.mark.slow
def test_the_command_tells_of_every_side_and_why_one_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ModelSizes", lambda architecture: replace(SIZES, architecture=architecture))
    monkeypatch.setitem(sys.modules, "transformers", None)
    given = "--side ort:fp32 --side ort:bf16 --images 3 --rounds 2 --batch 2 --encoder resnet18"
    outcome = CliRunner().invoke(peers.main, given.split(), catch_exceptions=False)
    record = json.loads(outcome.output.splitlines()[-1])
    assert record["same_words"] == {"tutorial": 1, "cached": 1, "eager": 1, "ort:fp32": 1}
    assert [*record["images_per_s"]] == [*record["ratios"]["cached"]] == [*record["same_words"]]
    assert [*record["unavailable"]] == ["ort:bf16", "blip"]
    assert "not bf16" in record["unavailable"]["ort:bf16"]
    assert record["options"]["side"] == ["ort:fp32", "ort:bf16"]
    assert record["words"] > 2
