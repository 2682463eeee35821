"""Images with more than a class: a class for every pixel, or a list of things with their boxes and outlines.

Shape legend: H x W pixels of the image, K things in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Doc

from unmask.data.sources import Selection, Source

IGNORE = 255
"""The value of pixels in a mask that count neither in training nor in a score."""


class SegmentationSource(Source, ABC):
    """Images with a mask each: `classes` names what the values 0, 1, ... of a mask mean."""

    classes: tuple[str, ...]

    @abstractmethod
    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """The class of every pixel of the upright image, `IGNORE` where none is to be counted.

        Raises OSError or `unmask.data.decode.DecodeError` where the file cannot be used.
        """

    def some(self, indices: ArrayLike) -> SegmentationSource:
        """The images at these positions, in this order, with their masks."""
        return _SomeSegmented(self, np.asarray(indices, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class Things:
    """What is to be found in one image: boxes in pixels of the upright image, x to the right, y down."""

    boxes_K4: Annotated[Float32[np.ndarray, "K 4"], Doc("Left, top, right and bottom edge of each thing.")]
    labels_K: Annotated[Int64[np.ndarray, " K"], Doc("Position of each thing's class in the source's `classes`.")]
    masks_KHW: Annotated[
        Bool[np.ndarray, "K H W"] | None, Doc("Pixels of each thing; None where there are only boxes.")
    ]
    crowd_K: Annotated[
        Bool[np.ndarray, " K"], Doc("Whether it is a crowd, which neither counts as found nor as missed.")
    ]


class DetectionSource(Source, ABC):
    """Images with things in them: `classes` names the kinds of things."""

    classes: tuple[str, ...]
    has_masks: bool
    """Whether every thing has an outline beside its box."""

    @abstractmethod
    def things(self, index: int) -> Things:
        """What is in the image, in pixels of its upright original size. Raises as `SegmentationSource.mask`."""

    def some(self, indices: ArrayLike) -> DetectionSource:
        """The images at these positions, in this order, with their things."""
        return _SomeDetected(self, np.asarray(indices, dtype=np.int64))


class _SomeSegmented(Selection, SegmentationSource):
    classes: tuple[str, ...]

    def __init__(self, base: SegmentationSource, indices: NDArray[np.int64]) -> None:
        super().__init__(base, indices, labels=None, classes=base.classes)
        self._whole = base

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        return self._whole.mask(int(self._indices[index]))


class _SomeDetected(Selection, DetectionSource):
    classes: tuple[str, ...]

    def __init__(self, base: DetectionSource, indices: NDArray[np.int64]) -> None:
        super().__init__(base, indices, labels=None, classes=base.classes)
        self._whole = base
        self.has_masks = base.has_masks

    def things(self, index: int) -> Things:
        return self._whole.things(int(self._indices[index]))
