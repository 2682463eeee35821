"""Real photos with real things, small: parts of scikit-image's coins, each coin found by its documented recipe.

[scikit-image's example "Label image regions": Otsu's threshold, closing, connected regions]
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from unmask.data.annotated import DetectionSource, Things
from unmask.data.sources import ArraySource

HEIGHT, WIDTH = 100, 128
"""Of a part; the photo has three rows of three."""
LEAST_SHARE = 0.4  # of a coin that must lie in a part


class CoinParts(ArraySource, DetectionSource):
    """Parts of the photo with two to four coins each, of one class, with outlines; or without, for boxes alone.

    The part at the top left is left out: its coins are as bright as the table, and the threshold finds none.
    """

    classes: tuple[str, ...]

    def __init__(self, indices: tuple[int, ...] = tuple(range(1, 9)), *, outlines: bool = True) -> None:
        photo_HW, labels_HW = coins()
        corners = [(HEIGHT * (index // 3), WIDTH * (index % 3)) for index in indices]
        parts = [(slice(top, top + HEIGHT), slice(left, left + WIDTH)) for top, left in corners]
        super().__init__("coins", [photo_HW[part] for part in parts])
        self.classes = ("coin",)
        self.has_masks = outlines
        self._things = [_things(labels_HW[part], np.bincount(labels_HW.ravel()), outlines) for part in parts]

    def things(self, index: int) -> Things:
        """The coins of a part."""
        return self._things[index]


def _things(labels_HW: NDArray[np.int32], areas: NDArray[np.int64], outlines: bool) -> Things:
    found = [label for label in np.unique(labels_HW) if label]
    masks = [labels_HW == label for label in found if (labels_HW == label).sum() >= LEAST_SHARE * areas[label]]
    boxes = [(*np.argwhere(mask).min(axis=0)[::-1], *(np.argwhere(mask).max(axis=0)[::-1] + 1)) for mask in masks]
    return Things(
        boxes_K4=np.array(boxes, dtype=np.float32),
        labels_K=np.zeros(len(masks), dtype=np.int64),
        masks_KHW=np.array(masks) if outlines else None,
        crowd_K=np.zeros(len(masks), dtype=np.bool_),
    )


@cache
def coins() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The photo [303, 384] and the number of the coin that each pixel belongs to, 0 for none."""
    from scipy.ndimage import binary_fill_holes
    from skimage.data import coins as photo
    from skimage.filters import threshold_otsu
    from skimage.measure import label
    from skimage.morphology import closing, footprint_rectangle, remove_small_objects
    from skimage.segmentation import clear_border

    photo_HW = photo()
    closed_HW = closing(photo_HW > threshold_otsu(photo_HW), footprint_rectangle((3, 3)))
    whole_HW = remove_small_objects(binary_fill_holes(clear_border(closed_HW)), max_size=100)
    return photo_HW, label(whole_HW)
