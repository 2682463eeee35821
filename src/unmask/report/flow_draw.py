"""A data flow as one self-contained SVG, read from left to right: batch, views, modules, losses.

Colours follow the reader's choice of light or dark. What takes no gradient is dashed: targets, and lines along which
gradients stop. Masks go nearly everywhere, so they have no lines: what reads one carries its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Annotated

from typing_extensions import Doc

from unmask.report.flow import Flow, Node
from unmask.report.flow_layout import Layout, Place, lay_out

MARGIN, GAP, LEGEND = 16.0, 46.0, 40.0
PADDING, LINE, TAG = 11.0, 17.0, 20.0
# Width of a letter at the two sizes of type; a little more than the fonts need.
WIDE, NARROW = 8.4, 6.6

STYLE = """
.flow { --ink: #1b1c1f; --muted: #5a5d64; --line: #8a8d94; --card: #ffffff; --edge: #c9c9c2;
  --trained: #0069a8; --tint: #eaf4fb; --still: #9a5b00; --pale: #fdf6ea; --mask: #7b3f8f; --veil: #f6ecf9;
  --loss: #00714f; --glow: #e8f6f0; }
@media (prefers-color-scheme: dark) { .flow { --ink: #ececea; --muted: #a4a7ae; --line: #7d8088; --card: #191b1f;
  --edge: #41454d; --trained: #6fbdf2; --tint: #14273a; --still: #e0b060; --pale: #2a2314; --mask: #d9a8e8;
  --veil: #2c1f33; --loss: #4fd0a4; --glow: #12291f; } }
.flow text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  font-size: 12px; fill: var(--muted); }
.flow .name { font-size: 13.5px; font-weight: 620; fill: var(--ink); }
.flow rect { fill: var(--card); stroke: var(--edge); stroke-width: 1.2; }
.flow .trained rect { fill: var(--tint); stroke: var(--trained); stroke-width: 1.6; }
.flow .still rect { fill: var(--pale); stroke: var(--still); stroke-width: 1.4; stroke-dasharray: 5 3; }
.flow .loss rect { fill: var(--glow); stroke: var(--loss); stroke-width: 1.6; }
.flow .mask rect, .flow .tag rect { fill: var(--veil); stroke: var(--mask); stroke-width: 1; stroke-dasharray: none; }
.flow .tag text { fill: var(--mask); font-size: 11px; }
.flow .wire { fill: none; stroke: var(--line); stroke-width: 1.4; }
.flow .back { stroke: var(--trained); stroke-width: 1.9; }
.flow .stop { stroke: var(--still); stroke-dasharray: 5 3; }
.flow .head { fill: var(--line); stroke: none; }
.flow .head.back { fill: var(--trained); }
.flow .head.stop { fill: var(--still); }
""".strip()


@dataclass(frozen=True, kw_only=True)
class _Box:
    """A node's drawing: its lines of text below the name, and the masks that it reads."""

    node: Annotated[Node, Doc("What is drawn.")]
    lines: Annotated[tuple[str, ...], Doc("Lines below the name.")]
    masks: Annotated[tuple[str, ...], Doc("Names of masks.")]

    @property
    def size(self) -> tuple[float, float]:
        name = WIDE * len(_title(self.node))
        texts = [NARROW * len(line) for line in self.lines]
        tags = sum(NARROW * len(mask) + 20 for mask in self.masks)
        width = max(name, tags, *texts, 44.0) + 2 * PADDING
        return width, 2 * PADDING + LINE * (1 + len(self.lines)) - 3 + (TAG + 3 if self.masks else 0)


def draw_flow(flow: Flow, *, title: str) -> str:
    """The flow as an `<svg>` element for a file of its own or a page; `title` is read to those who cannot see it."""
    masks = {node.key: node.name for node in flow.nodes if node.kind == "mask"}
    boxes = {
        node.key: _Box(
            node=node,
            lines=_lines(node, again=any(other.name == node.name for other in flow.nodes[:place])),
            masks=tuple(masks[edge.source] for edge in flow.edges if edge.target == node.key and edge.source in masks),
        )
        for place, node in enumerate(flow.nodes)
    }
    wires = [edge for edge in flow.edges if edge.source not in masks]
    layout = lay_out(
        {key: box.size for key, box in boxes.items()},
        [(edge.source, edge.target) for edge in wires],
        first={node.key: 0 if node.kind == "batch" else 1 for node in flow.nodes},
        last=[node.key for node in flow.nodes if node.kind == "loss"],
        gap=GAP,
    )
    arrivals = _arrivals(layout, boxes, [(edge.source, edge.target) for edge in wires])
    width, height = layout.width + 2 * MARGIN, layout.height + 2 * MARGIN + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flow" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<g transform="translate({MARGIN:.0f} {MARGIN:.0f})">',
    ]
    for edge in wires:
        from_input = boxes[edge.source].node.kind in ("batch", "view")
        look = "back" if edge.gradient else "" if from_input else "stop"
        line = (edge.source, edge.target)
        x, y = layout.centres[edge.source]
        start = (x + boxes[edge.source].size[0] / 2, y)
        parts.append(_wire(start, layout.waypoints[line], arrivals[line], look))
    parts += [_drawn(box, layout.centres[key]) for key, box in boxes.items()]
    parts += [_legend(flow, layout.height + MARGIN + 8), "</g></svg>\n"]
    return "\n".join(parts)


def _title(node: Node) -> str:
    return node.name if node.calls == 1 else f"{node.name} ×{node.calls}"


def _lines(node: Node, *, again: bool) -> tuple[str, ...]:
    """Class and number of parameters, shape, origin; `again`: another call of a module that is drawn already."""
    size = " · same weights" if again else f" · {short_count(node.parameters)}"
    size = size if node.parameters else ""
    shape = node.shape.replace("×", " × ")
    follows = f"follows {', '.join(node.follows)}" if node.follows else ""
    return tuple(line for line in (f"{node.about}{size}", shape, follows) if line)


def short_count(value: int) -> str:
    """A number of parameters in three digits: `21.6 M`."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return str(value)


def _drawn(box: _Box, centre: Place) -> str:
    width, height = box.size
    left, top = centre[0] - width / 2, centre[1] - height / 2
    node = box.node
    look: str = node.kind
    if node.kind in ("module", "state"):
        look = "trained" if node.trained else "still"
    radius = height / 2 if node.kind == "loss" else 7
    x = centre[0]
    texts = [f'<text class="name" x="{x:.1f}" y="{top + PADDING + 11:.1f}">{escape(_title(node))}</text>']
    for index, line in enumerate(box.lines, start=1):
        texts.append(f'<text x="{x:.1f}" y="{top + PADDING + 11 + LINE * index:.1f}">{escape(line)}</text>')
    tags = []
    edge = x - sum(NARROW * len(mask) + 20 for mask in box.masks) / 2
    for mask in box.masks:
        wide = NARROW * len(mask) + 14
        y = top + height - PADDING - TAG + 3
        tags.append(
            f'<g class="tag"><rect x="{edge + 3:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{TAG:.0f}" rx="10"/>'
            f'<text x="{edge + 3 + wide / 2:.1f}" y="{y + 14:.1f}">{escape(mask)}</text></g>'
        )
        edge += wide + 6
    return (
        f'<g class="{look}" text-anchor="middle"><rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" rx="{radius:.1f}"/>{"".join(texts)}{"".join(tags)}</g>'
    )


def _arrivals(layout: Layout, boxes: dict[str, _Box], lines: list[tuple[str, str]]) -> dict[tuple[str, str], Place]:
    """Where each line ends: on the left side of its box, one below the other in the order from which they come."""
    ends: dict[tuple[str, str], Place] = {}
    for key, (x, y) in layout.centres.items():
        coming = [line for line in lines if line[1] == key]
        coming.sort(
            key=lambda line: layout.waypoints[line][-1][1][1] if layout.waypoints[line] else layout.centres[line[0]][1]
        )
        width, height = boxes[key].size
        apart = min(15.0, (height - 14) / max(1, len(coming) - 1))
        for place, line in enumerate(coming):
            ends[line] = (x - width / 2, y + (place - (len(coming) - 1) / 2) * apart)
    return ends


def _wire(start: Place, passes: Sequence[tuple[Place, Place]], end: Place, look: str) -> str:
    """A line that is flat where it leaves, passes columns and arrives, with an arrow's head at its end."""
    tip = (end[0] - 7, end[1])
    path = f"M{start[0]:.1f} {start[1]:.1f}"
    before = start
    for entry, exit_ in (*passes, (tip, tip)):
        middle = (before[0] + entry[0]) / 2
        path += f"C{middle:.1f} {before[1]:.1f} {middle:.1f} {entry[1]:.1f} {entry[0]:.1f} {entry[1]:.1f}"
        if exit_ != entry:
            path += f"H{exit_[0]:.1f}"
        before = exit_
    classes = f" {look}" if look else ""
    head = f"M{tip[0]:.1f} {tip[1] - 4.5:.1f}l8 4.5l-8 4.5z"
    return f'<path class="wire{classes}" d="{path}"/><path class="head{classes}" d="{head}"/>'


def _legend(flow: Flow, y: float) -> str:
    """What the looks mean that this picture has."""
    entries = [("trained", "gets gradients")]
    inner = {node.key: node.trained for node in flow.nodes if node.kind in ("module", "state")}
    if not all(inner.values()) or any(edge.source in inner and not edge.gradient for edge in flow.edges):
        entries.append(("still", "no gradient"))
    if any(node.kind == "mask" for node in flow.nodes):
        entries.append(("mask", "mask; its name stands where it is read"))
    entries.append(("loss", "loss"))
    parts, x = [], 0.0
    for look, words in entries:
        parts.append(
            f'<g class="{look}"><rect x="{x:.1f}" y="{y:.1f}" width="22" height="14" rx="4"/>'
            f'<text x="{x + 29:.1f}" y="{y + 11.5:.1f}">{words}</text></g>'
        )
        x += 29 + NARROW * len(words) + 22
    return "".join(parts)
