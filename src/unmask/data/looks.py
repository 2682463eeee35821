"""Looks at the images of a source, by several processes: each file is read, and some are decoded.

What is found of a file comes from its bytes and its header; what is found of pixels comes from decoding it as it would
be for training.
Shape legend: C channels, L levels of 8 bits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float64, Int64
from torch.utils.data import DataLoader, Dataset

from unmask.data.dataset import BadFile
from unmask.data.decode import DecodeError, OpenImage, open_image, read_size
from unmask.data.formats import image_extension
from unmask.data.likeness import Likeness, likeness
from unmask.data.loader import leave_signals_to_main, watched
from unmask.data.source import Source
from unmask.data.statistics import ENOUGH_PIXELS, level_shares

_AT_ONCE = 32  # images that a worker hands over together
_GREY_LEVELS = 1.0  # of 255, by which channels of a grey JPEG differ on average


@dataclass(frozen=True)
class Pixels:
    """What decoding an image tells; `grey` means that all of its channels are the same."""

    channels: int
    dtype: str
    shares_CL: Float64[np.ndarray, "C 256"]
    likeness: Likeness
    grey: bool


@dataclass(frozen=True)
class Look:
    """What is known of one image; `pixels` is None where it was not to be decoded."""

    index: int
    size: int
    kind: str
    digest: bytes
    height: int
    width: int
    pixels: Pixels | None


def look_at(source: Source, index: int, *, decoded: bool) -> Look:
    """Read one image, and decode it where asked to. Raises OSError, DecodeError."""
    content = source.read(index)
    if isinstance(content, bytes):
        digest = hashlib.blake2b(content, digest_size=16)
        kind = image_extension(content) or os.path.splitext(source.path(index))[1].lower().lstrip(".") or "other"
        size = len(content)
    else:
        digest = hashlib.blake2b(np.ascontiguousarray(content).tobytes(), digest_size=16)
        digest.update(f"{content.dtype} {content.shape}".encode())
        size, kind = content.nbytes, "arrays"
    pixels = None
    if decoded:
        opened = open_image(content, source.pixel_range)
        height, width = opened.height, opened.width
        pixels = _pixels(opened)
    else:
        height, width = read_size(content)
    return Look(index, size, kind, digest.digest(), height, width, pixels)


def _pixels(opened: OpenImage) -> Pixels:
    pixels_HWC = opened.decode(min_size=ENOUGH_PIXELS, channels=opened.channels).pixels_HWC
    first = pixels_HWC[:, :, :1].astype(np.int16)
    return Pixels(
        channels=opened.channels,
        dtype=opened.dtype,
        shares_CL=level_shares(pixels_HWC),
        likeness=likeness(pixels_HWC),
        grey=bool(np.abs(pixels_HWC - first).mean(axis=(0, 1)).max() <= _GREY_LEVELS),
    )


class _Looks(Dataset["Look | BadFile"]):
    """What is seen of the image at each of these positions."""

    def __init__(
        self,
        source: Source,
        positions_N: Int64[np.ndarray, " N"],
        decoded_N: Bool[np.ndarray, " N"],
    ) -> None:
        self._source = source
        self._positions_N = positions_N
        self._decoded_N = decoded_N

    def __len__(self) -> int:
        return len(self._positions_N)

    def __getitem__(self, place: int) -> Look | BadFile:
        index = int(self._positions_N[place])
        try:
            return look_at(self._source, index, decoded=bool(self._decoded_N[place]))
        except (OSError, DecodeError) as error:
            return BadFile.of(self._source, index, error)


def looks(
    source: Source,
    positions_N: Int64[np.ndarray, " N"],
    decoded_N: Bool[np.ndarray, " N"],
    *,
    workers: int,
) -> Iterator[list[Look | BadFile]]:
    """What is seen of the images at these positions, in their order, some at a time."""
    loader: Any = DataLoader(
        _Looks(source, positions_N, decoded_N),
        batch_size=_AT_ONCE,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=leave_signals_to_main,
    )
    return cast(Iterator[list[Look | BadFile]], watched(loader))
