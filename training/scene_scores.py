"""How right a sentence about a scene is, and whether its words look at what they name.

The sentence is parsed by the grammar of `training.scene_sentences`, so a caption is judged by what it says: any order,
any synonym. A model's sentence may be wrong or cut off anywhere; what cannot be understood is not counted as said.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from training.scene_drawing import PAINTS
from training.scene_objects import Relation, holds
from training.scene_sentences import RELATION_PHRASES, SHAPE_WORDS, SIZE_WORDS, TEXTURE_WORDS
from training.scenes import Scene


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionScore:
    """Counts for one sentence.

    An object is correct if the scene has one of that colour and shape which the sentence has not named before. A
    relation is correct if both ends are in the scene and it holds. Sizes and textures are counted on correct objects.
    """

    objects_predicted: int
    objects_true: int
    objects_correct: int
    relations_stated: int
    relations_correct: int
    sizes_stated: int
    sizes_correct: int
    textures_stated: int
    textures_correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointingCount:
    """How many words of correct objects there were, and how many looked into the box of their object."""

    nouns: int
    nouns_inside: int
    words: int
    words_inside: int


def parse_caption(words: Sequence[str]) -> ParsedCaption:
    """The objects and relations a sentence states. Never raises: what does not fit the grammar is passed over."""
    reader = _Reader(words)
    return ParsedCaption(objects=tuple(reader.objects), relations=tuple(_relations(reader.pieces)))


def score_caption(words: Sequence[str], scene: Scene) -> CaptionScore:
    """Compare what the sentence says with the scene."""
    parsed = parse_caption(words)
    names = {(thing.colour, thing.shape): index for index, thing in enumerate(scene.objects)}
    ends = [names.get((said.colour or "", said.shape)) for said in parsed.objects]
    correct = _correct_objects(parsed, scene)
    pairs = [(parsed.objects[said], scene.objects[true]) for said, true in correct.items()]
    return CaptionScore(
        objects_predicted=len(parsed.objects),
        objects_true=len(scene.objects),
        objects_correct=len(correct),
        relations_stated=len(parsed.relations),
        relations_correct=sum(
            _is_true(scene, ends[relation.subject], relation.name, ends[relation.object])
            for relation in parsed.relations
        ),
        sizes_stated=sum(said.size is not None for said, _ in pairs),
        sizes_correct=sum(said.size == true.size for said, true in pairs),
        textures_stated=sum(said.texture is not None for said, _ in pairs),
        textures_correct=sum(said.texture == true.texture for said, true in pairs),
    )


def point(words: Sequence[str], alphas: NDArray[np.floating], grid: tuple[int, int], scene: Scene) -> PointingCount:
    """Whether each word of a correctly named object looks into the visible box of that object.

    alphas : float (T, L), one row a word, T >= len(words); L = rows * columns of `grid`, row by row
    A word looks at the centre of the cell with the largest alpha; ties go to the first. Raises ValueError if the
    shapes do not fit.
    """
    rows, columns = grid
    if alphas.ndim != 2 or len(alphas) < len(words) or alphas.shape[1] != rows * columns:
        raise ValueError(f"alphas are {alphas.shape}, expected (at least {len(words)}, {rows} x {columns})")
    nouns, described = [], []
    parsed = parse_caption(words)
    for said, true in _correct_objects(parsed, scene).items():
        x0, y0, x1, y1 = scene.objects[true].box
        phrase = parsed.objects[said]
        for index in (*phrase.adjectives, phrase.noun):
            row, column = divmod(int(alphas[index].argmax()), columns)
            inside = x0 <= (column + 0.5) / columns <= x1 and y0 <= (row + 0.5) / rows <= y1
            described.append(inside)
            if index == phrase.noun:
                nouns.append(inside)
    return PointingCount(nouns=len(nouns), nouns_inside=sum(nouns), words=len(described), words_inside=sum(described))


class SceneReport:
    """Sums over many captions, and the rates they give."""

    def __init__(self) -> None:
        self._captions = 0
        self._sums: Counter[str] = Counter()

    def add(self, score: CaptionScore, pointing: PointingCount | None = None) -> None:
        """Count one more caption; without `pointing` it has no part in the pointing rates."""
        self._captions += 1
        self._sums.update(asdict(score))
        if pointing is not None:
            self._sums.update(asdict(pointing))

    def as_json(self) -> dict[str, float | int | None]:
        """The rates; None where nothing was counted."""
        total = self._sums
        return {
            "captions": self._captions,
            "object_precision": _rate(total["objects_correct"], total["objects_predicted"]),
            "object_recall": _rate(total["objects_correct"], total["objects_true"]),
            "object_f1": _rate(2 * total["objects_correct"], total["objects_predicted"] + total["objects_true"]),
            "relation_accuracy": _rate(total["relations_correct"], total["relations_stated"]),
            "relations_per_caption": _rate(total["relations_stated"], self._captions),
            "size_accuracy": _rate(total["sizes_correct"], total["sizes_stated"]),
            "texture_accuracy": _rate(total["textures_correct"], total["textures_stated"]),
            "pointing_nouns": _rate(total["nouns_inside"], total["nouns"]),
            "pointing_words": _rate(total["words_inside"], total["words"]),
        }


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _correct_objects(parsed: ParsedCaption, scene: Scene) -> dict[int, int]:
    """From each correctly named object of the sentence to the object of the scene, each at most once."""
    unnamed = {(thing.colour, thing.shape): index for index, thing in enumerate(scene.objects)}
    correct = {}
    for index, said in enumerate(parsed.objects):
        true = unnamed.pop((said.colour or "", said.shape), None)
        if true is not None:
            correct[index] = true
    return correct


def _is_true(scene: Scene, subject: int | None, relation: str, other: int | None) -> bool:
    if subject is None or other is None or subject == other:
        return False
    return holds(relation, scene.objects[subject], scene.objects[other])


# Parsing: words to pieces, pieces to relations.

_Piece = tuple[str, int | str | None]
"""A part of the sentence: ("object", its index or None if its noun is missing), ("relation", its name), or a joint."""

_JOINTS = {"and": "and", "with": "with", "which": "which", "that": "which", "it": "it"} | dict.fromkeys(
    ("is", "are", "sits"), "verb"
)


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
        """Read adjectives and a noun; the position after them, or None if there are none."""
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
        self.pieces.append(("object", None))
        return position

    def _add(self, said: dict[str, str], shape: str, start: int, noun: int) -> None:
        self.pieces.append(("object", len(self.objects)))
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
                self.pieces.append(("relation", name))
                return start + len(phrase)
        return None

    def _joint(self, position: int) -> int:
        """Read one word of any other kind; articles, openings and unknown words leave no piece."""
        joint = _JOINTS.get(self.words[position])
        if joint is not None:
            self.pieces.append((joint, None))
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

    def read(self, kind: str, value: int | str | None, following: str) -> None:
        """Take in one piece; `following` is the kind of the next."""
        joint, self.joint = self.joint, None
        if kind == "object":
            assert not isinstance(value, str)
            self._object(value, joint, following)
        elif kind == "relation":
            self._relation(str(value), joint)
        elif kind == "it":
            self._it()
        elif kind == "verb":
            self.joint = joint
        else:
            self.joint, self.open, self.inverted, self.guests = kind, None, None, []

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
    following = [kind for kind, _ in pieces[1:]] + ["end"]
    for (kind, value), after in zip(pieces, following, strict=True):
        interpreter.read(kind, value, after)
    return interpreter.relations
