"""One rule from sentences to words for every script, and word lists that are whole or refused."""

import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import VocabularyError
from saccade.vocabulary import END, PAD, START, UNK, Vocabulary, detokenise, tokenise

SPECIAL = (PAD, START, END, UNK)
LIST = Vocabulary((*SPECIAL, "a", "red", "ball"))


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A red ball, on the GRASS.", ["a", "red", "ball", "on", "the", "grass"]),
        ("", []),
        (" ... !?\n\t", []),
        ("top-left 3 dogs; 2.5 m", ["top", "left", "3", "dogs", "2", "5", "m"]),
        ("the dog's ball isn't the girls' 'thing'", ["the", "dog's", "ball", "isn't", "the", "girls", "thing"]),
        ("l\u2019homme", ["l\u2019homme"]),
        ("एक लड़का कुत्ते के साथ।", ["एक", "लड़का", "कुत्ते", "के", "साथ"]),
        ("一只红球。在草地上", list("一只红球在草地上")),
        ("3只猫 and a dog", ["3", "只", "猫", "and", "a", "dog"]),
        ("ボールと犬", list("ボールと犬")),
        ("هُوَ می\u200cخواهم", ["هُوَ", "می\u200cخواهم"]),  # noqa: RUF001
        ("빨간 공", ["빨간", "공"]),
        ("Ünïcödé Straße", ["ünïcödé", "straße"]),
        ("a 👨\u200d👩\u200d👧 family", ["a", "family"]),
    ],
)
def test_a_sentence_becomes_its_words(sentence: str, words: list[str]) -> None:
    assert tokenise(sentence) == tuple(unicodedata.normalize("NFC", word) for word in words)


def test_composed_and_decomposed_spellings_are_one_word() -> None:
    assert tokenise("caf\u00e9 \ud55c") == tokenise("cafe\u0301 \u1112\u1161\u11ab") == ("caf\u00e9", "\ud55c")


@given(st.text())
def test_words_are_normalised_and_do_not_depend_on_the_spelling(sentence: str) -> None:
    words = tokenise(sentence)
    assert all(word and unicodedata.is_normalized("NFC", word) for word in words)
    for form in ("NFC", "NFD"):
        assert tokenise(unicodedata.normalize(form, sentence)) == words


def test_every_letter_with_a_case_gives_one_word_however_it_is_spelt() -> None:
    """Lower case can take a letter apart (the capital I with a dot) and must not leave it so."""
    for letter in map(chr, range(0x20000)):
        if letter.lower() == letter or not letter.isalpha():
            continue
        for mark in ("", "\u0323"):
            composed, decomposed = (unicodedata.normalize(form, letter + mark) for form in ("NFC", "NFD"))
            (word,) = tokenise(composed)
            assert tokenise(decomposed) == (word,), hex(ord(letter))
            assert unicodedata.is_normalized("NFC", word), hex(ord(letter))


@given(st.text())
def test_a_sentence_put_together_again_gives_the_same_words(sentence: str) -> None:
    words = tokenise(sentence)
    assert tokenise(detokenise(words)) == words


def test_words_are_joined_by_blanks_except_in_scripts_without_them() -> None:
    assert detokenise(("a", "red", "ball")) == "a red ball"
    assert detokenise(("一", "只", "猫", "and", "犬")) == "一只猫 and 犬"
    assert detokenise(("แ", "ม", "ว")) == "แมว"
    assert detokenise(()) == ""


def test_rare_words_are_left_out() -> None:
    captions = [("a", "ball"), ("a", "cat"), ("a", "ball")]
    assert Vocabulary.from_captions(captions, min_count=2).words == (*SPECIAL, "a", "ball")
    assert Vocabulary.from_captions(captions, min_count=1).words == (*SPECIAL, "a", "ball", "cat")


def test_the_order_is_by_count_then_by_word_whatever_the_order_of_the_captions() -> None:
    captions = [("d", "c", "b"), ("b", "a", "d"), ("d",)]
    for order in itertools.permutations(captions):
        assert Vocabulary.from_captions(order, min_count=1).words == (*SPECIAL, "d", "b", "a", "c")


