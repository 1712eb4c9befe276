"""Words and their ids: one list for training, export and captioning."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.errors import VocabularyError

PAD, START, END, UNK = "<pad>", "<start>", "<end>", "<unk>"


def tokenise(text: str) -> tuple[str, ...]:
    """Words of a sentence: NFC, lower case, without punctuation.

    A word is a run of letters, marks and digits of any script, with apostrophes and joiners inside. Han, kana and other
    scripts written without blanks give one word a character, because no dictionary is at hand to do better; the rule is
    the same for every sentence, so what is trained on and what is scored agree.
    """
    return tuple(_words(unicodedata.normalize("NFC", text).lower()))


def detokenise(words: Sequence[str]) -> str:
    """A sentence from words: blanks between them, none between characters of scripts written without blanks."""
    text = ""
    for word in words:
        joins = text and not (_is_unspaced(text[-1]) and _is_unspaced(word[0]))
        text += f" {word}" if joins else word
    return text


def _words(text: str) -> Iterator[str]:
    word = ""
    for index, character in enumerate(text):
        category = unicodedata.category(character)
        if category[0] == "L" and _is_unspaced(character):
            if word:
                yield word
            word = character
            continue
        starts_after_unspaced = word and _is_unspaced(word[0]) and category[0] in "LN"
        if starts_after_unspaced:
            yield word
            word = ""
        if category[0] in "LN" or (word and (category[0] == "M" or _joins(text, index))):
            word += character
        elif word:
            yield word
            word = ""
    if word:
        yield word


def _joins(text: str, index: int) -> bool:
    """Whether the character keeps a word together: an apostrophe between letters, or a zero-width joiner."""
    if text[index] in "\u200c\u200d":
        return True
    return (
        text[index] in "'\u2019" and index + 1 < len(text) and text[index - 1].isalnum() and text[index + 1].isalnum()
    )


def _is_unspaced(character: str) -> bool:
    """Han, kana, Thai, Lao, Khmer and Myanmar, which put no blank between words (by their Unicode blocks)."""
    code = ord(character)
    return (
        0x3040 <= code <= 0x30FF
        or 0x3400 <= code <= 0x9FFF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x323AF
        or 0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
    )


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words by id, and the ids of the four special tokens.

    words : word of id i at place i, in NFC, without repeats
    pad, start, end, unk : ids of `<pad>`, `<start>`, `<end>` and `<unk>`, wherever a foreign word list keeps them
    """

    words: tuple[str, ...]
    pad: int = 0
    start: int = 1
    end: int = 2
    unk: int = 3
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = [word for word in self.words if isinstance(word, str) and word]
        special = (self.pad, self.start, self.end, self.unk)
        problems = []
        repeated = [word for word, count in Counter(words).items() if count > 1]
        if repeated:
            problems.append(f"{len(repeated)} words occur twice, the first is {repeated[0]!r}")
        if len(words) != len(self.words):
            problems.append("every word must be a non-empty string")
        if len(set(special)) != 4 or not all(0 <= index < len(self.words) for index in special):
            problems.append(
                f"the ids of pad, start, end and unk must be four different ones below {len(self.words)}, got {special}"
            )
        if problems:
            raise VocabularyError("invalid vocabulary: " + "; ".join(problems))
        object.__setattr__(self, "_ids", {word: index for index, word in enumerate(words)})

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_captions(
        cls, captions: Iterable[Sequence[str]], *, min_count: int = 5, max_words: int | None = None
    ) -> Vocabulary:
        """Count the words of tokenised training captions (never validation or test ones).

        Words seen fewer than `min_count` times become `<unk>`; of the rest the `max_words` most frequent are kept,
        alphabetically among equals, so the result does not depend on the order of the captions.
        """
        counts = Counter(word for caption in captions for word in caption)
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise VocabularyError(
                f"no word occurs {min_count} times in the training captions ({len(counts)} different words): "
                "lower min_count or add captions"
            )
        return cls((PAD, START, END, UNK, *kept[:max_words]))

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of words; unknown ones give `unk`. `<start>` and `<end>` are not added."""
        return [self._ids.get(word, self.unk) for word in words]

    def decode(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Words of ids, as they stand: special tokens are spelled out."""
        return tuple(self.words[index] for index in ids)

    def sentence(self, ids: Iterable[int]) -> str:
        """The caption that ids spell; `<pad>`, `<start>` and `<end>` are silent, `<unk>` is shown."""
        silent = (self.pad, self.start, self.end)
        return detokenise(self.decode(index for index in ids if index not in silent))

    def as_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back."""
        return {
            "pad": self.pad,
            "start": self.start,
            "end": self.end,
            "unk": self.unk,
            "words": list(self.words),
        }

    @classmethod
    def from_json(cls, value: Any, *, source: str = "vocabulary") -> Vocabulary:
        """Read `as_json`. Raises VocabularyError that names `source` and what is missing or wrong."""
        fields = ("pad", "start", "end", "unk", "words")
        if not isinstance(value, dict) or set(value) != set(fields):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise VocabularyError(f"{source}: expected an object with {', '.join(fields)}, found {found}")
        if not isinstance(value["words"], list) or not all(type(value[name]) is int for name in fields[:4]):
            raise VocabularyError(f"{source}: words must be a list and pad, start, end, unk must be integers")
        try:
            return cls(tuple(value["words"]), value["pad"], value["start"], value["end"], value["unk"])
        except VocabularyError as error:
            raise VocabularyError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read a vocabulary.json."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise VocabularyError(f"{path}: cannot be read as JSON ({error})") from error
        return cls.from_json(value, source=str(path))
