"""The IDX format of MNIST and its successors: a small header, then uint8 values."""

from __future__ import annotations

import gzip
import lzma
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDX_SUFFIXES = ("-ubyte", "-ubyte.gz")
MOST_BYTES = 1 << 31
"""Larger packed files are refused: a small one can hold what fills the memory."""
_DIMENSIONS = re.compile(r"-idx(\d)-")
_UINT8 = 8  # the header's code for unsigned bytes
_UNPACKED: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}


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
    packed = file.suffix in _UNPACKED
    try:
        with _UNPACKED.get(file.suffix, open)(file, "rb") as stream:
            zero, kind, dimensions = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
            size = math.prod(shape)
            if packed and size > MOST_BYTES:
                raise ValueError(f"{file} holds more than the {MOST_BYTES} bytes allowed in a packed file")
            # One byte more than there should be, at most: of a packed file nobody knows how much more it holds.
            content = stream.read(size + 1) if packed else stream.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error, struct.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if zero != 0 or kind != _UINT8 or len(content) != size:
        raise ValueError(f"{file} is damaged: its size is not what its header says")
    named = _DIMENSIONS.search(file.name)
    if named is not None and int(named[1]) != dimensions:
        raise ValueError(f"{file} is damaged: it has {dimensions} dimensions, not the {named[1]} of its name")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
