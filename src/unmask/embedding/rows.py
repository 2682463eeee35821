"""What every kind of file of features takes and gives: rows of features with position, label and name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from numpy.typing import NDArray
from typing_extensions import Doc

from unmask.embedding.header import Header


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image: where it stands in its data, its name, and its class where it has one."""

    index: Annotated[int, Doc("Position of the image in its data.")]
    path: Annotated[str, Doc("Name of the image.")]
    label: Annotated[int | None, Doc("Number of its class.")]


@dataclass(frozen=True)
class Block:
    """Features of some images, one behind the other."""

    features: NDArray[Any]
    rows: Sequence[Row]


Blocks = Callable[[], Iterator[Block]]
"""All blocks of a file, from the first on, as often as they are asked for."""


class FeatureFile(ABC):
    """A file of features that is read in blocks of bounded size.

    `starts` are the number of each block's first row, and behind them the number of rows.
    """

    path: Path
    header: Header
    starts: Sequence[int]

    @abstractmethod
    def block(self, number: int) -> NDArray[Any]:
        """The features [n, *shape] of one block."""

    @abstractmethod
    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """What is known of the images with these numbers, beside their features."""

    def __len__(self) -> int:
        return self.starts[-1]


def even_starts(rows: int, block: int) -> list[int]:
    """Where blocks of equal size begin, and the number of rows."""
    return [*range(0, rows, block), rows]
