"""Charts as SVG, drawn with nothing but text: bars and lines, readable on light and dark pages.

Rule: a chart shows the values that it is given, in figures too; it scales nothing away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

WIDTH = 720
_LEFT = 215
_RIGHT = 90
_TOP = 46
_BAR = 22
_GAP = 8
_COLOURS = ("#2f7ed8", "#8a8f98", "#d9822b", "#5aa469", "#a05fb4", "#c0392b")
_INK = "#7a808a"
_FONT = 'font-family="system-ui, sans-serif"'


def number(value: float) -> str:
    """A value as a person reads it."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def bars(title: str, values: Mapping[str, float], unit: str, *, is_log: bool = False) -> str:
    """Horizontal bars; the first is ours. ``is_log``: lengths by magnitude, for values that are worlds apart."""
    lengths = {
        name: _magnitude(value, values.values()) if is_log else value for name, value in values.items()
    }
    longest = max(lengths.values()) or 1.0
    room = WIDTH - _LEFT - _RIGHT
    parts = []
    for index, (name, value) in enumerate(values.items()):
        y = _TOP + index * (_BAR + _GAP)
        length = max(lengths[name] / longest * room, 1.0)
        colour = _COLOURS[0 if index == 0 else 1]
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="3" fill="{colour}"/>'
        )
        parts.append(_text(_LEFT - 8, y + 15, name, "end"))
        parts.append(_text(_LEFT + length + 6, y + 15, number(value), "start"))
    height = _TOP + len(values) * (_BAR + _GAP) + 8
    scale = ", by magnitude" if is_log else ""
    return _page(title, f"{unit}{scale}", height, parts)


def _magnitude(value: float, among: Iterable[float]) -> float:
    values = [one for one in among if one > 0]
    return math.log10(value / min(values)) + 0.5 if value > 0 else 0.0


Series = Sequence[tuple[float, float]]


Scale = Callable[[float], float]


def linear(value: float) -> float:
    return value


def nines(percentile: float) -> float:
    """The scale of percentiles: 90, 99 and 99.9 are as far from each other."""
    return -math.log10(1 - percentile / 100)


def lines(
    title: str,
    series: Mapping[str, Series],
    x_name: str,
    y_name: str,
    *,
    x_scale: Scale = linear,
    y_scale: Scale = linear,
) -> str:
    """Points joined by lines, one colour each. A scale with ``math.log10`` is by magnitude; a linear y begins at 0."""
    height, bottom, left, right = 320, 40, 64, 170
    points = [point for one in series.values() for point in one]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low = min(ys) if y_scale is math.log10 else min(0.0, *ys)
    x_of = _axis(min(xs), max(xs), left, WIDTH - right, x_scale)
    y_of = _axis(low, max(ys), height - bottom, _TOP, y_scale)
    parts = []
    for y in _ticks(low, max(ys), y_scale is math.log10):
        at = y_of(y)
        parts.append(
            f'<line x1="{left}" x2="{WIDTH - right}" y1="{at:.1f}" y2="{at:.1f}" stroke="{_INK}" opacity=".25"/>'
        )
        parts.append(_text(left - 6, at + 4, number(y), "end"))
    for x in sorted(set(xs)):
        parts.append(_text(x_of(x), height - bottom + 16, f"{x:g}", "middle"))
    parts.append(_text((left + WIDTH - right) / 2, height - 6, x_name, "middle"))
    for index, (name, one) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in one)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>' for x, y in one]
        parts.append(_text(WIDTH - right + 10, _TOP + 8 + index * 20, name, "start", colour))
    return _page(title, y_name, height, parts)


def _axis(low: float, high: float, begin: float, end: float, scale: Scale) -> Scale:
    low, high = scale(low), scale(high)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return begin + (scale(value) - low) / span * (end - begin)

    return place


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
    if is_log:
        return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    step = 10 ** math.floor(math.log10(high or 1.0))
    step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if high / (step * part) <= 6)
    return [step * index for index in range(int(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="13" fill="{colour}" {_FONT}>{escape(text)}</text>'


def _page(title: str, subtitle: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<text x="12" y="20" font-size="15" font-weight="600" fill="{_INK}" {_FONT}>{escape(title)}</text>'
        f'<text x="12" y="37" font-size="12" fill="{_INK}" {_FONT}>{escape(subtitle)}</text>'
    )
    return "\n".join((head, *parts, "</svg>")) + "\n"
