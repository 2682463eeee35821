"""Crops of images with masks for training, as mmsegmentation cuts them, and whole images with their masks for testing.

Shape legend: B images of a batch, C channels, H x W pixels of the image (or the crop), h x w pixels after resizing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from typing_extensions import Doc

from unmask.data.annotated import IGNORE, SegmentationSource
from unmask.data.crop import Stream, sample_generator
from unmask.data.dataset import BadFile, first_usable
from unmask.data.decode import DecodeError, OpenImage
from unmask.data.loader import StepLoader, leave_signals_to_main, watched
from unmask.data.seeded import seeded
from unmask.data.segmentation import open_pair

Size = tuple[int, int]

LONGEST = 4
"""An image is resized to at most this many crops along its longer side. [mmsegmentation: 2048 for crops of 512]"""
_TRIES = 10


def covering_size(height: int, width: int, crop: Size, ratio: float = 1.0) -> Size:
    """Height and width to which an image is resized: `ratio` times the smallest size that covers the crop.

    Its aspect stays. A very long image stays smaller, see `LONGEST`.
    """
    scale = min(max(crop[0] / height, crop[1] / width), LONGEST * max(crop) / max(height, width)) * ratio
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, kw_only=True)
class SegmentationCropConfig:
    """How training crops are cut: mmsegmentation's pipeline for ADE20K, which BEiT and its heirs use."""

    scale: Annotated[
        tuple[float, float],
        Doc("Range of the image's size by the smallest that covers the crop. [mmsegmentation: ratio_range (.5, 2)]"),
    ] = (0.5, 2.0)
    largest_class: Annotated[
        float,
        Doc("Share of a crop that one class may fill; ten tries, then any crop. [mmsegmentation: cat_max_ratio .75]"),
    ] = 0.75
    flip: Annotated[float, Doc("Probability of a horizontal flip. [mmsegmentation: .5]")] = 0.5
    distortion: Annotated[
        float,
        Doc(
            "Probability of each change of brightness (12.5 %), contrast (50 %), saturation (50 %) and hue (a tenth of "
            "the circle); images of other than 1 or 3 channels do without. [mmsegmentation: .5]"
        ),
    ] = 0.5

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"the scale of training crops must be a range above 0, got {low} to {high}")
        shares = {"largest_class": self.largest_class, "flip": self.flip, "distortion": self.distortion}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True)
class SegmentationSample:
    """A crop and its mask, after the bad files met on the way to it; `pair` is None where no image was found."""

    pair: tuple[UInt8[Tensor, "C H W"], UInt8[Tensor, "H W"]] | None
    index: int
    bad: tuple[BadFile, ...]

    @property
    def empty(self) -> bool:
        """Whether no readable image was found."""
        return self.pair is None


@dataclass(frozen=True)
class SegmentationBatch:
    """Crops with the class of every pixel. `seed` makes all that is drawn from here on a function of the batch."""

    images: UInt8[Tensor, "B C H W"]
    masks: UInt8[Tensor, "B H W"]
    indices: Int64[Tensor, " B"]
    seed: int | None = None

    @property
    def size(self) -> int:
        """Number of samples B."""
        return len(self.indices)

    def to(self, device: torch.device) -> SegmentationBatch:
        """The same batch on `device`; copies overlap with computation where memory is pinned."""
        images, masks = (values.to(device, non_blocking=True) for values in (self.images, self.masks))
        return replace(self, images=images, masks=masks)

    def pin_memory(self) -> SegmentationBatch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


