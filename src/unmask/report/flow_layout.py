"""Where the boxes and lines of a left-to-right graph go, in the manner of Sugiyama.

Boxes stand in columns, every line leads to a column further right. A line that passes columns gets a waypoint in each,
so that it goes around boxes; boxes and waypoints of a column are ordered so that few lines cross, and then moved up and
down towards their neighbours. Everything is a function of the input alone: ties go to who comes first.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# Orders to begin from, the given one and random ones; sweeps over the columns from each.
STARTS, SWEEPS = 40, 8
ROOM, WAYPOINT = 22.0, 12.0
# Straight long lines matter more than boxes in the middle of their neighbours.
STRAIGHT = 3.0

Place = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Centres of boxes, where lines enter and leave the columns that they pass, and the size of the whole."""

    centres: dict[str, Place]
    waypoints: dict[tuple[str, str], tuple[tuple[Place, Place], ...]]
    columns: dict[str, int]
    width: float
    height: float


@dataclass(frozen=True)
class _Dummy:
    """A waypoint of one line in one column."""

    line: tuple[str, str]
    column: int


_Item = str | _Dummy


def lay_out(
    sizes: Mapping[str, tuple[float, float]],
    lines: Sequence[tuple[str, str]],
    *,
    first: Mapping[str, int],
    last: Sequence[str],
    gap: float,
) -> Layout:
    """Places for boxes of the given (width, height).

    Args:
        sizes: width and height of each box, in the order in which boxes of a column stand at first.
        lines: pairs (from, to) without circles.
        first: the earliest column of boxes that must not stand further left.
        last: boxes that stand together in the last column.
        gap: room between columns.
    """
    columns = _columns(list(sizes), lines, first, last)
    stacks: list[list[_Item]] = [[] for _ in range(max(columns.values()) + 1)]
    for box, column in columns.items():
        stacks[column].append(box)
    links: list[tuple[_Item, _Item]] = []
    for source, target in lines:
        path: list[_Item] = [source]
        for column in range(columns[source] + 1, columns[target]):
            path.append(_Dummy((source, target), column))
            stacks[column].append(path[-1])
        links += zip(path, [*path[1:], target], strict=True)
    _order(stacks, links)
    heights = {box: height for box, (_, height) in sizes.items()}
    y = _straighten(stacks, links, heights)

    x: list[float] = []
    edge = 0.0
    widths = [max((sizes[item][0] for item in stack if isinstance(item, str)), default=0.0) for stack in stacks]
    for width in widths:
        x.append(edge + width / 2)
        edge += width + gap
    top = min(y[box] - heights[box] / 2 for box in sizes)
    top = min([top, *(place for item, place in y.items() if isinstance(item, _Dummy))])
    bottom = max(y[box] + heights[box] / 2 for box in sizes)
    bottom = max([bottom, *(place for item, place in y.items() if isinstance(item, _Dummy))])
    waypoints: dict[tuple[str, str], list[tuple[Place, Place]]] = {line: [] for line in lines}
    for stack, centre, width in zip(stacks, x, widths, strict=True):
        for item in stack:
            if isinstance(item, _Dummy):
                height = y[item] - top
                waypoints[item.line].append(((centre - width / 2, height), (centre + width / 2, height)))
    return Layout(
        centres={box: (x[columns[box]], y[box] - top) for box in sizes},
        waypoints={line: tuple(places) for line, places in waypoints.items()},
        columns=columns,
        width=edge - gap,
        height=bottom - top,
    )


def _columns(
    boxes: Sequence[str], lines: Sequence[tuple[str, str]], first: Mapping[str, int], last: Sequence[str]
) -> dict[str, int]:
    """Each box one column right of the last that leads to it."""
    columns = {box: first.get(box, 0) for box in boxes}
    for _ in boxes:
        for source, target in lines:
            columns[target] = max(columns[target], columns[source] + 1)
    end = max((columns[box] for box in last), default=0)
    return columns | dict.fromkeys(last, end)


