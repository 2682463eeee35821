"""One tar shard from image files: written aside, read back and compared, then given its name.

What is in a shard follows from its images alone, to the last byte: no time, user or machine is in it.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmask.data.decode import DecodeError, read_size
from unmask.data.formats import image_extension
from unmask.data.remote import file_checksum
from unmask.data.shard_table import captions_json, list_shard
from unmask.data.stored import channel_axis
from unmask.data.tar_members import DamagedTar
from unmask.disk import flush_folder

_MOST_KEY = 200  # bytes
_UNSAFE = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|\ud800-\udfff]')


@dataclass(frozen=True)
class Sample:
    """An image file on its way into a shard: its name without the extension, and what is known of it."""

    key: str
    content: bytes
    extension: str
    label: int | None
    captions: tuple[str, ...]


def make_sample(
    key: str, image: bytes | NDArray[Any], *, label: int | None = None, captions: tuple[str, ...] = ()
) -> Sample:
    """The bytes of an image file as they are, an array as a PNG, or as a .npy file where it has more bits or channels.
    DecodeError where it is no image or has a format that shards do not hold."""
    if isinstance(image, bytes):
        read_size(image)
        extension = image_extension(image)
        if extension is None:
            raise DecodeError("it is neither a JPEG, PNG, WebP, TIFF, BMP, .npy nor DICOM file")
        return Sample(key, image, extension, label, captions)
    pixels = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    content = io.BytesIO()
    if pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2] == 3):
        Image.fromarray(pixels).save(content, "PNG")
        return Sample(key, content.getvalue(), "png", label, captions)
    if pixels.ndim == 3 and channel_axis(pixels.shape) != 2:
        raise DecodeError(f"in a file of {pixels.shape} nobody could tell which axis is that of the channels")
    np.save(content, pixels, allow_pickle=False)
    return Sample(key, content.getvalue(), "npy", label, captions)


def safe_key(path: str) -> str:
    """A relative path as the key of a shard's member: without its extension, and nowhere to go but down.

    Dots of the name become underscores, for a key ends at its first dot.
    """
    parts = [part for part in _UNSAFE.sub("_", path).split("/") if part not in ("", ".", "..")]
    stem = os.path.splitext(parts[-1])[0].replace(".", "_") if parts else ""
    key = "/".join([*parts[:-1], stem or "image"]).encode()[-_MOST_KEY:].decode("utf-8", "ignore")
    return key.lstrip("/") or "image"


def write_shard(target: Path, samples: Iterable[Sample]) -> tuple[int, str]:
    """Write a shard of these images; returns their number and the shard's SHA-256. No file is written without images.

    ValueError, with one sentence, where the disk refuses; then nothing is left behind.
    """
    # By process: one that outlived its parent may still be writing the same shard.
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        written = _write(aside, samples, target)
        if not written:
            return 0, ""
        with writing(target):
            checksum = _read_back(aside, written)
            aside.replace(target)
            flush_folder(target.parent)
        return len(written), checksum
    finally:
        aside.unlink(missing_ok=True)


def _write(aside: Path, samples: Iterable[Sample], target: Path) -> list[tuple[str, int]]:
    """Write the members; returns name and CRC-32 of each image. What reading the images raises goes through."""
    written: list[tuple[str, int]] = []
    keys: set[str] = set()
    with writing(target):
        file = aside.open("wb")
    # Closing writes, too, and may find the disk full a second time.
    with writing(target), file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for sample in samples:
            key, copy = sample.key, 1
            while key in keys:
                copy += 1
                key = f"{sample.key}-{copy}"
            keys.add(key)
            name = f"{key}.{sample.extension}"
            written.append((name, zlib.crc32(sample.content)))
            _add(tar, name, sample.content)
            if sample.label is not None:
                _add(tar, f"{key}.cls", str(sample.label).encode())
            if len(sample.captions) == 1:
                _add(tar, f"{key}.txt", sample.captions[0].encode("utf-8", "replace"))
            elif sample.captions:
                _add(tar, f"{key}.json", captions_json(sample.captions))
        tar.close()
        file.flush()
        os.fsync(file.fileno())
    return written


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _read_back(path: Path, written: list[tuple[str, int]]) -> str:
    """The checksum of a shard that holds what was written. OSError where the disk gave back something else."""
    try:
        listing = list_shard(path)
    except DamagedTar as error:
        raise OSError(0, f"what was read back {error}") from error
    with path.open("rb") as content:
        found = [
            (name.decode(), zlib.crc32(os.pread(content.fileno(), int(size), int(offset))))
            for name, offset, size in zip(listing.names, listing.offsets, listing.sizes, strict=True)
        ]
    if found != written:
        raise OSError(0, "what was read back is not what was written")
    return file_checksum(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it holds its old content or all of the new, whenever we are killed. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make one sentence of a disk that refuses."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise ValueError(
            f"cannot write {path} ({reason}); what is finished stays, and the same command goes on"
        ) from error
