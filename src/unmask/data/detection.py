"""Canvases with things: random ones for training by large-scale jitter, whole images for testing.

Shape legend: B images of a batch, C channels, H x W pixels of the canvas, h x w pixels of the image, K things in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F
from typing_extensions import Doc

from unmask.data.annotated import DetectionSource, Things
from unmask.data.crop import Stream, sample_generator
from unmask.data.dataset import BadFile, first_usable
from unmask.data.decode import DecodeError, OpenImage
from unmask.data.loader import StepLoader, leave_signals_to_main, watched

Size = tuple[int, int]

LEAST_SIDE = 1.0
"""Things of fewer canvas pixels a side are left out of training, as their boxes would have next to no area."""


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Large-scale jitter: the image is resized at random, flipped, and cut to the canvas or padded."""

    scale: Annotated[
        tuple[float, float],
        Doc("Range of the image's size by the largest that fits into the canvas. [ViTDet: LSJ, .1 to 2]"),
    ] = (0.1, 2.0)
    flip: Annotated[float, Doc("Probability of a horizontal flip. [.5]")] = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"the jitter's scale must be a range above 0, got {self.scale[0]} to {self.scale[1]}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must lie in [0, 1], got {self.flip}")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The things of one canvas: boxes in its pixels, classes from 0, pixels (where the data has outlines)."""

    boxes_K4: Float[Tensor, "K 4"]
    labels_K: Int64[Tensor, " K"]
    masks_KHW: UInt8[Tensor, "K H W"] | None

    def to(self, device: torch.device) -> Target:
        """The same on `device`."""
        masks = None if self.masks_KHW is None else self.masks_KHW.to(device, non_blocking=True)
        boxes, labels = (values.to(device, non_blocking=True) for values in (self.boxes_K4, self.labels_K))
        return Target(boxes_K4=boxes, labels_K=labels, masks_KHW=masks)

    def pin_memory(self) -> Target:
        """The same in page-locked memory."""
        masks = None if self.masks_KHW is None else self.masks_KHW.pin_memory()
        return Target(boxes_K4=self.boxes_K4.pin_memory(), labels_K=self.labels_K.pin_memory(), masks_KHW=masks)


@dataclass(frozen=True)
class DetectionSample:
    """A canvas and its things, after the bad files met on the way to it; `pair` is None where no image was found."""

    pair: tuple[UInt8[Tensor, "C H W"], Target] | None
    index: int
    bad: tuple[BadFile, ...]

    @property
    def empty(self) -> bool:
        """Whether no readable image was found."""
        return self.pair is None


@dataclass(frozen=True)
class DetectionBatch:
    """Canvases with their things. `seed` makes all that is drawn from here on a function of the batch."""

    images: UInt8[Tensor, "B C H W"]
    targets: tuple[Target, ...]
    indices: Int64[Tensor, " B"]
    seed: int | None = None

    @property
    def size(self) -> int:
        """Number of samples B."""
        return len(self.indices)

    def to(self, device: torch.device) -> DetectionBatch:
        """The same batch on `device`; copies overlap with computation where memory is pinned."""
        targets = tuple(target.to(device) for target in self.targets)
        return replace(self, images=self.images.to(device, non_blocking=True), targets=targets)

    def pin_memory(self) -> DetectionBatch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        targets = tuple(target.pin_memory() for target in self.targets)
        return replace(self, images=self.images.pin_memory(), targets=targets)


class DetectionDataset(Dataset[DetectionSample]):
    """Canvases by large-scale jitter with their things; an item is asked for by (epoch, index).

    What a canvas shows is a function of (seed, epoch, index). What the image does not fill, at the bottom and right,
    has the mean colour. Crowds are left out, as are things of which less than a pixel is left. A thing that is cut
    keeps the box of what is left of its outline (ViTDet's `recompute_boxes`), or of what is left of its box where the
    data has no outlines. A bad file is replaced by another image as in `CropDataset`.
    """

    def __init__(
        self, source: DetectionSource, canvas: Size, config: JitterConfig, *, mean: tuple[float, ...], seed: int
    ) -> None:
        """`canvas` is the height and width; `mean` the images' mean by channel, in [0, 1], whose number is that of the
        channels."""
        self.source = source
        self.canvas = canvas
        self.config = config
        self.seed = seed
        self._mean = mean

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> DetectionSample:
        epoch, index = key

        def cut(candidate: int) -> tuple[UInt8[Tensor, "C H W"], Target]:
            opened, things = open_things(self.source, candidate)
            # The jitter is the sample's own: a replacement must not repeat one of this epoch.
            generator = sample_generator(self.seed, epoch, index, Stream.CROP)
            return jittered(opened, things, self.canvas, self.config, self._mean, generator)

        pair, used, bad = first_usable(self.source, self.seed, epoch, index, cut)
        return DetectionSample(pair, used, bad)


def open_things(source: DetectionSource, index: int) -> tuple[OpenImage, Things]:
    """An image, of a JPEG only its header, and what is in it.

    Raises OSError and DecodeError, the latter also where outlines or boxes are for an image of another size.
    """
    opened, things = source.open(index), source.things(index)
    size = (opened.height, opened.width)
    masks, boxes = things.masks_KHW, things.boxes_K4
    if (masks is not None and masks.shape[1:] != size) or (boxes.max(axis=0, initial=0)[2:] > size[::-1]).any():
        raise DecodeError(f"what is marked in it does not fit into its {size[1]} x {size[0]} pixels")
    return opened, things


def jittered(
    opened: OpenImage,
    things: Things,
    canvas: Size,
    config: JitterConfig,
    mean: tuple[float, ...],
    generator: np.random.Generator,
) -> tuple[UInt8[Tensor, "C H W"], Target]:
    """A canvas cut from the image at a random scale, and the things on it (see `DetectionDataset`).

    Raises DecodeError.
    """
    size = fitting_size(opened.height, opened.width, canvas, float(generator.uniform(*config.scale)))
    flipped = generator.random() < config.flip
    top, left = (int(generator.integers(max(0, have - want) + 1)) for have, want in zip(size, canvas, strict=True))
    window = (top, left, min(size[0], canvas[0]), min(size[1], canvas[1]))
    image_CHW = opened.decode(min_size=size, channels=len(mean)).resized((0, 0, opened.height, opened.width), *size)
    kept = ~things.crowd_K
    sample: dict[str, Any] = {
        "image": tv_tensors.Image(image_CHW),
        "boxes": F.resize(
            tv_tensors.BoundingBoxes(
                torch.from_numpy(things.boxes_K4[kept]), format="XYXY", canvas_size=(opened.height, opened.width)
            ),
            list(size),
        ),
        "labels": torch.from_numpy(things.labels_K[kept]),
    }
    if things.masks_KHW is not None:
        masks_KHW = torch.from_numpy(things.masks_KHW[kept].astype(np.uint8))
        # torchvision's way with masks is "nearest", which moves them by up to half a pixel.
        resized = F.resize_image(masks_KHW, list(size), interpolation=InterpolationMode.NEAREST_EXACT)
        sample["masks"] = tv_tensors.Mask(resized)
    for name in sample.keys() - {"labels"}:
        if flipped:
            sample[name] = F.horizontal_flip(sample[name])
        sample[name] = F.crop(sample[name], *window)
    sample = v2.SanitizeBoundingBoxes(min_size=LEAST_SIDE)(sample)
    boxes, labels, masks = sample["boxes"].as_subclass(Tensor), sample["labels"], None
    if "masks" in sample:
        left_K = (sample["masks"].as_subclass(Tensor) > 0).flatten(1).any(dim=1)
        masks, labels = sample["masks"].as_subclass(Tensor)[left_K], labels[left_K]
        # The box ends behind its last pixel.
        boxes = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        masks = F.pad_image(masks, [0, 0, canvas[1] - window[3], canvas[0] - window[2]]).contiguous()
    target = Target(boxes_K4=boxes.float(), labels_K=labels, masks_KHW=masks)
    return on_canvas(sample["image"].as_subclass(Tensor), canvas, mean), target


def fitting_size(height: int, width: int, canvas: Size, ratio: float = 1.0) -> Size:
    """Height and width to which an image is resized: `ratio` times the largest that fits into the canvas."""
    scale = ratio * min(canvas[0] / height, canvas[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def on_canvas(image_CHW: UInt8[Tensor, "C h w"], canvas: Size, mean: tuple[float, ...]) -> UInt8[Tensor, "C H W"]:
    """The image at the top left of a canvas of the mean colour."""
    across, down = canvas[1] - image_CHW.shape[2], canvas[0] - image_CHW.shape[1]
    fill = [round(255 * value) for value in mean]
    return F.pad_image(image_CHW, [0, 0, across, down], fill=fill).contiguous()


def detection_loader(
    source: DetectionSource,
    canvas: Size,
    config: JitterConfig,
    *,
    mean: tuple[float, ...],
    first: int,
    last: int,
    batch_size: int,
    seed: int,
    workers: int,
    parts: int = 1,
    mine: range | None = None,
    pin_memory: bool = False,
    max_bad_share: float = 0.1,
) -> StepLoader[DetectionSample, DetectionBatch]:
    """Batches of training canvases (see `DetectionDataset`) for the steps `first` to `last` - 1, as `StepLoader` has
    them."""
    return StepLoader(
        DetectionDataset(source, canvas, config, mean=mean, seed=seed),
        _batch,
        name=source.name,
        size=len(source),
        batch_size=batch_size,
        total_steps=last,
        start_step=first,
        seed=seed,
        workers=workers,
        parts=parts,
        mine=mine,
        pin_memory=pin_memory,
        max_bad_share=max_bad_share,
    )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an image lies on its canvas: at the top left, resized."""

    height: Annotated[int, Doc("Height of the original image, in pixels.")]
    width: Annotated[int, Doc("Width of the original image, in pixels.")]
    shown_height: Annotated[int, Doc("Height of the image on the canvas, in pixels.")]
    shown_width: Annotated[int, Doc("Width of the image on the canvas, in pixels.")]


def fit_of(height: int, width: int, canvas: Size) -> Fit:
    """How an image of this size lies on the canvas: as large as the canvas holds it."""
    shown_height, shown_width = fitting_size(height, width, canvas)
    return Fit(height=height, width=width, shown_height=shown_height, shown_width=shown_width)


@dataclass(frozen=True)
class DetectionTestBatch:
    """Whole images on canvases, their positions in the source, and what is in them in pixels of the original."""

    images: UInt8[Tensor, "B C H W"]
    fits: tuple[Fit, ...]
    things: tuple[Things, ...]
    indices: tuple[int, ...]


class DetectionTestLoader:
    """The whole images of a source in its order, each as large as the canvas holds it.

    Bad files are left out and noted in `bad_files` (name to reason), so a batch may be smaller. Iterating raises
    ValueError when no image can be used, WorkerDied when a worker process dies.
    """

    def __init__(
        self, source: DetectionSource, canvas: Size, *, mean: tuple[float, ...], batch_size: int, workers: int
    ) -> None:
        self.bad_files: dict[str, str] = {}
        self._dataset = _TestDataset(source, canvas, mean)
        self._batch_size = batch_size
        self._workers = workers

    def __iter__(self) -> Iterator[DetectionTestBatch]:
        # Lists of what the workers made, as bad files leave holes and things differ in number.
        loader = DataLoader(
            self._dataset,
            batch_size=self._batch_size,
            collate_fn=list,
            num_workers=self._workers,
            worker_init_fn=leave_signals_to_main,
        )
        found_any = False
        loaded: Any = loader
        for items in cast(Iterator[list[_TestItem | BadFile]], watched(loaded)):
            self.bad_files |= {item.path: item.reason for item in items if isinstance(item, BadFile)}
            whole = [item for item in items if not isinstance(item, BadFile)]
            if whole:
                found_any = True
                images, fits, things, indices = zip(*whole, strict=True)
                yield DetectionTestBatch(torch.stack(images), fits, things, indices)
        if not found_any:
            raise ValueError(f"no readable image in {self._dataset.source.name}")


_TestItem = tuple[Tensor, Fit, Things, int]


class _TestDataset(Dataset[_TestItem | BadFile]):
    """Each image on its canvas with its things, or why it cannot be used."""

    def __init__(self, source: DetectionSource, canvas: Size, mean: tuple[float, ...]) -> None:
        self.source = source
        self._canvas = canvas
        self._mean = mean

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _TestItem | BadFile:
        try:
            opened, things = open_things(self.source, index)
            fit = fit_of(opened.height, opened.width, self._canvas)
            size = (fit.shown_height, fit.shown_width)
            decoded = opened.decode(min_size=size, channels=len(self._mean))
        except (OSError, DecodeError) as error:
            return BadFile.of(self.source, index, error)
        image_CHW = decoded.resized((0, 0, fit.height, fit.width), *size)
        return on_canvas(image_CHW, self._canvas, self._mean), fit, things, index


def _batch(samples: list[DetectionSample]) -> DetectionBatch:
    pairs = [sample.pair for sample in samples if sample.pair is not None]
    assert len(pairs) == len(samples)
    return DetectionBatch(
        images=torch.stack([image for image, _ in pairs]),
        targets=tuple(target for _, target in pairs),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
    )
