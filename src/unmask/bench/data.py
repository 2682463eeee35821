"""The data on this machine: images a second from the files to ready batches, and what one of them costs a worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from unmask.data.batch import Batch, CropConfig
from unmask.data.captions import Captions
from unmask.data.dataset import CropDataset
from unmask.data.loader import CropLoader, collate_samples
from unmask.data.sources import Source

FEWEST_BATCHES = 4
TAKEN_APART = 64
"""Images whose parts are measured."""
ENDLESS = 2**31


@dataclass(frozen=True, kw_only=True)
class DataMeasure:
    """What was measured of a loader."""

    images: int
    batch_size: int
    workers: int
    crops: str
    images_per_second: float
    first_batch: float
    """Seconds until the first batch was there: workers start meanwhile."""
    parts: dict[str, float]
    """Seconds that one image costs one process: read; decode and crop; collate."""
    bad_files: int


class _TimedSource(Source):
    """Another source, with the seconds spent in reading it."""

    def __init__(self, base: Source) -> None:
        self.name, self.labels, self.classes = base.name, base.labels, base.classes
        self.pixel_range = base.pixel_range
        self.seconds = 0.0
        self._base = base

    def __len__(self) -> int:
        return len(self._base)

    def path(self, index: int) -> str:
        return self._base.path(index)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        began = perf_counter()
        try:
            return self._base.read(index)
        finally:
            self.seconds += perf_counter() - began

    def captions(self) -> Captions | None:
        return self._base.captions()


def open_loader(
    source: Source,
    crops: tuple[CropConfig, ...],
    *,
    channels: int,
    batch_size: int,
    workers: int,
    captions: bool,
    pin_memory: bool,
) -> CropLoader:
    """The loader as pre-training has it; it is left before its end."""
    return CropLoader(
        source,
        crops,
        batch_size=batch_size,
        total_steps=ENDLESS,
        seed=0,
        workers=workers,
        channels=channels,
        pin_memory=pin_memory,
        captions=captions,
    )


def measure_data(
    source: Source,
    crops: tuple[CropConfig, ...],
    *,
    channels: int,
    batch_size: int,
    workers: int,
    seconds: float,
    captions: bool,
) -> DataMeasure:
    """Load batches for so many seconds and throw them away. TooManyBadFiles as in training."""
    loader = open_loader(
        source,
        crops,
        channels=channels,
        batch_size=batch_size,
        workers=workers,
        captions=captions,
        pin_memory=False,
    )
    began = perf_counter()
    batches: Iterator[Batch] = iter(loader)
    next(batches)
    first = perf_counter()
    # Nobody works on the batches, so workers never wait for room, and from the first batch on all is steady.
    for taken in count(1):
        next(batches)
        now = perf_counter()
        if now - first >= seconds and taken >= max(FEWEST_BATCHES, 2 * workers):
            break
    # Ends the workers, which would go on.
    del batches
    return DataMeasure(
        images=len(source),
        batch_size=batch_size,
        workers=workers,
        crops=", ".join(f"{crop.count} of {crop.height}x{crop.width}" for crop in crops),
        images_per_second=taken * batch_size / (now - first),
        first_batch=first - began,
        parts=_parts(source, crops, channels=channels, batch_size=batch_size),
        bad_files=len(loader.bad_files),
    )


def _parts(source: Source, crops: tuple[CropConfig, ...], *, channels: int, batch_size: int) -> dict[str, float]:
    timed = _TimedSource(source)
    dataset = CropDataset(timed, crops, channels=channels, seed=1)
    spread = np.random.default_rng(0).permutation(len(source))[:TAKEN_APART].tolist()
    began = perf_counter()
    samples = [sample for sample in (dataset[0, index] for index in spread) if not sample.empty]
    whole = perf_counter() - began
    began = perf_counter()
    for start in range(0, len(samples), batch_size):
        collate_samples(samples[start : start + batch_size])
    collate = perf_counter() - began
    images = len(spread)
    return {
        "read": timed.seconds / images,
        "decode and crop": (whole - timed.seconds) / images,
        "collate": collate / images,
    }
