"""The outlines of the shapes in a scene: polygons around the origin whose longer side is 1; y grows downwards."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outline:
    """The polygons of one shape, float64 (N, 2) each: the outer boundary and then the holes.

    `hollow_base` says that the shape stands on two feet, so that it does not rest on a point between them.
    """

    rings: tuple[Points, ...]
    hollow_base: bool = False


def placed(points: Points, centre: tuple[float, float], extent: float, angle: float) -> Points:
    """Return the polygon turned by `angle` (radians), scaled to `extent` and moved to `centre`."""
    cosine, sine = extent * np.cos(angle), extent * np.sin(angle)
    turned: Points = points @ np.array([[cosine, sine], [-sine, cosine]])
    return turned + centre


def _arc(start: float, stop: float, radius: float = 0.5, count: int = 48) -> Points:
    """Return points on a circle from `start` to `stop` degrees, clockwise from the right as drawn."""
    angles = np.radians(np.linspace(start, stop, count))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rounded(corners: list[tuple[float, float]], radius: float) -> Points:
    """Replace each corner of the polygon by a quadratic curve that starts `radius` before it."""
    points = np.array(corners, dtype=np.float64)
    steps = np.linspace(0.0, 1.0, 6)[:, None]
    curves = []
    for before, corner, after in zip(np.roll(points, 1, 0), points, np.roll(points, -1, 0), strict=True):
        start = corner + radius * (before - corner) / np.linalg.norm(before - corner)
        stop = corner + radius * (after - corner) / np.linalg.norm(after - corner)
        curves.append((1 - steps) ** 2 * start + 2 * steps * (1 - steps) * corner + steps**2 * stop)
    return np.concatenate(curves)


def _star() -> Points:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.25)
    corners = [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]
    return _rounded(corners, 0.04)


def _cross() -> Points:
    a, b = 0.5, 0.17
    right = [(b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a)]
    return _rounded(right + [(-x, -y) for x, y in right], 0.06)


def _heart() -> Points:
    """Join two discs side by side and the tangents from them to a rounded tip."""
    radius, tip = 0.262, 0.44
    right = _arc(-160, 38, radius, count=30) + np.array((0.238, -0.19))
    left = right[::-1] * (-1, 1)
    steps = np.linspace(0, 1, 6)[:, None]
    before, corner, after = np.array([(0.05, tip - 0.05), (0.0, tip), (-0.05, tip - 0.05)])
    curve = (1 - steps) ** 2 * before + 2 * steps * (1 - steps) * corner + steps**2 * after
    return np.concatenate([right, curve, left])


def _moon() -> Points:
    """Cut a disc by a smaller disc that reaches over its edge: a crescent open to the upper right."""
    offset, radius = 0.25, 0.4
    # Where the circles of radius 0.5 around 0 and `radius` around (offset, 0) meet, seen from either centre.
    x = (0.25 - radius**2 + offset**2) / (2 * offset)
    y = np.sqrt(0.25 - x**2)
    outer = np.degrees(np.arctan2(y, x))
    inner = np.degrees(np.arctan2(y, x - offset))
    bite = _arc(360 - inner, inner, radius)[1:-1] + np.array((offset, 0.0))
    points = np.concatenate([_arc(outer, 360 - outer, count=56), bite])
    return placed(points, (0.0, 0.0), 1.0, np.radians(-35))


def _arch() -> Points:
    top = _rounded([(-0.5, 0.43), (-0.5, -0.43), (0.5, -0.43), (0.5, 0.43)], 0.07)
    hollow = _arc(0, -180, radius=0.24, count=24) + np.array((0.0, 0.12))
    return np.concatenate([top, [(0.24, 0.43)], hollow, [(-0.24, 0.43)]])


def _outline(*rings: Points, hollow_base: bool = False) -> Outline:
    low, high = rings[0].min(0), rings[0].max(0)
    scaled = tuple((ring - (low + high) / 2) / (high - low).max() for ring in rings)
    return Outline(scaled, hollow_base)


OUTLINES = {
    "circle": _outline(_arc(0, 354, count=60)),
    "square": _outline(_rounded([(0, 0), (1, 0), (1, 1), (0, 1)], 0.1)),
    "triangle": _outline(_rounded([(0.5, 0), (1.08, 1), (-0.08, 1)], 0.1)),
    "diamond": _outline(_rounded([(0.5, -0.2), (0.95, 0.5), (0.5, 1.2), (0.05, 0.5)], 0.08)),
    "star": _outline(_star(), hollow_base=True),
    "heart": _outline(_heart()),
    "cross": _outline(_cross()),
    "ring": _outline(_arc(0, 354, count=60), _arc(0, 354, radius=0.24, count=40)),
    "moon": _outline(_moon()),
    "arch": _outline(_arch(), hollow_base=True),
}

SUPPORTS = frozenset({"square", "arch", "cross", "circle", "ring"})
"""Shapes whose top can carry another object."""
