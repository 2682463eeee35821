"""One image after another as crops, with a stand-in or a note for each file that cannot be used.

Shape legend: V crops of one image, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from unmask.data.batch import CropConfig
from unmask.data.crop import Stream, center_crop, crop_image, sample_generator
from unmask.data.decode import DecodeError, PixelMemory
from unmask.data.sources import Source

T = TypeVar("T")
_REPLACEMENTS = 32


@dataclass(frozen=True)
class BadFile:
    """A file that could not be used: its position in the source, its name, and why."""

    index: int
    path: str
    reason: str

    @classmethod
    def of(cls, source: Source, index: int, error: OSError | DecodeError) -> BadFile:
        """The note for an error met while reading or decoding."""
        # An OSError's own text repeats the path.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return cls(index, source.path(index), reason)


@dataclass(frozen=True)
class Sample:
    """The crops of one image, by groups, after the bad files met on the way to it.

    `index` is the image really used. `crops` is empty when none was found.
    """

    crops: tuple[UInt8[Tensor, "_ C _ _"], ...]
    boxes: tuple[Float[Tensor, "_ 6"], ...]
    index: int
    bad: tuple[BadFile, ...]

    @property
    def empty(self) -> bool:
        """Whether no readable image was found."""
        return not self.crops


@runtime_checkable
class Retouch(Protocol):
    """A change of a crop in the worker: uint8 pixels in, as many out; what is random in it comes from the generator."""

    def __call__(self, image_CHW: UInt8[Tensor, "C H W"], generator: np.random.Generator, /) -> Tensor:
        """The changed crop, uint8 [C, H, W]."""
        ...


def first_usable(
    source: Source, seed: int, epoch: int, index: int, read: Callable[[int], T]
) -> tuple[T | None, int, tuple[BadFile, ...]]:
    """What `read` makes of the image asked for, or of the first that can stand in for it where files are bad.

    Beside it the position of the image used, and the bad files met on the way. Stand-ins are chosen by (seed, epoch,
    index); after 32 of them the result is None. `read` raises OSError or DecodeError for a bad file.
    """
    bad: dict[int, BadFile] = {}
    for candidate in _replacements(source, seed, epoch, index):
        if candidate not in bad:
            try:
                return read(candidate), candidate, tuple(bad.values())
            except (OSError, DecodeError) as error:
                bad[candidate] = BadFile.of(source, candidate, error)
    return None, index, tuple(bad.values())


def _replacements(source: Source, seed: int, epoch: int, index: int) -> Iterator[int]:
    yield index
    generator = sample_generator(seed, epoch, index, Stream.REPLACEMENT)
    for _ in range(_REPLACEMENTS):
        yield int(generator.integers(len(source)))


class CropDataset(Dataset[Sample]):
    """Random crops of the images of a source; an item is asked for by (epoch, index).

    A bad file is replaced by another image, chosen by (seed, epoch, index), so that batches keep their size;
    after 32 tries the sample is empty. `retouch` changes every crop, None leaves them as they are.
    """

    def __init__(
        self,
        source: Source,
        crops: tuple[CropConfig, ...],
        *,
        channels: int,
        seed: int,
        retouch: Retouch | None = None,
    ) -> None:
        self.source = source
        self.retouch = retouch
        self.crops = crops
        self.channels = channels
        self.seed = seed
        self._memory = PixelMemory()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key

        def cut(candidate: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            opened = self.source.open(candidate)
            # The crop is the sample's own: a replacement must not repeat a crop of this epoch.
            generator = sample_generator(self.seed, epoch, index, Stream.CROP)
            crops, boxes = crop_image(opened, self.crops, generator, channels=self.channels, memory=self._memory)
            if self.retouch is not None:
                touch = sample_generator(self.seed, epoch, index, Stream.RETOUCH)
                crops = tuple(torch.stack([self.retouch(crop, touch) for crop in group]) for group in crops)
            return crops, boxes

        found, used, bad = first_usable(self.source, self.seed, epoch, index, cut)
        crops, boxes = found or ((), ())
        return Sample(crops, boxes, used, bad)


class CenterCropDataset(Dataset[Sample]):
    """The central crop of each image (see `center_crop`); a bad file gives an empty sample.

    `retouch` changes every crop; what is random in it is a function of the image's index and of its own seed.
    """

    def __init__(
        self,
        source: Source,
        *,
        height: int,
        width: int,
        channels: int,
        crop_ratio: float | None = None,
        retouch: Retouch | None = None,
    ) -> None:
        self.source = source
        self.crop_ratio = crop_ratio
        self.retouch = retouch
        self.height = height
        self.width = width
        self.channels = channels
        self._memory = PixelMemory()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        try:
            opened = self.source.open(index)
            image_CHW = center_crop(
                opened,
                self.height,
                self.width,
                channels=self.channels,
                crop_ratio=self.crop_ratio,
                memory=self._memory,
            )
        except (OSError, DecodeError) as error:
            return Sample((), (), index, (BadFile.of(self.source, index, error),))
        if self.retouch is not None:
            image_CHW = self.retouch(image_CHW, sample_generator(0, 0, index, Stream.RETOUCH))
        return Sample((image_CHW[None],), (), index, ())
