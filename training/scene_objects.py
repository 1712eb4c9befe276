"""What stands in a scene, and the one geometric meaning of every relation between two objects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) as fractions of the image side; y grows downwards."""

SIZES = {"small": (0.175, 0.2), "medium": (0.25, 0.285), "large": (0.35, 0.4)}
"""The longer side of an object, as a range of fractions of the image side. The gaps keep the words apart."""

TEXTURES = ("plain", "striped", "dotted", "checkered")

DIRECTIONS = ("left of", "right of", "above", "below")
RELATIONS = (*DIRECTIONS, "on", "behind", "in front of")

DOMINANCE = 1.5
"""How many times longer than the offset across it the offset along a direction must be to name that direction."""

PLAIN_DOMINANCE = 2.0
"""How many times longer it is where a sentence says so: the gap keeps what is said from resting on a hair."""

CONTACT_TOLERANCE = 0.012
"""The gap or overlap within which two boxes touch, as a fraction of the image side."""

LEAST_OVERLAP = 0.02
"""How far two boxes must overlap both ways for one object to stand behind the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One drawn object: what it is called and where it is.

    `box` is tight around the visible part, `whole` around the entire shape, hidden part included; they differ only
    for an object behind another. `depth` orders objects towards the viewer: the larger is nearer.
    """

    colour: str
    shape: str
    size: str
    texture: str
    box: Box
    whole: Box
    depth: int = 0


class Relation(NamedTuple):
    """`subject` is `name` of `object`; both ends are indices into the objects of one scene or one caption."""

    subject: int
    name: str
    object: int


def holds(relation: str, subject: SceneObject, other: SceneObject) -> bool:
    """Tell whether `subject` stands in `relation` to `other`: the only definition, for sentences and for scores.

    A direction holds where the whole boxes are apart along it (up to `CONTACT_TOLERANCE`) and the offset of their
    centres along it is `DOMINANCE` times the offset across it. `on` holds where the bottom of the subject touches the
    top of the other below the subject's centre. `behind` and `in front of` hold where the whole boxes overlap by
    `LEAST_OVERLAP` both ways and the depths differ. Raises KeyError for a name outside `RELATIONS`.
    """
    return _TESTS[relation](subject, other)


def relations_between(objects: Sequence[SceneObject]) -> tuple[Relation, ...]:
    """List every relation that holds between two of the objects."""
    return tuple(
        Relation(first, name, second)
        for first, second in permutations(range(len(objects)), 2)
        for name in RELATIONS
        if holds(name, objects[first], objects[second])
    )


def is_plain(relation: Relation, objects: Sequence[SceneObject]) -> bool:
    """Tell whether a relation that holds is plain to see: a direction has to be `PLAIN_DOMINANCE` times dominant."""
    if relation.name not in DIRECTIONS:
        return True
    a, b = objects[relation.subject].whole, objects[relation.object].whole
    across, down = abs(b[0] + b[2] - a[0] - a[2]), abs(b[1] + b[3] - a[1] - a[3])
    return max(across, down) >= PLAIN_DOMINANCE * min(across, down)


def _left(subject: SceneObject, other: SceneObject) -> bool:
    a, b = subject.whole, other.whole
    along = b[0] + b[2] - a[0] - a[2]
    across = abs(b[1] + b[3] - a[1] - a[3])
    return a[2] <= b[0] + CONTACT_TOLERANCE and along >= DOMINANCE * across


def _above(subject: SceneObject, other: SceneObject) -> bool:
    a, b = subject.whole, other.whole
    along = b[1] + b[3] - a[1] - a[3]
    across = abs(b[0] + b[2] - a[0] - a[2])
    return a[3] <= b[1] + CONTACT_TOLERANCE and along >= DOMINANCE * across


def _on(subject: SceneObject, other: SceneObject) -> bool:
    a, b = subject.whole, other.whole
    return abs(a[3] - b[1]) <= CONTACT_TOLERANCE and b[0] <= (a[0] + a[2]) / 2 <= b[2]


def _behind(subject: SceneObject, other: SceneObject) -> bool:
    a, b = subject.whole, other.whole
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return min(width, height) >= LEAST_OVERLAP and subject.depth < other.depth


_Test = Callable[[SceneObject, SceneObject], bool]


def _flipped(test: _Test) -> _Test:
    return lambda subject, other: test(other, subject)


_TESTS: dict[str, _Test] = {
    "left of": _left,
    "right of": _flipped(_left),
    "above": _above,
    "below": _flipped(_above),
    "on": _on,
    "behind": _behind,
    "in front of": _flipped(_behind),
}
