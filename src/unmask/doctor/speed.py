"""How fast this machine decodes images and writes files: a second or so each."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import simplejpeg
from PIL import features

from unmask.bench.data import measure_data
from unmask.data.batch import CropConfig
from unmask.data.source import Source

HEIGHT, WIDTH = 375, 500
"""Of the made images, in pixels: ImageNet's usual size."""
_MADE = 64
_BYTES = 1 << 26
_BLOCK = 1 << 22
_SYNCS = 5


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What one process makes of images: reading, decoding, and one crop of 224 pixels of each."""

    data: str
    images_per_second: float
    seconds_to_read: float
    """For one image, of all its time."""
    bad_files: int


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The disk of a folder. Speeds in bytes a second; sizes in bytes."""

    folder: str
    free: int
    write: float | None = None
    """None: nothing could be written."""
    read: float | None = None
    sync: float | None = None
    """Seconds until 4 KB are safe."""
    trouble: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """What decodes images."""

    simplejpeg: str
    pillow: dict[str, str]
    """Formats by Pillow's libraries, with their versions; those that are missing are left out."""
    missing: tuple[str, ...]


class _Made(Source):
    """JPEGs in memory."""

    def __init__(self) -> None:
        self.name, self.labels, self.classes = f"made JPEGs of {WIDTH}x{HEIGHT}", None, None
        generator = np.random.default_rng(0)
        # Smooth with some grain: as many bytes as a photo of this size.
        coarse_HWC = generator.integers(0, 200, (HEIGHT // 25, WIDTH // 25, 3)).repeat(25, 0).repeat(25, 1)
        pixels_HWC = (coarse_HWC + generator.integers(0, 40, (HEIGHT, WIDTH, 3))).astype(np.uint8)
        self._bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), quality=90)

    def __len__(self) -> int:
        return _MADE

    def path(self, index: int) -> str:
        return f"made {index}"

    def read(self, index: int) -> bytes:
        return self._bytes


def measure_decoding(source: Source | None, channels: int, seconds: float) -> Decoding:
    """Decode images, made ones for None, for so long. Raises as `measure_data`."""
    chosen = _Made() if source is None else source
    found = measure_data(
        chosen,
        (CropConfig(),),
        channels=channels,
        batch_size=min(8, len(chosen)),
        workers=0,
        seconds=seconds,
        captions=False,
    )
    return Decoding(
        data=chosen.name,
        images_per_second=found.images_per_second,
        seconds_to_read=found.parts["read"],
        bad_files=found.bad_files,
    )


def measure_disk(folder: Path) -> Disk:
    """Write 64 MB into a folder, or the nearest one above it that is there, read them, and leave nothing."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < 4 * _BYTES:
        return Disk(folder=str(folder), free=free, trouble="too little room is left to measure it")
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            write, read, sync = _timed(file.fileno())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Disk(folder=str(folder), free=free, trouble=f"nothing can be written ({reason})")
    return Disk(folder=str(folder), free=free, write=write, read=read, sync=sync)


def _timed(descriptor: int) -> tuple[float, float, float]:
    # Bytes that a disk cannot pack.
    block = os.urandom(_BLOCK)
    began = perf_counter()
    for _ in range(_BYTES // _BLOCK):
        os.write(descriptor, block)
    os.fsync(descriptor)
    write = _BYTES / (perf_counter() - began)
    began = perf_counter()
    for _ in range(_SYNCS):
        os.write(descriptor, block[:4096])
        os.fsync(descriptor)
    sync = (perf_counter() - began) / _SYNCS
    if hasattr(os, "posix_fadvise"):
        # Else memory would be measured.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    began = perf_counter()
    for _ in range(_BYTES // _BLOCK):
        os.read(descriptor, _BLOCK)
    return write, _BYTES / (perf_counter() - began), sync


def look_at_decoders() -> Decoders:
    """What of Pillow's own libraries is there, and whether simplejpeg decodes."""
    wanted = {"JPEG": "jpg", "PNG": "zlib", "WebP": "webp", "TIFF": "libtiff"}
    found = {name: str(features.version(code)) for name, code in wanted.items() if features.check(code)}
    buffer = io.BytesIO(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    decoded = simplejpeg.decode_jpeg(buffer.getvalue()).shape == (16, 16, 3)
    return Decoders(
        simplejpeg="works" if decoded else "decodes wrongly",
        pillow=found,
        missing=tuple(name for name in wanted if name not in found),
    )
