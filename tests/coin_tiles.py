"""Real photos with real masks, small: tiles of scikit-image's coins, what is a coin found by its documented recipe."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from unmask.data.annotated import IGNORE, SegmentationSource
from unmask.data.sources import ArraySource

SIDE = 64
ROWS = slice(96, 96 + 3 * SIDE)  # as in the example, without the bright upper edge, which is no coin
CLASSES = ("table", "coin")


class CoinTiles(ArraySource, SegmentationSource):
    """Eighteen tiles of 64 x 64 pixels, three rows of six."""

    classes: tuple[str, ...]

    def __init__(self, indices: tuple[int, ...] = tuple(range(18))) -> None:
        photo_HW, mask_HW = coins()
        corners = [(SIDE * (index // 6), SIDE * (index % 6)) for index in indices]
        super().__init__("coins", [photo_HW[top : top + SIDE, left : left + SIDE] for top, left in corners])
        self.classes = CLASSES
        self.masks = [mask_HW[top : top + SIDE, left : left + SIDE] for top, left in corners]

    def mask(self, index: int) -> NDArray[np.uint8]:
        """1 on coins, 0 beside, 255 on their borders."""
        return self.masks[index]


@cache
def coins() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The photo [192, 384] and its mask: Otsu's threshold, closed, holes filled, small things removed; a rim of two
    pixels is ignored. [scikit-image's examples "Label image regions" and "region-based segmentation"]"""
    from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes
    from skimage.data import coins as photo
    from skimage.filters import threshold_otsu
    from skimage.morphology import closing, footprint_rectangle, remove_small_objects

    photo_HW = photo()[ROWS]
    closed_HW = closing(photo_HW > threshold_otsu(photo_HW), footprint_rectangle((3, 3)))
    coin_HW = remove_small_objects(binary_fill_holes(closed_HW), max_size=200)
    mask_HW = coin_HW.astype(np.uint8)
    mask_HW[binary_dilation(coin_HW) & ~binary_erosion(coin_HW)] = IGNORE
    return photo_HW, mask_HW
