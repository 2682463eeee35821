"""The IDX format of MNIST and its successors: a small header, then uint8 values."""

from __future__ import annotations

import gzip
import lzma
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IDX_SUFFIXES = ("-ubyte", "-ubyte.gz")
_UINT8 = 8  # the header's code for unsigned bytes


def idx_file(folder: Path, part: str, content: str) -> Path | None:
    """The file with `part` ("train", "t10k") of `content` ("images", "labels"), plain or gzipped, if any."""
    dimensions = 3 if content == "images" else 1
    for suffix in IDX_SUFFIXES:
        file = folder / f"{part}-{content}-idx{dimensions}{suffix}"
        if file.is_file():
            return file
    return None


def read_idx(file: Path) -> NDArray[np.uint8]:
    """The array in an IDX file, plain, gzipped (.gz) or xz (.xz). Raises ValueError when it is damaged."""
    try:
        if file.suffix == ".gz":
            content = gzip.decompress(file.read_bytes())
        elif file.suffix == ".xz":
            content = lzma.decompress(file.read_bytes())
        else:
            content = file.read_bytes()
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
    except (OSError, EOFError, lzma.LZMAError, struct.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if zero != 0 or kind != _UINT8 or len(content) != 4 + 4 * dimensions + math.prod(shape):
        raise ValueError(f"{file} is damaged: its size is not what its header says")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
