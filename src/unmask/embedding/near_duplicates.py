"""Groups of images that are nearly the same, by the cosine of their features.

Every image is compared with every other one, block by block: the time grows with the square of the number of images,
the memory does not. Two images are in one group where a chain of pairs above the threshold leads from one to the other.

Shape legend: N, M images of two blocks, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from typing_extensions import Doc

from unmask.embedding.neighbours import Hit, as_cosine, normalised, rows_of
from unmask.embedding.rows import FeatureFile

SIDE = 2048
"""Images of a block: a product of two blocks is 16 MB."""
_ROUNDING = 1e-6
_MOST_PAIRS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that are nearly the same, in the order of the data; each with its cosine to the one most like it."""

    images: Annotated[tuple[Hit, ...], Doc("Two images at least.")]


class Groups:
    """Which of `count` images belong together, told pair by pair. Memory grows with their number alone."""

    def __init__(self, count: int) -> None:
        self._group_N = np.arange(count, dtype=np.int64)
        self._pairs: list[NDArray[np.int64]] = []
        self._waiting = 0

    def join(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Each image of `first` belongs to the one of `second` at the same place."""
        # Most pairs of a large group are known to be one already, or stand for the same two groups: so only few wait.
        one, other = self._group_N[first], self._group_N[second]
        apart = one != other
        pairs = np.unique(one[apart] * len(self._group_N) + other[apart])
        self._pairs.append(pairs)
        self._waiting += len(pairs)
        if self._waiting > _MOST_PAIRS:
            self._settle()

    def _settle(self) -> None:
        if self._waiting:
            count = len(self._group_N)
            first, second = np.divmod(np.concatenate(self._pairs), count)
            graph = coo_array((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(count, count))
            _, named = connected_components(graph, directed=False)
            self._group_N = named[self._group_N].astype(np.int64)
        self._pairs, self._waiting = [], 0

    def members(self) -> list[NDArray[np.int64]]:
        """The groups of more than one, largest first, of equal ones the first."""
        self._settle()
        order = np.argsort(self._group_N, kind="stable")
        cuts = np.flatnonzero(np.diff(self._group_N[order])) + 1
        several = [group for group in np.split(order, cuts) if len(group) > 1]
        return sorted(several, key=lambda group: (-len(group), int(group[0])))


def near_duplicates(
    files: Sequence[FeatureFile], threshold: float, report: Callable[[int, int], None] = lambda done, total: None
) -> list[Group]:
    """The groups of images whose cosine reaches `threshold`, largest first. `report` is told how many pairs of blocks
    are done, and of how many."""
    pieces = [(place, number) for place, file in enumerate(files) for number in range(len(file.starts) - 1)]
    blocks = _blocks(files, pieces)
    offsets = np.concatenate([[0], np.cumsum([sum(_size(files, piece) for piece in block) for block in blocks])])
    count = int(offsets[-1])
    groups = Groups(count)
    most_N = np.full(count, -1, dtype=np.float32)
    total, done = len(blocks) * (len(blocks) + 1) // 2, 0
    for row, block in enumerate(blocks):
        here_ND = _read(files, block)
        for column in range(row, len(blocks)):
            there_MD = here_ND if column == row else _read(files, blocks[column])
            for first, second, values in _pairs(here_ND, there_MD, threshold, same=column == row):
                one, other = first + offsets[row], second + offsets[column]
                groups.join(one, other)
                np.maximum.at(most_N, one, values)
                np.maximum.at(most_N, other, values)
            done += 1
            report(done, total)
    members = groups.members()
    starts = np.concatenate([[0], np.cumsum([len(file) for file in files])])
    chosen = [int(image) for group in members for image in group]
    places = (np.searchsorted(starts, chosen, side="right") - 1).tolist()
    rows = iter(
        rows_of(files, [(place, image - int(starts[place])) for place, image in zip(places, chosen, strict=True)])
    )
    return [
        Group(
            images=tuple(
                Hit(similarity=as_cosine(float(most_N[image])), file=file, row=row)
                for image, (file, row) in zip(group.tolist(), rows, strict=False)
            )
        )
        for group in members
    ]


def _size(files: Sequence[FeatureFile], piece: tuple[int, int]) -> int:
    place, number = piece
    return files[place].starts[number + 1] - files[place].starts[number]


def _blocks(files: Sequence[FeatureFile], pieces: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Neighbouring pieces of files put together to blocks of about `SIDE` images."""
    blocks: list[list[tuple[int, int]]] = []
    room = 0
    for piece in pieces:
        size = _size(files, piece)
        if not blocks or size > room:
            blocks.append([])
            room = SIDE
        blocks[-1].append(piece)
        room -= size
    return blocks


def _read(files: Sequence[FeatureFile], block: list[tuple[int, int]]) -> NDArray[np.float32]:
    return np.concatenate([normalised(files[place].block(number)) for place, number in block])


def _pairs(
    here_ND: NDArray[np.float32], there_MD: NDArray[np.float32], threshold: float, *, same: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Positions and cosines of the pairs that reach the threshold, each pair once, tile by tile."""
    for top in range(0, len(here_ND), SIDE):
        for left in range(top if same else 0, len(there_MD), SIDE):
            cosine_NM = here_ND[top : top + SIDE] @ there_MD[left : left + SIDE].T
            near_NM = cosine_NM >= threshold - _ROUNDING
            if same and left == top:
                near_NM = np.triu(near_NM, 1)
            # In one dimension NumPy counts bits; in two it looks at every place.
            flat = np.flatnonzero(near_NM)
            if len(flat):
                first, second = np.divmod(flat, near_NM.shape[1])
                yield first + top, second + left, cosine_NM[first, second]
