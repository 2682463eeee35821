"""Small scenes with exact masks and boxes, made of images that are already installed: `builtin:scenes`.

A scene is a crop of a photo with one to four emoji pasted on it: what is where is known to the pixel, and nothing is
downloaded. The photos are the two that ship with scikit-learn (china.jpg and flower.jpg, CC BY 2.0, by the Flickr users
danielbuechele and vultilion), the emoji are `builtin:emoji`. Training scenes are made of the training emoji and the
left of the photos, test scenes of the test emoji and the right: they share no emoji and no pixel. A scene is a function
of its half and its number alone, and is painted when it is asked for.
Shape legend: H x W pixels, C channels, K things.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Doc

from unmask.data.annotated import DetectionSource, SegmentationSource, Things
from unmask.data.crop import Stream, sample_generator
from unmask.data.layout import Split
from unmask.data.sources import Source, open_source

Half = Literal["train", "test"]

SIDE = 128
COUNTS: dict[Half, int] = {"train": 2000, "test": 400}
BACKGROUND = "background"

_SEED = int.from_bytes(b"scenes")  # far from the seeds that users choose, so that no crop shares its random numbers
_PHOTOS = ("china.jpg", "flower.jpg")
_BORDER = 448  # of 640 columns; what is left of it is for training
_MOST_THINGS = 4
_SIZES = (24, 72)  # of the emoji's 64 x 64 tile, in pixels
_MOST_TURN = 20.0  # degrees
_LEAST_SHARE = 0.4  # of a thing that must be visible
_LEAST_AREA = 16  # visible pixels of a thing


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scene, its arrays read-only because they are kept for the next who asks."""

    pixels_HWC: Annotated[UInt8[np.ndarray, "H W 3"], Doc("What is seen.")]
    mask_HW: Annotated[UInt8[np.ndarray, "H W"], Doc("0 where the photo is seen, else 1 + the label of the thing.")]
    things: Annotated[Things, Doc("What was pasted, from the back to the front, with what is visible of it.")]


@lru_cache(maxsize=8)  # one scene is asked for its pixels, its mask and its things
def paint_scene(half: Half, index: int) -> Scene:
    """Scene `index` of a half: the same in every process (for one version of Pillow, which turns the emoji).

    Outside all masks the pixels are the photo's own. A mask is where an emoji is more opaque than not and no later
    emoji covers it. Raises IndexError.
    """
    if not 0 <= index < COUNTS[half]:
        raise IndexError(index)
    generator = sample_generator(_SEED, list(COUNTS).index(half), index, Stream.CROP)
    canvas_HWC = _background(half, generator)
    count = int(generator.integers(1, _MOST_THINGS + 1))
    drawn = [_draw_thing(half, generator) for _ in range(count)]
    kept_K, masks_KHW = visible_parts(np.stack([tile_HWC[..., 3] > 127 for _, tile_HWC in drawn]))
    mask_HW = np.zeros((SIDE, SIDE), dtype=np.uint8)
    labels_K = np.array([drawn[place][0] for place in kept_K], dtype=np.int64)
    for place, label, visible_HW in zip(kept_K, labels_K, masks_KHW, strict=True):
        tile_HWC = drawn[place][1]
        # A thing's soft edge shows what lies behind it, be it the photo or another thing.
        _lay(canvas_HWC, tile_HWC, tile_HWC[..., 3] > 127)
        mask_HW[visible_HW] = label + 1
    things = Things(
        boxes_K4=np.array([_box(visible_HW) for visible_HW in masks_KHW], dtype=np.float32),
        labels_K=labels_K,
        masks_KHW=masks_KHW,
        crowd_K=np.zeros(len(kept_K), dtype=np.bool_),
    )
    for array in (canvas_HWC, mask_HW, things.boxes_K4, labels_K, masks_KHW, things.crowd_K):
        array.flags.writeable = False
    return Scene(pixels_HWC=canvas_HWC, mask_HW=mask_HW, things=things)


def visible_parts(
    masks_KHW: Bool[np.ndarray, "K H W"],
) -> tuple[Int64[np.ndarray, " kept"], Bool[np.ndarray, "kept H W"]]:
    """Which of these things, pasted one after the other, are worth pasting, and what is then visible of them.

    A thing stays if the later ones that stay leave at least 40 % and 16 pixels of it visible.
    """
    covered_HW = np.zeros(masks_KHW.shape[1:], dtype=np.bool_)
    kept: list[int] = []
    visible: list[NDArray[np.bool_]] = []
    for place in reversed(range(len(masks_KHW))):
        visible_HW = masks_KHW[place] & ~covered_HW
        if visible_HW.sum() >= max(_LEAST_SHARE * masks_KHW[place].sum(), _LEAST_AREA):
            kept.insert(0, place)
            visible.insert(0, visible_HW)
            covered_HW |= visible_HW
    return np.array(kept, dtype=np.int64), np.array(visible, dtype=np.bool_).reshape(-1, *covered_HW.shape)