class SegmentationDataset(Dataset[SegmentationSample]):
    """Random crops with their masks; an item is asked for by (epoch, index).

    The image is resized at random, keeping its aspect, and cut where not one class fills the crop; then flipped, its
    colours changed, and what the image does not fill is padded at the bottom and right with the mean colour and
    `IGNORE`. All of it is a function of (seed, epoch, index). Images are resized bicubically with antialiasing (as all
    images of this package are; mmsegmentation's are bilinear without), masks by the nearest pixel.
    A bad file is replaced by another image as in `CropDataset`.
    """

    def __init__(
        self,
        source: SegmentationSource,
        crop: Size,
        config: SegmentationCropConfig,
        *,
        mean: tuple[float, ...],
        seed: int,
    ) -> None:
        """`crop` is the height and width; `mean` the images' mean by channel, in [0, 1], whose number is that of the
        channels."""
        self.source = source
        self.crop = crop
        self.config = config
        self.seed = seed
        self._fill = [round(255 * value) for value in mean]
        # Not v2.RandomPhotometricDistort: it also exchanges channels, which mmsegmentation does not.
        jitter = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1} if len(mean) in (1, 3) else {}
        self._change = v2.Compose(
            [
                v2.RandomHorizontalFlip(config.flip),
                *(v2.RandomApply([v2.ColorJitter(**{what: most})], config.distortion) for what, most in jitter.items()),
            ]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> SegmentationSample:
        epoch, index = key
        pair, used, bad = first_usable(
            self.source,
            self.seed,
            epoch,
            index,
            lambda candidate: self._cut(*open_pair(self.source, candidate), epoch, index),
        )
        return SegmentationSample(pair, used, bad)

    def _cut(
        self, opened: OpenImage, mask_HW: NDArray[np.uint8], epoch: int, index: int
    ) -> tuple[UInt8[Tensor, "C H W"], UInt8[Tensor, "H W"]]:
        generator = sample_generator(self.seed, epoch, index, Stream.CROP)
        size = covering_size(opened.height, opened.width, self.crop, float(generator.uniform(*self.config.scale)))
        decoded = opened.decode(min_size=size, channels=len(self._fill))
        image_CHW = decoded.resized((0, 0, opened.height, opened.width), *size)
        mask_1HW = F.interpolate(torch.from_numpy(mask_HW)[None, None], size=size, mode="nearest-exact")[0]
        top, left = self._place(mask_1HW[0].numpy(), generator)
        window = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
        # The transforms draw from torch's global state, which other code of the process shares.
        with seeded(int(sample_generator(self.seed, epoch, index, Stream.RETOUCH).integers(2**63 - 1))):
            image, mask = self._change(
                tv_tensors.Image(image_CHW[:, *window].contiguous()), tv_tensors.Mask(mask_1HW[:, *window].contiguous())
            )
        down, across = self.crop[0] - image.shape[1], self.crop[1] - image.shape[2]
        padded_CHW = v2.functional.pad_image(image.as_subclass(Tensor), [0, 0, across, down], fill=self._fill)
        padded_1HW = v2.functional.pad_image(mask.as_subclass(Tensor), [0, 0, across, down], fill=IGNORE)
        return padded_CHW.contiguous(), padded_1HW[0].contiguous()

    def _place(self, mask_HW: NDArray[np.uint8], generator: np.random.Generator) -> Size:
        """Top and left of a crop in which no class fills more than its share, or of the last one tried."""
        rows, columns = (max(0, have - want) for have, want in zip(mask_HW.shape, self.crop, strict=True))
        for attempt in range(_TRIES + 1):
            top, left = int(generator.integers(rows + 1)), int(generator.integers(columns + 1))
            if attempt == _TRIES or self.config.largest_class == 1:
                break
            counts = np.bincount(mask_HW[top : top + self.crop[0], left : left + self.crop[1]].ravel(), minlength=256)
            counted = counts[:IGNORE]
            if 0 < counted.max() < self.config.largest_class * counted.sum():
                break
        return top, left


def segmentation_loader(
    source: SegmentationSource,
    crop: Size,
    config: SegmentationCropConfig,
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
) -> StepLoader[SegmentationSample, SegmentationBatch]:
    """Batches of training crops (see `SegmentationDataset`) for the steps `first` to `last` - 1, as `StepLoader` has
    them."""
    return StepLoader(
        SegmentationDataset(source, crop, config, mean=mean, seed=seed),
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


@dataclass(frozen=True)
class SegmentationTestImage:
    """A whole image, resized to cover the crop, and its mask at the original size."""

    image: UInt8[Tensor, "C h w"]
    mask: UInt8[Tensor, "H W"]
    index: int


class SegmentationTestLoader:
    """The whole images of a source in its order, one `SegmentationTestImage` after the other.

    Each is resized to the smallest size that covers the crop (see `covering_size`). Bad files are left out and noted in
    `bad_files` (name to reason). Iterating raises ValueError when no image can be used, WorkerDied when a worker
    process dies.
    """

    def __init__(self, source: SegmentationSource, crop: Size, *, channels: int, workers: int) -> None:
        self.bad_files: dict[str, str] = {}
        self._dataset = _TestDataset(source, crop, channels)
        self._workers = workers

    def __len__(self) -> int:
        """Number of images, bad files among them."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[SegmentationTestImage]:
        # Images differ in size: no batches, and nothing to collate.
        loader = DataLoader(
            self._dataset, batch_size=None, num_workers=self._workers, worker_init_fn=leave_signals_to_main
        )
        found_any = False
        loaded: Any = loader
        for item in cast(Iterator[SegmentationTestImage | BadFile], watched(loaded)):
            if isinstance(item, BadFile):
                self.bad_files[item.path] = item.reason
            else:
                found_any = True
                yield item
        if not found_any:
            raise ValueError(f"no readable image with a mask in {self._dataset.source.name}")


class _TestDataset(Dataset[SegmentationTestImage | BadFile]):
    """Each image with its mask, or why it cannot be used."""

    def __init__(self, source: SegmentationSource, crop: Size, channels: int) -> None:
        self.source = source
        self._crop = crop
        self._channels = channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> SegmentationTestImage | BadFile:
        try:
            opened, mask_HW = open_pair(self.source, index)
            size = covering_size(opened.height, opened.width, self._crop)
            decoded = opened.decode(min_size=size, channels=self._channels)
        except (OSError, DecodeError) as error:
            return BadFile.of(self.source, index, error)
        image_CHW = decoded.resized((0, 0, opened.height, opened.width), *size)
        return SegmentationTestImage(image_CHW.contiguous(), torch.from_numpy(mask_HW), index)


def _batch(samples: list[SegmentationSample]) -> SegmentationBatch:
    pairs = [sample.pair for sample in samples if sample.pair is not None]
    assert len(pairs) == len(samples)
    return SegmentationBatch(
        images=torch.stack([image for image, _ in pairs]),
        masks=torch.stack([mask for _, mask in pairs]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
    )
