"""What stands in a scene and where: figures chosen and placed so that what is said about them is easy to see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.scene_backgrounds import Background
from training.scene_chance import pick
from training.scene_drawing import PAINTS, Figure, hidden_fraction, visible_box
from training.scene_objects import SIZES, TEXTURES, Box, SceneObject
from training.scene_shapes import OUTLINES, SUPPORTS

_CONTRAST = 50.0
"""Least weighted distance in RGB between a colour and the tones behind it."""

_MARGIN = 0.02
"""Least distance to the edge of the image."""

_GAP = 0.03
"""Least distance between the boxes of two objects that do not touch or overlap."""

_SUNK = 0.004
"""How far an object overlaps what carries it, so that no light shows between them."""

_LEAST_HIDDEN, _MOST_HIDDEN = 0.08, 0.28
"""The part of an object that another may cover: enough to be seen, little enough to recognise what is behind."""

_TRIES = 16


def colours_seen_on(background: Background) -> list[str]:
    """List the colours that stand out from both tones of the background."""
    tones = np.array(background.tones)
    weights = np.array((0.6, 1.0, 0.5))
    bases = {name: np.array(paint.base) for name, paint in PAINTS.items()}
    return [name for name, base in bases.items() if np.sqrt((((tones - base) * weights) ** 2).sum(1)).min() > _CONTRAST]


def _names(rng: np.random.Generator, colours: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Choose different pairs of colour and shape; in half of the scenes some share one of the two on purpose."""
    shapes = tuple(OUTLINES)
    if rng.random() < 0.42:
        some_colours = rng.permutation(len(colours))[:count].tolist()
        some_shapes = rng.permutation(len(shapes))[:count].tolist()
        return [(colours[c], shapes[s]) for c, s in zip(some_colours, some_shapes, strict=True)]
    names = [(pick(rng, colours), pick(rng, shapes))]
    while len(names) < count:
        colour, shape = pick(rng, names)
        fate = rng.random()
        name = (pick(rng, colours) if fate < 0.6 else colour, pick(rng, shapes) if fate > 0.3 else shape)
        if name not in names:
            names.append(name)
    return names


