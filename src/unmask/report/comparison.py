"""A comparison of encoders as words and as a drawing.

Text goes into Markdown and the terminal; the drawing is a dot plot with 95 % intervals as self-contained SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from unmask.evaluation.metrics import Score, gap_noise
from unmask.report.text import DASH, interval

ROW, LEFT, RIGHT, TOP, WIDTH = 22, 150, 20, 44, 720
COLOURS = ("#0069a8", "#c24e00")


@dataclass(frozen=True)
class Line:
    """One encoder: its name, its score by each protocol, and what else is to be said."""

    name: str
    scores: Mapping[str, Score]
    rank: float | None
    floor: bool
    note: str


def versus(line: Line, other: Line, protocol: str) -> str:
    """`line` against `other` in a word: above, below or even (a difference within the noise)."""
    first, second = line.scores[protocol], other.scores[protocol]
    gap = first.top1 - second.top1
    if abs(gap) <= gap_noise(first, second):
        return "even"
    return "above" if gap > 0 else "below"


def ordered(lines: Sequence[Line], protocol: str) -> list[Line]:
    """Floors first, then the rest by score, then those without scores."""
    floors = [line for line in lines if line.floor]
    scored = [line for line in lines if line.scores and not line.floor]
    return [
        *floors,
        *sorted(scored, key=lambda line: -line.scores[protocol].top1),
        *(line for line in lines if not line.scores),
    ]


def markdown(lines: Sequence[Line], protocols: Sequence[str]) -> str:
    """The table: scores with intervals, and whether each differs from the random start beyond the noise."""
    start = next(line for line in lines if line.floor and line.name == "random start")
    header = ["encoder"]
    for protocol in protocols:
        header += [f"{protocol} top-1 %", "95 % interval", "against random start"]
    header += ["effective rank", ""]
    rows = [header, ["---"] * len(header)]
    for line in ordered(lines, protocols[-1]):
        row = [line.name]
        for protocol in protocols:
            if protocol not in line.scores:
                row += [DASH] * 3
                continue
            score = line.scores[protocol]
            against = DASH if line.floor else versus(line, start, protocol)
            row += [f"{score.top1:.1f}", interval(*score.interval), against]
        row += [DASH if line.rank is None else f"{line.rank:.1f}", line.note]
        rows.append(row)
    return "\n".join("| " + " | ".join(map(in_markdown, row)) + " |" for row in rows) + "\n"


def in_markdown(text: str) -> str:
    """Text on one line in which nothing is markup, neither Markdown's links and pictures nor HTML."""
    plain = escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\|[]`*<>" else letter for letter in plain)


def sentences(lines: Sequence[Line], protocol: str) -> list[str]:
    """What the scores by one protocol say, and what they leave open."""
    scored = [line for line in ordered(lines, protocol) if line.scores and not line.floor]
    if not scored:
        return []
    best, *rest = scored
    even = [line.name for line in rest if versus(line, best, protocol) == "even"]
    said = f"By {protocol}, {best.name} is best with {best.scores[protocol].top1:.1f} %"
    if even:
        said += f"; within the noise of it: {', '.join(even)}"
    start = next(line for line in lines if line.floor and line.name == "random start")
    not_better = [line.name for line in scored if versus(line, start, protocol) != "above"]
    found = [said + "."]
    if not_better:
        found.append(f"Not above the random start beyond the noise: {', '.join(not_better)}.")
    return found


def dot_plot(lines: Sequence[Line], protocols: Sequence[str]) -> str:
    """One row an encoder, one dot with its interval a protocol; the floors as dashed lines."""
    shown = [line for line in ordered(lines, protocols[-1]) if line.scores]
    ends = [end for line in shown for score in line.scores.values() for end in score.interval]
    low, high = math.floor(min(ends) / 5) * 5, math.ceil(max(ends) / 5) * 5
    height = TOP + ROW * len(shown) + 30

    def at(value: float) -> float:
        return LEFT + (value - low) / max(high - low, 1) * (WIDTH - LEFT - RIGHT)

    bottom = height - 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Accuracy of each encoder with its 95 % interval" font-family="system-ui, sans-serif" '
        'font-size="13"><style>text{fill:#5c5f66}@media(prefers-color-scheme:dark){text{fill:#b8bac0}}</style>'
    ]
    for tick in range(low, high + 1, 5):
        parts.append(
            f'<path d="M{at(tick):.1f} {TOP - 8}V{bottom}" stroke="#8888" stroke-width=".5"/>'
            f'<text x="{at(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick}</text>'
        )
    for index, protocol in enumerate(protocols):
        x = LEFT + 170 * index
        parts.append(
            f'<circle cx="{x}" cy="14" r="4.5" fill="{COLOURS[index % 2]}"/>'
            f'<text x="{x + 10}" y="18">{escape(protocol)} top-1, %</text>'
        )
    for row, line in enumerate(shown):
        y = TOP + ROW * row + 6
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(line.name)}</text>')
        for index, protocol in enumerate(protocols):
            score, colour = line.scores[protocol], COLOURS[index % 2]
            offset = y + (index - (len(protocols) - 1) / 2) * 7
            title = f"{line.name}, {protocol}: {score.top1:.1f} % ({interval(*score.interval)})"
            parts.append(
                f"<g><title>{escape(title)}</title>"
                f'<path d="M{at(score.interval[0]):.1f} {offset:.1f}H{at(score.interval[1]):.1f}" stroke="{colour}" '
                f'stroke-width="2"/><circle cx="{at(score.top1):.1f}" cy="{offset:.1f}" r="3.6" fill="{colour}"/></g>'
            )
    return "".join([*parts, "</svg>\n"])