def test_the_most_frequent_words_are_kept() -> None:
    captions = [("d", "c", "b"), ("b", "a", "d"), ("d",)]
    assert Vocabulary.from_captions(captions, min_count=1, max_words=2).words == (*SPECIAL, "d", "b")


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(VocabularyError, match=r"no word occurs 5 times .*\(2 different words\): lower min_count"):
        Vocabulary.from_captions([("a", "ball")])


def test_ids_and_words_are_inverse() -> None:
    assert LIST.encode(("a", "red", "ball")) == [4, 5, 6]
    assert LIST.decode([4, 5, 6]) == ("a", "red", "ball")
    assert LIST.decode(LIST.encode(LIST.words)) == LIST.words
    assert len(LIST) == 7


def test_an_unknown_word_is_unk() -> None:
    assert LIST.encode(("a", "blue", "ball")) == [4, LIST.unk, 6]
    assert LIST.encode(["BALL"]) == [LIST.unk]


def test_a_caption_shows_unk_and_no_other_special_token() -> None:
    assert LIST.sentence([LIST.start, 4, LIST.unk, 6, LIST.end, LIST.pad]) == "a <unk> ball"


def test_special_ids_may_lie_anywhere() -> None:
    foreign = Vocabulary(("a", "</s>", "<s>", "[?]", "ball", "0"), pad=5, start=2, end=1, unk=3)
    assert foreign.encode(["a", "cat", "ball"]) == [0, 3, 4]
    assert foreign.sentence([2, 0, 3, 4, 1, 5]) == "a [?] ball"


@pytest.mark.parametrize(
    ("words", "ids", "problem"),
    [
        ((*SPECIAL, "a", "b", "a", "b", "a"), (0, 1, 2, 3), "2 words occur twice, the first is 'a'"),
        ((*SPECIAL, ""), (0, 1, 2, 3), "every word must be a non-empty string"),
        ((*SPECIAL, 7), (0, 1, 2, 3), "every word must be a non-empty string"),
        ((*SPECIAL, ["a"]), (0, 1, 2, 3), "every word must be a non-empty string"),
        (SPECIAL, (0, 1, 2, 2), r"four different ones below 4, got \(0, 1, 2, 2\)"),
        (SPECIAL, (0, 1, 2, 4), r"four different ones below 4, got \(0, 1, 2, 4\)"),
        (SPECIAL, (-1, 1, 2, 3), r"four different ones below 4, got \(-1, 1, 2, 3\)"),
        ((), (0, 1, 2, 3), "below 0"),
    ],
)
def test_an_inconsistent_word_list_is_refused(words: tuple[Any, ...], ids: tuple[int, ...], problem: str) -> None:
    with pytest.raises(VocabularyError, match=problem):
        Vocabulary(words, *ids)


def test_all_problems_of_a_word_list_are_told_at_once() -> None:
    with pytest.raises(VocabularyError, match=r"occur twice.*; .*non-empty.*; .*four different"):
        Vocabulary(("a", "a", ""), 0, 0, 0, 9)


def test_json_gives_the_same_vocabulary_back() -> None:
    for vocabulary in (LIST, Vocabulary(("लड़का", *SPECIAL, "猫"), pad=1, start=2, end=3, unk=4)):
        text = json.dumps(vocabulary.as_json())
        assert Vocabulary.from_json(json.loads(text)) == vocabulary


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"extra": 1}, "expected an object with pad, start, end, unk, words, found .*extra"),
        ({"words": "abc"}, "words must be a list"),
        ({"words": [*SPECIAL, None]}, "non-empty string"),
        ({"words": [*SPECIAL, {}]}, "non-empty string"),
        ({"pad": "0"}, "must be integers"),
        ({"pad": True}, "must be integers"),
        ({"pad": 0.0}, "must be integers"),
        ({"end": 99}, "four different"),
    ],
)
def test_wrong_json_is_refused_with_its_source(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(VocabularyError, match=f"^words.json: .*{problem}"):
        Vocabulary.from_json(LIST.as_json() | change, source="words.json")


@pytest.mark.parametrize("value", [None, [], "words", {}, {"words": []}])
def test_json_that_is_no_vocabulary_is_refused(value: object) -> None:
    with pytest.raises(VocabularyError, match="expected an object with pad, start, end, unk, words"):
        Vocabulary.from_json(value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=r"vocabulary\.json: cannot be read as JSON"):
        Vocabulary.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"absent\.json: cannot be read"):
        Vocabulary.load(tmp_path / "absent.json")
