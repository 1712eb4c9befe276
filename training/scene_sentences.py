"""What is said about a scene: its words, and random sentences that name every object once.

    sentence  = [opening] clause {"and" object is-phrase object}
    clause    = object {"and" object} is-phrase object {"and" object} {tail}
              | relation object "is" object
              | object "with" object relation "it"
    tail      = "and" relation object            about the object the clause began with
              | "which is" relation object       about the object named last
              | "with" object relation "it"      where "it" is the object named last before "with"
    object    = article [size] [texture] colour shape

Every sentence therefore has one reading, which `training.scene_parsing.parse_caption` recovers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from training.scene_chance import pick
from training.scene_objects import DIRECTIONS, Relation, SceneObject

SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "block"),
    "triangle": ("triangle",),
    "diamond": ("diamond",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "moon": ("moon", "crescent"),
    "arch": ("arch",),
}
SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium",), "large": ("large", "big")}
TEXTURE_WORDS = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered",),
}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "on": ("on", "on top of", "resting on"),
    "behind": ("behind", "partly behind"),
    "in front of": ("in front of", "partly covering"),
}
OPENINGS = ("a picture of", "an image of", "there is", "here is", "we see", "this picture shows")

MOST_WORDS = 30

_VERBS = ("is", "is", "is", "sits")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneCaption:
    """One sentence about a scene.

    `mentions` holds for each word the index of the object it names or describes: nouns, colours, sizes and textures.
    Articles and all other words have None. `relations` are the ones stated, in the order of the sentence.
    """

    text: str
    words: tuple[str, ...]
    mentions: tuple[int | None, ...]
    relations: tuple[Relation, ...]


def write_captions(
    rng: np.random.Generator, objects: Sequence[SceneObject], facts: Sequence[Relation], count: int
) -> tuple[SceneCaption, ...] | None:
    """Write `count` different sentences that each name every object once and state only `facts`.

    Returns None if the facts do not tie the objects together well enough to find so many.
    """
    captions: dict[str, SceneCaption] = {}
    for _ in range(12 * count):
        draft = _Draft(rng, objects, facts)
        if draft.write() and len(draft.words) <= MOST_WORDS:
            caption = draft.caption()
            captions.setdefault(caption.text, caption)
        if len(captions) == count:
            return tuple(captions.values())
    return None


class _Draft:
    """A sentence while it is written: the words so far, and which objects later words may refer to."""

    def __init__(self, rng: np.random.Generator, objects: Sequence[SceneObject], facts: Sequence[Relation]) -> None:
        self.rng = rng
        self.objects = objects
        self.facts = facts
        self.words: list[str] = []
        self.mentions: list[int | None] = []
        self.stated: list[Relation] = []
        self.unnamed = set(range(len(objects)))
        self.size_share = pick(rng, (0.0, 0.3, 0.7))
        self.texture_share = pick(rng, (0.0, 0.4, 0.9))

    def caption(self) -> SceneCaption:
        return SceneCaption(
            text=" ".join(self.words),
            words=tuple(self.words),
            mentions=tuple(self.mentions),
            relations=tuple(self.stated),
        )

    def write(self) -> bool:
        """Write clauses and tails until every object is named; False in a dead end."""
        choices = self._first_clauses()
        while choices:
            choices = pick(self.rng, choices)()
            if not self.unnamed:
                return True
        return False

    # Each of the following writes one piece and returns what may come next.

    def _first_clauses(self) -> "list[_Step]":
        steps: list[_Step] = []
        for fact in self.facts:
            # Contact and occlusion are rarer than directions and say more.
            weight = 1 if fact.name in DIRECTIONS else 3
            steps += [partial(self._direct, fact)] * (3 * weight)
            steps += [partial(self._inverted, fact), partial(self._clause_with, fact)] * weight
            for twin in self.facts:
                if twin.name == fact.name and twin.object == fact.object and twin.subject != fact.subject:
                    steps += [partial(self._plural, fact, twin)] * 2
        return steps

    def _direct(self, fact: Relation) -> "list[_Step]":
        opened = self._open()
        self._name(fact.subject)
        phrase = pick(self.rng, RELATION_PHRASES[fact.name])
        if not opened and self.rng.random() < 0.75:
            self._say(self._verb(phrase))
        self._state(fact, phrase)
        shared = [partial(self._also, twin) for twin in self._about(subject=fact.subject) if twin.name == fact.name]
        return self._after_direct(fact.subject, fact.object) + 2 * shared

    def _plural(self, fact: Relation, twin: Relation) -> "list[_Step]":
        opened = self._open(OPENINGS[:2] + OPENINGS[4:])
        self._name(fact.subject)
        self._say("and")
        self._name(twin.subject)
        if not opened:
            self._say("are")
        self._state(fact, pick(self.rng, RELATION_PHRASES[fact.name]))
        self.stated.append(twin)
        return self._tails(fact.object) + self._second_clauses()

    def _inverted(self, fact: Relation) -> "list[_Step]":
        phrase = pick(self.rng, RELATION_PHRASES[fact.name])
        self._say(phrase)
        self._name(fact.object)
        self._say(self._verb(phrase))
        self._name(fact.subject)
        self.stated.append(fact)
        return self._tails(fact.subject) + self._second_clauses()

    def _clause_with(self, fact: Relation) -> "list[_Step]":
        self._open()
        self._name(fact.object)
        return self._with(fact)

    def _with(self, fact: Relation) -> "list[_Step]":
        self._say("with")
        self._name(fact.subject)
        self._say(pick(self.rng, RELATION_PHRASES[fact.name]))
        self._say("it")
        self.stated.append(fact)
        return self._second_clauses()

    def _which(self, fact: Relation) -> "list[_Step]":
        self._say(pick(self.rng, ("which is", "that is")))
        self._state(fact, pick(self.rng, RELATION_PHRASES[fact.name]))
        return self._tails(fact.object) + self._second_clauses()

    def _and(self, fact: Relation) -> "list[_Step]":
        self._say("and")
        self._state(fact, pick(self.rng, RELATION_PHRASES[fact.name]))
        return self._after_direct(fact.subject, fact.object)

    def _also(self, fact: Relation) -> "list[_Step]":
        self._say("and")
        self._name(fact.object)
        self.stated.append(fact)
        return self._tails(fact.object) + self._second_clauses()

    def _second(self, fact: Relation) -> "list[_Step]":
        self._say("and")
        self._name(fact.subject)
        phrase = pick(self.rng, RELATION_PHRASES[fact.name])
        self._say(self._verb(phrase))
        self._state(fact, phrase)
        return self._after_direct(fact.subject, fact.object)

    # What may follow.

    def _after_direct(self, subject: int, last: int) -> "list[_Step]":
        steps: list[_Step] = [partial(self._and, fact) for fact in self._about(subject=subject)]
        return 2 * steps + self._tails(last) + self._second_clauses()

    def _tails(self, last: int) -> "list[_Step]":
        steps: list[_Step] = [partial(self._which, fact) for fact in self._about(subject=last)]
        return steps + [partial(self._with, fact) for fact in self._about(other=last)]

    def _second_clauses(self) -> "list[_Step]":
        free = self.unnamed
        return [partial(self._second, fact) for fact in self.facts if fact.subject in free and fact.object in free]

    def _about(self, *, subject: int | None = None, other: int | None = None) -> list[Relation]:
        """List the facts that tie the given object to one not yet named."""
        if subject is not None:
            return [fact for fact in self.facts if fact.subject == subject and fact.object in self.unnamed]
        return [fact for fact in self.facts if fact.object == other and fact.subject in self.unnamed]

    # Words.

    def _open(self, openings: Sequence[str] = OPENINGS) -> bool:
        if self.rng.random() < 0.55:
            return False
        self._say(pick(self.rng, openings))
        return True

    def _verb(self, phrase: str) -> str:
        return "is" if phrase.startswith(("resting", "partly")) else pick(self.rng, _VERBS)

    def _say(self, text: str) -> None:
        words = text.split()
        self.words += words
        self.mentions += [None] * len(words)

    def _state(self, fact: Relation, phrase: str) -> None:
        self._say(phrase)
        self._name(fact.object)
        self.stated.append(fact)

    def _name(self, index: int) -> None:
        thing, rng = self.objects[index], self.rng
        words = []
        if rng.random() < self.size_share:
            words.append(pick(rng, SIZE_WORDS[thing.size]))
        if rng.random() < self.texture_share * (0.4 if thing.texture == "plain" else 1.0):
            words.append(pick(rng, TEXTURE_WORDS[thing.texture]))
        words += [thing.colour, pick(rng, SHAPE_WORDS[thing.shape])]
        self._say("an" if words[0][0] in "aeiou" else "a")
        self.words += words
        self.mentions += [index] * len(words)
        self.unnamed.discard(index)


_Step = Callable[[], "list[_Step]"]
