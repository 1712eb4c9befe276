"""Points with intervals, and stacked bars, as inline SVG for pages that load nothing.

They take the colours and the font of the page around them; `benchmarks.line_chart` draws series over steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = 9
"""Classes s0 to s8; after them they begin again."""

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 12, 40
_BAR, _LABEL, _TIME = 26, 200, 76
_LABELS_APART = 28


class Point(NamedTuple):
    """A value and, where it is known, its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


Series = Mapping[str, Sequence[Point]]


class _Axes(NamedTuple):
    first: float
    last: float
    high: float
    logarithmic: bool

    def across(self, x: float) -> float:
        low, value, high = (math.log2(one) if self.logarithmic else one for one in (self.first, x, self.last))
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, y: float) -> float:
        return _HEIGHT - _BOTTOM - y / self.high * (_HEIGHT - _TOP - _BOTTOM)


def point_chart(series: Series, *, x: str, y: str, logarithmic: bool = False, dots: bool = True) -> str:
    """A line for each series, from 0 upwards, with a dot and a bar of its interval at each point.

    logarithmic : the x axis; its ticks are then the places that have points
    dots : leave them out where points are many
    """
    points = [point for found in series.values() for point in found]
    axes = _axes(points, logarithmic)
    ticks = sorted({point.x for point in points}) if logarithmic else list(_round_ticks(axes.first, axes.last))
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y)} by {escape(x)}">'
    lines = (_line(axes, number, found, dots=dots) for number, found in enumerate(series.values()))
    chart = "\n".join([head, *_frame(axes, ticks, x), *lines, "</svg>"])
    return f"{legend(list(series))}\n{chart}"


def bar_chart(bars: Mapping[str, Mapping[str, float]], *, unit: str) -> str:
    """A bar for each name, made of parts that have the same colour everywhere; its sum at its end."""
    parts = list(dict.fromkeys(part for values in bars.values() for part in values))
    longest = max(sum(values.values()) for values in bars.values())
    height = _BAR * len(bars)
    lines = [f'<svg class="chart bars" viewBox="0 0 {2 * _WIDTH} {height}" role="img" aria-label="{escape(unit)}">']
    for number, (name, values) in enumerate(bars.items()):
        lines += _bar(name, values, top=_BAR * number, scale=(2 * _WIDTH - _LABEL - _TIME) / longest, parts=parts)
    return f"{legend(parts)}\n" + "\n".join([*lines, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """The colours by name."""
    marks = (
        f'<span><svg viewBox="0 0 14 10"><rect class="f{number % COLOURS}" width="14" height="10"/></svg>'
        f"{escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(marks)}</p>'


def _axes(points: Sequence[Point], logarithmic: bool) -> _Axes:
    first, last = min(point.x for point in points), max(point.x for point in points)
    if first == last:
        first, last = (first / 2, last * 2) if logarithmic else (first - 1, last + 1)
    return _Axes(first, last, 1.05 * max(point.high or point.y for point in points), logarithmic)


def _frame(axes: _Axes, ticks: Sequence[float], x: str) -> Iterator[str]:
    for value in _round_ticks(0, axes.high):
        up = axes.up(value)
        yield f'<path class="grid" d="M{_LEFT} {up:.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 7}" y="{up + 3.5:.1f}" text-anchor="end">{value:g}</text>'
    free_from = -math.inf
    for tick in ticks:
        if (across := axes.across(tick)) >= free_from:
            yield f'<text x="{across:.1f}" y="{_HEIGHT - 23}" text-anchor="middle">{tick:g}</text>'
            free_from = across + _LABELS_APART
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x)}</text>'


def _line(axes: _Axes, number: int, points: Sequence[Point], *, dots: bool) -> str:
    places = [(axes.across(point.x), axes.up(point.y)) for point in points]
    path = "M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in places)
    drawn = [f'<path class="line s{number % COLOURS}" d="{path}"/>']
    for point, (across, up) in zip(points, places, strict=True) if dots else ():
        if point.low is not None and point.high is not None:
            interval = f"M{across:.1f} {axes.up(max(point.low, 0)):.1f}V{axes.up(point.high):.1f}"
            drawn.append(f'<path class="interval s{number % COLOURS}" d="{interval}"/>')
        drawn.append(f'<circle class="f{number % COLOURS}" cx="{across:.1f}" cy="{up:.1f}" r="3"/>')
    return "".join(drawn)


def _bar(name: str, values: Mapping[str, float], *, top: int, scale: float, parts: Sequence[str]) -> Iterator[str]:
    middle = top + _BAR / 2 + 3.5
    yield f'<text x="{_LABEL - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>'
    across = float(_LABEL)
    for part, value in values.items():
        width = value * scale
        place = f'x="{across:.2f}" y="{top + 3}" width="{width:.2f}" height="{_BAR - 6}"'
        yield f'<rect class="f{parts.index(part) % COLOURS}" {place}><title>{escape(part)} {value:.3g}</title></rect>'
        across += width
    yield f'<text x="{across + 6:.1f}" y="{middle}">{sum(values.values()):.3g}</text>'


def _round_ticks(low: float, high: float) -> Iterator[float]:
    """About five round numbers."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    number = math.ceil(low / stride)
    while number * stride <= high:
        yield number * stride
        number += 1