def _neighbours(links: Sequence[tuple[_Item, _Item]], side: int) -> dict[_Item, list[_Item]]:
    """For each item those that it is linked to on the left (0) or on the right (1)."""
    found: dict[_Item, list[_Item]] = {}
    for link in links:
        found.setdefault(link[1 - side], []).append(link[side])
    return found


def _order(stacks: list[list[_Item]], links: Sequence[tuple[_Item, _Item]]) -> None:
    """Order every stack by the mean place of its neighbours, forth and back, and keep the order that crosses least."""
    sides = (_neighbours(links, 0), _neighbours(links, 1))
    best, fewest = [list(stack) for stack in stacks], _crossings(stacks, links)
    shuffling = random.Random(0)
    for start in range(STARTS):
        if start:
            for stack in stacks:
                shuffling.shuffle(stack)
        for sweep in range(SWEEPS):
            if not fewest:
                break
            _sweep(stacks, sides[sweep % 2], backwards=sweep % 2 == 1)
            crossings = _crossings(stacks, links)
            if crossings < fewest:
                best, fewest = [list(stack) for stack in stacks], crossings
    for stack, kept in zip(stacks, best, strict=True):
        stack[:] = kept


def _sweep(stacks: list[list[_Item]], neighbours: Mapping[_Item, Sequence[_Item]], *, backwards: bool) -> None:
    """Order one stack after the other by the mean place of the neighbours on the side that one comes from."""
    for stack in reversed(stacks) if backwards else stacks:
        place = {item: index for one in stacks for index, item in enumerate(one)}
        mean = {}
        for item in stack:
            others = neighbours.get(item, (item,))
            mean[item] = sum(place[other] for other in others) / len(others)
        stack.sort(key=lambda item: mean[item])


def _crossings(stacks: Sequence[Sequence[_Item]], links: Sequence[tuple[_Item, _Item]]) -> int:
    place = {item: (column, index) for column, stack in enumerate(stacks) for index, item in enumerate(stack)}
    ends = [(place[source], place[target][1]) for source, target in links]
    return sum(
        (one[1] - other[1]) * (right - other_right) < 0
        for index, (one, right) in enumerate(ends)
        for other, other_right in ends[:index]
        if one[0] == other[0]
    )


def _straighten(
    stacks: Sequence[Sequence[_Item]], links: Sequence[tuple[_Item, _Item]], heights: Mapping[str, float]
) -> dict[_Item, float]:
    """Vertical places: near the neighbours, in the order of the stack, without overlap."""

    def height(item: _Item) -> float:
        return heights[item] if isinstance(item, str) else WAYPOINT

    y: dict[_Item, float] = {}
    for stack in stacks:
        edge = -sum(height(item) + ROOM for item in stack) / 2
        for item in stack:
            y[item] = edge + height(item) / 2
            edge += height(item) + ROOM
    sides = (_neighbours(links, 0), _neighbours(links, 1))
    for sweep in range(60):
        for stack in stacks if sweep % 2 == 0 else reversed(stacks):
            wanted: list[float] = []
            weights: list[float] = []
            for item in stack:
                pulls = [
                    (y[other], STRAIGHT ** (isinstance(item, _Dummy) + isinstance(other, _Dummy)))
                    for side in sides
                    for other in side.get(item, ())
                ] or [(y[item], 0.1)]
                weights.append(sum(weight for _, weight in pulls))
                wanted.append(sum(place * weight for place, weight in pulls) / weights[-1])
            offsets = [0.0]
            for above, below in pairwise(stack):
                offsets.append(offsets[-1] + (height(above) + height(below)) / 2 + ROOM)
            level = _rising([place - offset for place, offset in zip(wanted, offsets, strict=True)], weights)
            y.update({item: place + offset for item, place, offset in zip(stack, level, offsets, strict=True)})
    return y


def _rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest values (weighted squares) that never fall: neighbours out of order meet at their mean."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, weight_one, count_one), (two, weight_two, count_two) = pools.pop(-2), pools.pop()
            total = weight_one + weight_two
            pools.append(((one * weight_one + two * weight_two) / total, total, count_one + count_two))
    return [value for value, _, count in pools for _ in range(count)]