def _figure(rng: np.random.Generator, name: tuple[str, str]) -> Figure:
    size = pick(rng, tuple(SIZES))
    low, high = SIZES[size]
    return Figure(
        colour=name[0],
        shape=name[1],
        size=size,
        texture=pick(rng, TEXTURES),
        centre=(0.0, 0.0),
        extent=low + (high - low) * rng.random(),
        angle=0.0 if rng.random() < 0.6 else 0.3 * (rng.random() - 0.5),
        texture_angle=pick(rng, (0.0, 0.785, 1.571, 2.356)),
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    """A figure with the box around its whole outline, computed once: placing takes many tries."""

    figure: Figure
    box: Box

    @staticmethod
    def of(figure: Figure) -> "_Placed":
        outline = figure.outline()[0]
        (x0, y0), (x1, y1) = outline.min(0).tolist(), outline.max(0).tolist()
        return _Placed(figure, (x0, y0, x1, y1))

    def centred_at(self, x: float, y: float) -> "_Placed":
        """Return the figure moved so that the middle of its box is at (x, y)."""
        x0, y0, x1, y1 = self.box
        dx, dy = x - (x0 + x1) / 2, y - (y0 + y1) / 2
        centre = self.figure.centre[0] + dx, self.figure.centre[1] + dy
        return _Placed(replace(self.figure, centre=centre), (x0 + dx, y0 + dy, x1 + dx, y1 + dy))

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    def inside(self) -> bool:
        return min(self.box) >= _MARGIN and max(self.box) <= 1 - _MARGIN

    def clear_of(self, other: "_Placed") -> bool:
        a, b = self.box, other.box
        return a[2] + _GAP <= b[0] or b[2] + _GAP <= a[0] or a[3] + _GAP <= b[1] or b[3] + _GAP <= a[1]


def arranged_figures(rng: np.random.Generator, colours: Sequence[str]) -> list[Figure] | None:
    """Place two to four figures, each next to, on, behind or before an earlier one; None if they do not fit."""
    count = int(rng.choice((2, 3, 4), p=(0.22, 0.4, 0.38)))
    placed: list[_Placed] = []
    stacked: set[int] = set()
    overlapping: set[int] = set()
    for name in _names(rng, colours, count):
        newcomer = _Placed.of(_figure(rng, name))
        if not placed:
            placed.append(_anywhere(rng, newcomer))
            continue
        for _ in range(_TRIES):
            anchor = int(rng.random() * len(placed))
            way = pick(rng, _WAYS)
            # One object overlaps at most one other, and none that carries or rests: every box stays easy to see.
            if anchor in overlapping or (way is _overlapping and anchor in stacked):
                way = _beside
            candidate = way(rng, newcomer, placed[anchor])
            others = placed if way is _beside else placed[:anchor] + placed[anchor + 1 :]
            if candidate is not None and candidate.inside() and all(candidate.clear_of(other) for other in others):
                if way is not _beside:
                    (stacked if way is _stacked else overlapping).update((anchor, len(placed)))
                placed.append(candidate)
                break
        else:
            return None
    return [one.figure for one in placed]


def _anywhere(rng: np.random.Generator, newcomer: _Placed) -> _Placed:
    x, y = (
        _MARGIN + length / 2 + (1 - 2 * _MARGIN - length) * rng.random() for length in (newcomer.width, newcomer.height)
    )
    return newcomer.centred_at(x, y)


def _beside(rng: np.random.Generator, newcomer: _Placed, anchor: _Placed) -> _Placed:
    """Place it left, right, above or below, at some distance."""
    x0, y0, x1, y1 = anchor.box
    gap = _GAP + 0.35 * rng.random()
    slant = 1.2 * (rng.random() - 0.5)
    sign = 1 if rng.random() < 0.5 else -1
    if rng.random() < 0.5:
        along = gap + (newcomer.width + anchor.width) / 2
        return newcomer.centred_at((x0 + x1) / 2 + sign * along, (y0 + y1) / 2 + slant * along)
    along = gap + (newcomer.height + anchor.height) / 2
    return newcomer.centred_at((x0 + x1) / 2 + slant * along, (y0 + y1) / 2 + sign * along)


def _stacked(rng: np.random.Generator, newcomer: _Placed, anchor: _Placed) -> _Placed | None:
    """Rest it on the anchor; None if the two shapes do not carry each other."""
    if anchor.figure.shape not in SUPPORTS or anchor.figure.angle:
        return None
    newcomer = _Placed.of(replace(newcomer.figure, angle=0.0))
    x0, x1 = _contact(anchor, top=True)
    foot0, foot1 = _contact(newcomer, top=False)
    middle = (newcomer.box[0] + newcomer.box[2]) / 2
    if OUTLINES[newcomer.figure.shape].hollow_base or (x1 - x0 > foot1 - foot0):
        # Both feet on the surface.
        low, high = x0 - foot0 + middle, x1 - foot1 + middle
    else:
        low, high = x1 - foot1 + middle, x0 - foot0 + middle
    if low > high:
        return None
    x = (low + high) / 2 + 0.6 * min(high - low, 0.12) * (rng.random() - 0.5)
    return newcomer.centred_at(x, anchor.box[1] - newcomer.height / 2 + _SUNK)


def _contact(one: _Placed, *, top: bool) -> tuple[float, float]:
    """Return the range of x where the outline reaches the top or the bottom of its box."""
    outline = one.figure.outline()[0]
    level = one.box[1] if top else one.box[3]
    x = outline[np.abs(outline[:, 1] - level) < 0.02 * one.figure.extent, 0]
    return float(x.min()), float(x.max())


def _overlapping(rng: np.random.Generator, newcomer: _Placed, anchor: _Placed) -> _Placed | None:
    """Place it partly behind or in front of the anchor; None if too much or too little would be hidden."""
    if newcomer.figure.colour == anchor.figure.colour:
        return None
    # Around a diagonal: covered straight from the side, an object could be taken for one that stands there cut short.
    turn = np.pi / 2 * (int(4 * rng.random()) + 0.5) + 0.9 * (rng.random() - 0.5)
    share = 0.5 + 0.35 * rng.random()
    x = (anchor.box[0] + anchor.box[2]) / 2 + np.cos(turn) * share * (anchor.width + newcomer.width) / 2
    y = (anchor.box[1] + anchor.box[3]) / 2 + np.sin(turn) * share * (anchor.height + newcomer.height) / 2
    nearer = rng.random() < 0.5
    figure = replace(newcomer.figure, depth=anchor.figure.depth + (1 if nearer else -1))
    moved = _Placed(figure, newcomer.box).centred_at(float(x), float(y))
    if not moved.inside():
        return None
    back, front = (anchor, moved) if nearer else (moved, anchor)
    hidden = hidden_fraction(back.figure, front.figure)
    return moved if _LEAST_HIDDEN <= hidden <= _MOST_HIDDEN else None


_WAYS = (_beside, _beside, _stacked, _stacked, _stacked, _overlapping)


def described_objects(figures: Sequence[Figure]) -> tuple[SceneObject, ...]:
    """Describe the figures, with the box of what is visible of each."""
    placed = [_Placed.of(figure) for figure in figures]
    return tuple(
        SceneObject(
            colour=one.figure.colour,
            shape=one.figure.shape,
            size=one.figure.size,
            texture=one.figure.texture,
            box=_visible_box(one, placed),
            whole=one.box,
            depth=one.figure.depth,
        )
        for one in placed
    )


def _visible_box(one: _Placed, placed: Sequence[_Placed]) -> Box:
    for other in placed:
        if other.figure.depth > one.figure.depth and not one.clear_of(other):
            x0, y0, x1, y1 = visible_box(one.figure, other.figure)
            return max(x0, one.box[0]), max(y0, one.box[1]), min(x1, one.box[2]), min(y1, one.box[3])
    return one.box