class _Scenes(Source):
    """The scenes of one half as plain images."""

    def __init__(self, half: Half) -> None:
        self.name = f"builtin:scenes/{half}"
        self.labels = None
        self._half = half

    def __len__(self) -> int:
        return COUNTS[self._half]

    def path(self, index: int) -> str:
        return f"{self.name}/{index}"

    def read(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """The pixels of a scene, 128 x 128. Raises IndexError."""
        return paint_scene(self._half, index).pixels_HWC.copy()


class ScenesSource(_Scenes, SegmentationSource):
    """Scenes whose pixels are background or of one of the nine categories of emoji."""

    def __init__(self, half: Half) -> None:
        super().__init__(half)
        self.classes = (BACKGROUND, *_categories())

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """The class of every pixel; every pixel counts. Raises IndexError."""
        return paint_scene(self._half, index).mask_HW.copy()


class ScenesDetection(_Scenes, DetectionSource):
    """Scenes whose things are of the nine categories of emoji, with boxes tight around what is visible of them."""

    has_masks = True

    def __init__(self, half: Half) -> None:
        super().__init__(half)
        self.classes = _categories()

    def things(self, index: int) -> Things:
        """One to four things, from the back to the front, with their masks; none is a crowd. Raises IndexError."""
        found = paint_scene(self._half, index).things
        assert found.masks_KHW is not None
        return Things(
            boxes_K4=found.boxes_K4.copy(),
            labels_K=found.labels_K.copy(),
            masks_KHW=found.masks_KHW.copy(),
            crowd_K=found.crowd_K.copy(),
        )


def open_scenes_segmentation(split: Split) -> ScenesSource:
    """2,000 scenes for "train" (and "all": nothing of the test scenes may reach training), 400 for "test"."""
    return ScenesSource(_half(split))


def open_scenes_detection(split: Split) -> ScenesDetection:
    """The same scenes as `open_scenes_segmentation`, with boxes."""
    return ScenesDetection(_half(split))


def _half(split: Split) -> Half:
    return "test" if split == "test" else "train"


def _categories() -> tuple[str, ...]:
    classes = _emoji("train").classes
    assert classes is not None
    assert classes == _emoji("test").classes
    return classes


@cache
def _emoji(half: Half) -> Source:
    return open_source("builtin:emoji", split=half)


@cache
def _photos(half: Half) -> tuple[NDArray[np.uint8], ...]:
    """The left or the right of both photos, [H, W, 3]."""
    # Importing it takes seconds, which a run without scenes need not wait for.
    from sklearn.datasets import load_sample_image

    columns = slice(None, _BORDER) if half == "train" else slice(_BORDER, None)
    return tuple(np.array(load_sample_image(name)[:, columns]) for name in _PHOTOS)


def _background(half: Half, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A crop of a photo in its own size."""
    photos = _photos(half)
    photo_HWC = photos[generator.integers(len(photos))]
    top = generator.integers(photo_HWC.shape[0] - SIDE + 1)
    left = generator.integers(photo_HWC.shape[1] - SIDE + 1)
    return photo_HWC[top : top + SIDE, left : left + SIDE].copy()


def _draw_thing(half: Half, generator: np.random.Generator) -> tuple[int, NDArray[np.uint8]]:
    """A label and an emoji of it in its place on an empty canvas, RGBA."""
    source = _emoji(half)
    assert source.labels is not None
    assert source.classes is not None
    label = int(generator.integers(len(source.classes)))
    data = source.read(int(generator.choice(np.flatnonzero(source.labels == label))))
    assert isinstance(data, bytes)
    # Not `unmask.data.decode`, which lays what is transparent on white. Pillow weighs colours by alpha in between.
    with Image.open(io.BytesIO(data)) as file:
        image = file.convert("RGBA")
    size = int(generator.integers(_SIZES[0], _SIZES[1] + 1))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(generator.uniform(-_MOST_TURN, _MOST_TURN), Image.Resampling.BICUBIC, expand=True)
    tile_HWC = np.asarray(image)
    left, top, right, bottom = _box(tile_HWC[..., 3] > 127)
    tile_HWC = tile_HWC[top:bottom, left:right]
    top = int(generator.integers(SIDE - tile_HWC.shape[0] + 1))
    left = int(generator.integers(SIDE - tile_HWC.shape[1] + 1))
    canvas_HWC = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    canvas_HWC[top : top + tile_HWC.shape[0], left : left + tile_HWC.shape[1]] = tile_HWC
    return label, canvas_HWC


def _lay(canvas_HWC: NDArray[np.uint8], tile_HWC: NDArray[np.uint8], where_HW: NDArray[np.bool_]) -> None:
    """Blend an RGBA image of the canvas's size into these pixels of the canvas."""
    tile_P4 = tile_HWC[where_HW].astype(np.int32)
    alpha_P1 = tile_P4[:, 3:]
    blended_P3 = (tile_P4[:, :3] * alpha_P1 + canvas_HWC[where_HW] * (255 - alpha_P1) + 127) // 255
    canvas_HWC[where_HW] = blended_P3.astype(np.uint8)


def _box(mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of a mask that holds at least one pixel."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    assert len(rows)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
