"""What a sentence about a scene says: the grammar of `training.scene_sentences`, read back.

A model's sentence may be wrong or cut off anywhere, so reading never fails: the sentence is cut into pieces, and the
pieces are taken in one by one; those that fit nowhere leave no trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from training.scene_drawing import PAINTS
from training.scene_objects import Relation
from training.scene_sentences import RELATION_PHRASES, SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedObject:
    """One noun phrase: what it claims, None where it says nothing, and where its adjectives and noun stand."""

    colour: str | None
    shape: str
    size: str | None
    texture: str | None
    adjectives: tuple[int, ...]
    noun: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCaption:
    """What a sentence says; the relations refer to its own objects by index."""

    objects: tuple[ParsedObject, ...]
    relations: tuple[Relation, ...]


def parse_caption(words: Sequence[str]) -> ParsedCaption:
    """Read the objects and relations a sentence states. Never raises: what does not fit the grammar is passed over."""
    reader = _Reader(words)
    return ParsedCaption(objects=tuple(reader.objects), relations=tuple(_relations(reader.pieces)))


class _Piece(NamedTuple):
    """A part of the sentence: an object (None if its noun is missing), a relation, or a joint of another kind."""

    kind: str
    which: int | None = None
    relation: str = ""


_JOINTS = {
    "and": "and",
    "with": "with",
    "which": "which",
    "that": "which",
    "it": "it",
    "is": "verb",
    "are": "verb",
    "sits": "verb",
}


def _meanings(words: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: meaning for meaning, synonyms in words.items() for word in synonyms}


_SHAPES, _SIZES, _TEXTURES = _meanings(SHAPE_WORDS), _meanings(SIZE_WORDS), _meanings(TEXTURE_WORDS)
_PHRASES = sorted(
    ((tuple(phrase.split()), name) for phrase, name in _meanings(RELATION_PHRASES).items()),
    key=lambda item: -len(item[0]),
)


class _Reader:
    """Cuts the words into pieces, and gathers the objects."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.objects: list[ParsedObject] = []
        self.pieces: list[_Piece] = []
        position = 0
        while position < len(self.words):
            position = self._object(position) or self._relation(position) or self._joint(position)

    def _object(self, start: int) -> int | None:
        """Read adjectives and a noun; return the position after them, or None if there are none."""
        said: dict[str, str] = {}
        position = start
        while position < len(self.words):
            word = self.words[position]
            if word in _SHAPES:
                self._add(said, _SHAPES[word], start, position)
                return position + 1
            if word in PAINTS:
                said["colour"] = word
            elif word in _SIZES:
                said["size"] = _SIZES[word]
            elif word in _TEXTURES:
                said["texture"] = _TEXTURES[word]
            else:
                break
            position += 1
        if position == start:
            return None
        self.pieces.append(_Piece("object"))
        return position

    def _add(self, said: dict[str, str], shape: str, start: int, noun: int) -> None:
        self.pieces.append(_Piece("object", which=len(self.objects)))
        self.objects.append(
            ParsedObject(
                colour=said.get("colour"),
                shape=shape,
                size=said.get("size"),
                texture=said.get("texture"),
                adjectives=tuple(range(start, noun)),
                noun=noun,
            )
        )

    def _relation(self, start: int) -> int | None:
        for phrase, name in _PHRASES:
            if self.words[start : start + len(phrase)] == phrase:
                self.pieces.append(_Piece("relation", relation=name))
                return start + len(phrase)
        return None

    def _joint(self, position: int) -> int:
        """Read one word of any other kind; articles, openings and unknown words leave no piece."""
        joint = _JOINTS.get(self.words[position])
        if joint is not None:
            self.pieces.append(_Piece(joint))
        return position + 1


class _Interpreter:
    """Reads the pieces in order and links objects; keeps what later pieces may refer to."""

    def __init__(self) -> None:
        self.relations: list[Relation] = []
        self.joint: str | None = None  # the joint just read
        self.subjects: list[int | None] = []  # the objects the clause began with
        self.linked = False  # whether the clause has stated a relation
        self.last: int | None = None  # the object named last
        self.guests: list[int | None] = []  # the object after "with", until its relation is stated
        self.host: int | None = None  # what "it" means then
        self.open: tuple[list[int | None], str] | None = None  # subjects and relation that wait for their object
        self.shared: tuple[list[int | None], str] | None = None  # the same, which "and" may give one more object
        self.inverted: tuple[str, int | None] | None = None  # relation and object that wait for their subject

    def read(self, piece: _Piece, following: str) -> None:
        """Take in one piece; `following` is the kind of the next."""
        joint, self.joint = self.joint, None
        if piece.kind == "object":
            self._object(piece.which, joint, following)
        elif piece.kind == "relation":
            self._relation(piece.relation, joint)
        elif piece.kind == "it":
            self._it()
        elif piece.kind == "verb":
            self.joint = joint
        else:
            self.joint, self.open, self.inverted, self.guests = piece.kind, None, None, []

    def _object(self, index: int | None, joint: str | None, following: str) -> None:
        if self.open is not None:
            subjects, name = self.open
            self.open = None
            if subjects:
                self._link(subjects, name, index)
            else:
                self.inverted = (name, index)
        elif self.inverted is not None:
            name, other = self.inverted
            self.inverted = None
            self._link([index], name, other)
        elif joint == "with":
            self.guests, self.host = [index], self.last
        elif joint == "and" and not self.linked:
            self.subjects.append(index)
        elif joint == "and" and self.shared is not None and following not in ("verb", "relation"):
            self._link(*self.shared, index)
        else:
            self.subjects, self.linked, self.shared = [index], False, None
        self.last = index

    def _relation(self, name: str, joint: str | None) -> None:
        if self.guests:
            self.open, self.shared = (self.guests, name), None
        elif joint == "which":
            self.open, self.shared = ([self.last], name), None
        else:
            self.open = self.shared = (self.subjects, name)

    def _it(self) -> None:
        if self.open is not None and self.guests:
            self._link(*self.open, self.host)
        self.open, self.guests = None, []

    def _link(self, subjects: Sequence[int | None], name: str, other: int | None) -> None:
        self.linked, self.guests = True, []
        if other is not None:
            self.relations += [Relation(subject, name, other) for subject in subjects if subject is not None]


def _relations(pieces: Sequence[_Piece]) -> list[Relation]:
    interpreter = _Interpreter()
    for piece, following in zip_longest(pieces, pieces[1:], fillvalue=_Piece("end")):
        interpreter.read(piece, following.kind)
    return interpreter.relations
