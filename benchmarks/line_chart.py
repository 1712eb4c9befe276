"""A line chart as inline SVG, for pages that load nothing. It takes the colours and the font of the page around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 112, 12, 34
_TICKS = 6


def line_chart(
    series: Mapping[str, Sequence[float]], *, x: str, y: str, logarithmic: bool = False, marked: int | None = None
) -> str:
    """Draw a line for each series over 1, 2, 3, ...; what is no number, or not above 0 on a logarithmic axis, is a gap.

    x, y : what the axes show
    marked : a place on the x axis to mark
    Where there is nothing to draw, a line of text says so.
    """
    count = max(map(len, series.values()), default=0)
    shown = [value for values in series.values() for value in values if _is_shown(value, logarithmic)]
    if not shown:
        return f'<p class="chart">{escape(y)}: 0 everywhere</p>'
    axes = _Axes(count, *_range(shown, logarithmic), logarithmic)
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y)} by {escape(x)}">'
    lines = (_line(axes, *one) for one in enumerate(series.items()))
    return "\n".join([head, *_frame(axes, x), *_mark(axes, marked), *lines, "</svg>"])


class _Axes(NamedTuple):
    length: int
    low: float
    high: float
    logarithmic: bool

    def across(self, step: float) -> float:
        return _LEFT + (step - 1) / max(self.length - 1, 1) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        height = (math.log10(value) if self.logarithmic else value) - self.low
        return _HEIGHT - _BOTTOM - height / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _frame(axes: _Axes, x: str) -> Iterator[str]:
    for value in _ticks(axes.low, axes.high, axes.logarithmic):
        up = axes.up(value)
        yield f'<path class="grid" d="M{_LEFT} {up:.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 6}" y="{up + 3.5:.1f}" text-anchor="end">{value:.3g}</text>'
    for step in sorted({1, (axes.length + 1) // 2, axes.length}):
        yield f'<text x="{axes.across(step):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{step}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x)}</text>'


def _mark(axes: _Axes, place: int | None) -> Iterator[str]:
    if place is not None:
        yield f'<path class="mark" d="M{axes.across(place):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'


def _line(axes: _Axes, number: int, series: tuple[str, Sequence[float]]) -> str:
    """The line, and its name beside the chart."""
    name, values = series
    points = [
        (axes.across(step), axes.up(value)) if _is_shown(value, axes.logarithmic) else None
        for step, value in enumerate(values, start=1)
    ]
    left, up = _WIDTH - _RIGHT + 10, _TOP + 12 + 16 * number
    return (
        f'<path class="line s{number}" d="{_path(points)}"/><path class="line s{number}" d="M{left} {up - 4}h14"/>'
        f'<text x="{left + 19}" y="{up}">{escape(name)}</text>'
    )


def _is_shown(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _range(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """The ends of the axis; of a logarithmic one, whole powers of ten."""
    low, high = min(values), max(values)
    if logarithmic:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return (low, high) if low < high else (low - 1, high)


def _ticks(low: float, high: float, logarithmic: bool) -> Iterator[float]:
    if not logarithmic:
        yield from (low + (high - low) * part / 4 for part in range(5))
        return
    stride = -(-int(high - low) // _TICKS)
    yield from (10.0**power for power in range(int(low), int(high) + 1, stride))


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """A line through the points that are there; a point alone is a dot."""
    parts = []
    for before, here, after in zip([None, *points], points, [*points[1:], None], strict=False):
        if here is not None:
            parts.append(f"{'L' if before else 'M'}{here[0]:.1f} {here[1]:.1f}")
            if before is None and after is None:
                parts.append("h.1")
    return "".join(parts)
