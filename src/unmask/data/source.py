"""What a source of images is: a fixed sequence, read at any position, with labels and captions where it has some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask.data.captions import Captions
from unmask.data.decode import OpenImage, open_image
from unmask.data.layout import Layout, Split
from unmask.data.stored import PixelRange


class Source(ABC):
    """A fixed sequence of images, encoded or already decoded.

    `labels` are positions in `classes`, one an image, or None when the images have no classes. `shards` are the first
    positions of the parts within which neighbours are read much more cheaply than elsewhere, ascending and beginning
    with 0, or None where any order is as good as another. `pixel_range` says what becomes black and white in images of
    more than 8 bits (`unmask.data.pixel_range.in_range` sets it).
    """

    name: str
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    shards: NDArray[np.int64] | None = None
    pixel_range: PixelRange | None = None
    kind: str = "images"
    """What it is, for people."""
    channel_names: tuple[str, ...] | None = None
    """Where each channel is a file of its own: what they are called."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, index: int) -> str:
        """Name of the image for logs and reports; always printable."""

    @abstractmethod
    def read(self, index: int) -> bytes | NDArray[Any]:
        """The bytes of an image file, or decoded pixels [H, W, C] of whatever type. Raises OSError, DecodeError."""

    def open(self, index: int) -> OpenImage:
        """The image with its size, its pixels maybe still to be decoded. Raises OSError, DecodeError."""
        return open_image(self.read(index), self.pixel_range)

    def captions(self) -> Captions | None:
        """Texts about each image, maybe none for some; None where the source has no captions at all. ValueError where
        they cannot be read."""
        return None

    def subset(self, indices: ArrayLike) -> Source:
        """The images at these positions, in this order, with their labels."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Selection(self, chosen, labels=labels, classes=self.classes)


class Selection(Source):
    """Some images of another source, possibly with labels of their own."""

    def __init__(
        self,
        base: Source,
        indices: NDArray[np.int64],
        *,
        labels: NDArray[np.int64] | None,
        classes: tuple[str, ...] | None,
    ) -> None:
        self.name = base.name
        self.labels = labels
        self.classes = classes
        self.shards = None if base.shards is None else _shards_of(base.shards, indices)
        self.pixel_range = base.pixel_range
        self.channel_names = base.channel_names
        self.kind = base.kind
        self._base = base
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def path(self, index: int) -> str:
        return self._base.path(int(self._indices[index]))

    def read(self, index: int) -> bytes | NDArray[Any]:
        return self._base.read(int(self._indices[index]))

    def captions(self) -> Captions | None:
        captions = self._base.captions()
        return None if captions is None else tuple(captions[index] for index in self._indices.tolist())


def _shards_of(shards: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Where in a selection each shard begins that it takes images from; None where it goes back and forth."""
    steps = np.diff(np.searchsorted(shards, indices, side="right"))
    if not len(indices) or np.any(steps < 0):
        return None
    return np.concatenate(([0], np.flatnonzero(steps) + 1)).astype(np.int64)


def select(base: Source, layout: Layout, spec: str, split: Split) -> Source:
    """The images of one split. ValueError where there is none."""
    if not len(layout.indices):
        raise ValueError(f"{spec} has no images for the split {split}: it holds only {len(base)}")
    return Selection(base, layout.indices, labels=layout.labels, classes=layout.classes)
