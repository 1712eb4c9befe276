"""How right a sentence about a scene is, and whether its words look at what they name.

A caption is judged by what it says, in any order and with any synonym; what cannot be understood counts as not said.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from training.scene_objects import RELATIONS, SceneObject, holds
from training.scene_parsing import ParsedCaption, parse_caption


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionScore:
    """Counts for one sentence.

    An object is correct if the scene has one of that colour and shape which the sentence has not named before, and
    untied if the sentence states no relation of it, which the grammar does not allow. A relation is correct if both
    ends are correct objects and it holds: "a circle that is below a heart that is above a circle" speaks of two
    circles. Of relations the names are kept, as of `training.scene_objects.RELATIONS`. Sizes and textures are counted
    on correct objects.
    """

    objects_predicted: int
    objects_true: int
    objects_correct: int
    objects_untied: int
    relations_stated: tuple[str, ...]
    relations_correct: tuple[str, ...]
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


def score_caption(words: Sequence[str], objects: Sequence[SceneObject]) -> CaptionScore:
    """Compare what the sentence says with the objects of the scene."""
    parsed = parse_caption(words)
    correct = _correct_objects(parsed, objects)
    pairs = [(parsed.objects[said], objects[true]) for said, true in correct.items()]
    return CaptionScore(
        objects_predicted=len(parsed.objects),
        objects_true=len(objects),
        objects_correct=len(correct),
        objects_untied=len(parsed.objects)
        - len({end for said in parsed.relations for end in (said.subject, said.object)}),
        relations_stated=tuple(relation.name for relation in parsed.relations),
        relations_correct=tuple(
            relation.name
            for relation in parsed.relations
            if _is_true(objects, correct.get(relation.subject), relation.name, correct.get(relation.object))
        ),
        sizes_stated=sum(said.size is not None for said, _ in pairs),
        sizes_correct=sum(said.size == true.size for said, true in pairs),
        textures_stated=sum(said.texture is not None for said, _ in pairs),
        textures_correct=sum(said.texture == true.texture for said, true in pairs),
    )


def point(
    words: Sequence[str], alphas: NDArray[np.floating], grid: tuple[int, int], objects: Sequence[SceneObject]
) -> PointingCount:
    """Count how often a word of a correctly named object looks into the visible box of that object.

    alphas : float (T, L), one row a word, T >= len(words); L = rows * columns of `grid`, row by row
    A word looks at the centre of the cell with the largest alpha; ties go to the first. Raises ValueError if the
    shapes do not fit.
    """
    rows, columns = grid
    if alphas.ndim != 2 or len(alphas) < len(words) or alphas.shape[1] != rows * columns:
        raise ValueError(f"alphas are {alphas.shape}, expected (at least {len(words)}, {rows} x {columns})")
    nouns, described = [], []
    parsed = parse_caption(words)
    for said, true in _correct_objects(parsed, objects).items():
        x0, y0, x1, y1 = objects[true].box
        phrase = parsed.objects[said]
        for index in (*phrase.adjectives, phrase.noun):
            row, column = divmod(int(alphas[index].argmax()), columns)
            inside = x0 <= (column + 0.5) / columns <= x1 and y0 <= (row + 0.5) / rows <= y1
            described.append(inside)
            if index == phrase.noun:
                nouns.append(inside)
    return PointingCount(nouns=len(nouns), nouns_inside=sum(nouns), words=len(described), words_inside=sum(described))


@dataclass(frozen=True, slots=True)
class Described:
    """A caption, what stands in its scene and, where known, where each word looked: alphas (T, L) over a grid."""

    words: Sequence[str]
    objects: Sequence[SceneObject]
    alphas: NDArray[np.floating] | None
    grid: tuple[int, int]


def scene_scores(captions: Iterable[Described]) -> dict[str, float]:
    """The rates of a `SceneReport` over many captions; what nothing was counted for is left out."""
    report = SceneReport()
    for one in captions:
        pointing = None if one.alphas is None else point(one.words, one.alphas, one.grid, one.objects)
        report.add(score_caption(one.words, one.objects), pointing)
    rates = report.as_json()
    return {name: float(value) for name, value in rates.items() if value is not None and name != "captions"}


class SceneReport:
    """Sums over many captions, and the rates they give."""

    def __init__(self) -> None:
        self._captions = 0
        self._sums: Counter[str] = Counter()
        self._stated: Counter[str] = Counter()
        self._correct: Counter[str] = Counter()

    def add(self, score: CaptionScore, pointing: PointingCount | None = None) -> None:
        """Count one more caption; without `pointing` it has no part in the pointing rates."""
        self._captions += 1
        counts = asdict(score)
        self._stated.update(counts.pop("relations_stated"))
        self._correct.update(counts.pop("relations_correct"))
        self._sums.update(counts)
        if pointing is not None:
            self._sums.update(asdict(pointing))

    def as_json(self) -> dict[str, float | int | None]:
        """Return the rates; None where nothing was counted.

        The relations of each name have their accuracy, and their share of all that were stated.
        """
        total, stated = self._sums, self._stated.total()
        of_each = {
            f"relation_{rate}_{name.replace(' ', '_')}": value
            for name in RELATIONS
            for rate, value in (
                ("share", _rate(self._stated[name], stated)),
                ("accuracy", _rate(self._correct[name], self._stated[name])),
            )
        }
        return {
            "captions": self._captions,
            "object_precision": _rate(total["objects_correct"], total["objects_predicted"]),
            "object_recall": _rate(total["objects_correct"], total["objects_true"]),
            "object_f1": _rate(2 * total["objects_correct"], total["objects_predicted"] + total["objects_true"]),
            "objects_tied": _rate(total["objects_predicted"] - total["objects_untied"], total["objects_predicted"]),
            "relation_accuracy": _rate(self._correct.total(), stated),
            "relations_per_caption": _rate(stated, self._captions),
            "size_accuracy": _rate(total["sizes_correct"], total["sizes_stated"]),
            "texture_accuracy": _rate(total["textures_correct"], total["textures_stated"]),
            "pointing_nouns": _rate(total["nouns_inside"], total["nouns"]),
            "pointing_words": _rate(total["words_inside"], total["words"]),
        } | of_each


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _correct_objects(parsed: ParsedCaption, objects: Sequence[SceneObject]) -> dict[int, int]:
    """Map each correctly named object of the sentence to the object of the scene, each at most once."""
    unnamed = {(thing.colour, thing.shape): index for index, thing in enumerate(objects)}
    correct = {}
    for index, said in enumerate(parsed.objects):
        true = unnamed.pop((said.colour or "", said.shape), None)
        if true is not None:
            correct[index] = true
    return correct


def _is_true(objects: Sequence[SceneObject], subject: int | None, relation: str, other: int | None) -> bool:
    return subject is not None and other is not None and holds(relation, objects[subject], objects[other])
