"""Line charts as inline SVG, drawn by hand so that they take the page's colours, dark or light, and stay
small.

Colours are CSS variables (`--series-0` ... `--line`, `--muted`, `--ink`) with fallbacks that read on white.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Annotated

import numpy as np
from typing_extensions import Doc

from unmask.report.text import MINUS, number

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 226
LEFT, RIGHT, BOTTOM = 50, 10, 38
LINE_HEIGHT = 18
# More points than this cannot be told apart at this width; each of so many stretches keeps its extremes.
STRETCHES = 220
# Okabe and Ito's colours, darkened for white paper; the page gives brighter ones on dark.
FALLBACKS = ("#0069a8", "#c24e00", "#00805c", "#a8487f", "#7a6200", "#555a9c")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn chart with the words around it."""

    title: Annotated[str, Doc("Heading.")]
    svg: Annotated[str, Doc("The drawing, an `<svg>` element.")]
    caption: Annotated[str, Doc("What one sees and how to read it, in plain words.")]


@dataclass(frozen=True)
class Axis:
    """How a value becomes a place between `start` and `end` of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of `value`."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values between `low` and `high`: about five, or the powers of ten of a logarithmic axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / 5))
            return [10.0**power for power in range(first, last + 1, every)]
        rough = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [tick * step for tick in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    smooth_over: int = 1,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    references: Mapping[str, float] | None = None,
    log_y: bool = False,
) -> str:
    """One line a series, as an `<svg>` element.

    Args:
        series: points (x, y) by name, sorted by x. A y that is not finite breaks the line and shows as a
        cross below.
        title: what the chart shows, for readers who cannot see it.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis, with its unit.
        smooth_over: draw the mean over so many neighbouring points as the line, and the points themselves
        faintly.
        bands: (x, low, high) by series, a range around its line such as a confidence interval.
        references: values by name, each a dashed horizontal line.
        log_y: a logarithmic vertical axis; every finite value must then be positive.
    """
    bands, references = bands or {}, references or {}
    names = [*series, *references]
    legend_rows = _legend_rows(names) if len(names) > 1 else []
    top = 24 + LINE_HEIGHT * len(legend_rows)
    smoothed = {name: smooth(points, smooth_over) for name, points in series.items()}
    x_axis = _x_axis(series)
    y_axis = _y_axis(series, smoothed, bands, references, log_y, top)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        'font-size="12" fill="var(--muted, #5c5f66)">',
        f'<text x="2" y="12">{escape(y_label)}</text>',
    ]
    broken = sum(not math.isfinite(y) for line in series.values() for _, y in line)
    if broken:
        parts.append(f'<text x="{WIDTH - RIGHT}" y="12" text-anchor="end">✕ not finite: {broken}</text>')
    for row, entries in enumerate(legend_rows):
        for index, x in entries:
            parts.append(_legend_entry(names[index], index, x, 12 + LINE_HEIGHT * (row + 1), index >= len(series)))
    parts += _frame(x_axis, y_axis, x_label)
    # A nested svg cuts off what leaves the plot, without an id that could clash with another chart's.
    x, y, width, height = LEFT - 4, top - 4, WIDTH - LEFT - RIGHT + 8, HEIGHT - BOTTOM - top + 8
    box = f'x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{x} {y} {width} {height}"'
    parts.append(f'<svg {box} overflow="hidden" fill="none" stroke-linejoin="round" stroke-linecap="round">')
    for index, (name, value) in enumerate(references.items(), start=len(series)):
        parts.append(
            f'<path d="M{LEFT} {y_axis.at(value):.1f}H{WIDTH - RIGHT}" stroke="{_colour(index)}" '
            f'stroke-width="1.5" stroke-dasharray="5 4"><title>{escape(name)}: {number(value)}</title></path>'
        )
    for index, (name, points) in enumerate(series.items()):
        parts += _drawn(index, name, points, smoothed[name], bands.get(name, ()), smooth_over, x_axis, y_axis)
    return "".join([*parts, "</svg></svg>"])


def smooth(points: Sequence[Point], over: int) -> list[Point]:
    """The mean of the finite values among the `over` points around each point (fewer at the ends)."""
    if over <= 1 or not points:
        return list(points)
    y = np.array([value for _, value in points], dtype=np.float64)
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    known = np.concatenate([[0], np.cumsum(finite)])
    place = np.arange(len(y))
    # The same reach on both sides, also near the ends: else the line would be drawn off a slope there.
    reach = np.minimum(over // 2, np.minimum(place, len(y) - 1 - place))
    first, last = place - reach, place + reach + 1
    number_known = known[last] - known[first]
    with np.errstate(invalid="ignore"):
        mean = (total[last] - total[first]) / number_known
    return [(x, float(value)) for (x, _), value in zip(points, mean, strict=True)]


def _x_axis(series: Mapping[str, Sequence[Point]]) -> Axis:
    xs = [x for points in series.values() for x, _ in points] or [0.0]
    low, high = min(xs), max(xs)
    return Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)


def _y_axis(
    series: Mapping[str, Sequence[Point]],
    smoothed: Mapping[str, Sequence[Point]],
    bands: Mapping[str, Sequence[tuple[float, float, float]]],
    references: Mapping[str, float],
    log: bool,
    top: int,
) -> Axis:
    raw = np.array([y for points in series.values() for _, y in points], dtype=np.float64)
    raw = raw[np.isfinite(raw)]
    must = [y for points in smoothed.values() for _, y in points if math.isfinite(y)]
    must += [y for points in bands.values() for _, low, high in points for y in (low, high)] + [*references.values()]
    # A few spikes must not press everything else flat; they leave the plot at its edge.
    must += np.quantile(raw, [0.01, 0.99]).tolist() if len(raw) else []
    low, high = (min(must), max(must)) if must else (0.0, 1.0)
    if log:
        return Axis(low / 1.1, high * 1.1, HEIGHT - BOTTOM, top, log=True)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    # Down to zero where zero is near, so that small changes do not look large.
    floor = 0.0 if 0 <= low < 0.4 * high else low - room
    return Axis(floor, high + room, HEIGHT - BOTTOM, top)


def _legend_rows(names: Sequence[str]) -> list[list[tuple[int, float]]]:
    rows: list[list[tuple[int, float]]] = [[]]
    x = 2.0
    for index, name in enumerate(names):
        # The width of the drawn words is not known here; 6.6 a letter is a little more than the fonts need.
        width = 34 + 6.6 * len(name)
        if rows[-1] and x + width > WIDTH:
            rows.append([])
            x = 2.0
        rows[-1].append((index, x))
        x += width
    return rows


def _legend_entry(name: str, index: int, x: float, y: float, dashed: bool) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="M{x:.0f} {y - 4:.0f}h16" stroke="{_colour(index)}" stroke-width="2.5"{dash}/>'
        f'<text x="{x + 21:.0f}" y="{y:.0f}">{escape(name)}</text>'
    )


def _frame(x_axis: Axis, y_axis: Axis, x_label: str) -> list[str]:
    x_ticks, y_ticks = x_axis.ticks(), y_axis.ticks()
    below, middle = HEIGHT - BOTTOM + 17, (LEFT + WIDTH - RIGHT) / 2
    return [
        '<g stroke="var(--line, #e2e2dd)" stroke-width="1">',
        *(f'<path d="M{LEFT} {y_axis.at(tick):.1f}H{WIDTH - RIGHT}"/>' for tick in y_ticks),
        '</g><g text-anchor="end">',
        *(
            f'<text x="{LEFT - 7}" y="{y_axis.at(tick) + 4:.1f}">{tick_text(tick, y_axis.high)}</text>'
            for tick in y_ticks
        ),
        '</g><g text-anchor="middle">',
        *(f'<text x="{x_axis.at(tick):.1f}" y="{below}">{tick_text(tick, x_axis.high)}</text>' for tick in x_ticks),
        f'<text x="{middle:.0f}" y="{HEIGHT - 4}">{escape(x_label)}</text></g>',
    ]


def _drawn(
    index: int,
    name: str,
    points: Sequence[Point],
    smoothed: Sequence[Point],
    band: Sequence[tuple[float, float, float]],
    smooth_over: int,
    x_axis: Axis,
    y_axis: Axis,
) -> list[str]:
    colour = _colour(index)
    parts: list[str] = []
    if band:
        there = [f"{x_axis.at(x):.1f} {y_axis.at(high):.1f}" for x, _, high in band]
        back = [f"{x_axis.at(x):.1f} {y_axis.at(low):.1f}" for x, low, _ in reversed(band)]
        parts.append(f'<path d="M{"L".join(there + back)}Z" fill="{colour}" opacity="0.16"/>')
    if smooth_over > 1:
        parts.append(f'<path d="{_path(points, x_axis, y_axis)}" stroke="{colour}" stroke-width="1" opacity="0.35"/>')
    parts.append(
        f'<path d="{_path(smoothed, x_axis, y_axis)}" stroke="{colour}" stroke-width="2">'
        f"<title>{escape(name)}</title></path>"
    )
    if smooth_over <= 1 and len(points) <= 20:
        parts += [
            f'<circle cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="3" fill="{colour}">'
            f"<title>{escape(name)}: {number(y)} at {number(x)}</title></circle>"
            for x, y in points
            if math.isfinite(y)
        ]
    broken = [x for x, y in points if not math.isfinite(y)]
    bottom = HEIGHT - BOTTOM
    parts += [
        f'<path d="M{x_axis.at(x) - 3:.1f} {bottom - 6}l6 6m0 -6l-6 6" stroke="{colour}" stroke-width="1.5">'
        f"<title>{escape(name)}: not finite at {number(x)}</title></path>"
        for x in broken[:: max(1, len(broken) // 40)]
    ]
    return parts


def _path(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    steps: list[str] = []
    pen = "M"
    for x, y in _thinned(points):
        if not math.isfinite(y):
            pen = "M"
            continue
        steps.append(f"{pen}{x_axis.at(x):.1f} {y_axis.at(y):.1f}")
        pen = "L"
    return "".join(steps)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most some hundred points: of each stretch its lowest and its highest, so that no spike is lost."""
    if len(points) <= 2 * STRETCHES:
        return list(points)
    kept: set[int] = {0, len(points) - 1}
    for places in np.array_split(np.arange(len(points)), STRETCHES):
        y = np.array([points[place][1] for place in places])
        finite = np.isfinite(y)
        if finite.any():
            lowest, highest = np.where(finite, y, np.inf).argmin(), np.where(finite, y, -np.inf).argmax()
            kept |= {int(places[lowest]), int(places[highest])}
        else:
            kept.add(int(places[0]))
    return [points[place] for place in sorted(kept)]


def _colour(index: int) -> str:
    place = index % len(FALLBACKS)
    return f"var(--series-{place}, {FALLBACKS[place]})"


def tick_text(value: float, largest: float) -> str:
    """A tick as short as it can be: `20k` for 20000; all with an exponent where even the largest is small."""
    value = float(f"{value:.6g}")
    if value != 0 and abs(largest) < 1e-2:
        exponent = math.floor(math.log10(abs(value)))
        return f"{number(float(f'{value / 10**exponent:.4g}'))}e{exponent}".replace("-", MINUS)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{number(value / size)}{letter}"
    return number(value)
