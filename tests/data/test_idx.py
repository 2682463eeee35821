"""IDX files come back as they were written, packed or not, and what is none is refused in little memory."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest

from unmask.data.idx import MOST_BYTES, read_idx

PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def idx_of(shape: tuple[int, ...], values: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values


@pytest.mark.parametrize("suffix", PACKED)
def test_an_array_comes_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(PACKED[suffix](idx_of((3, 4, 5), bytes(range(60)))))
    assert np.array_equal(read_idx(path), np.arange(60, dtype=np.uint8).reshape(3, 4, 5))


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("values", [b"", bytes(59), bytes(61)])
def test_another_size_is_refused(tmp_path: Path, suffix: str, values: bytes) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(PACKED[suffix](idx_of((3, 4, 5), values)))
    with pytest.raises(ValueError, match=r"is damaged: its size is not what its header says$"):
        read_idx(path)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_packed_file_does_not_fill_the_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    path.write_bytes(PACKED[suffix](idx_of((MOST_BYTES, 2), bytes(100))))
    with pytest.raises(ValueError, match=r"holds more than the 2147483648 bytes allowed in a packed file$"):
        read_idx(path)
    path.write_bytes(PACKED[suffix](idx_of((1, 1), bytes(1 << 22))))
    with pytest.raises(ValueError, match=r"is damaged: its size is not what its header says$"):
        read_idx(path)


def test_other_dimensions_than_the_name_says_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx_of((3,), b"\0\1\0"))
    with pytest.raises(ValueError, match=r"is damaged: it has 1 dimensions, not the 3 of its name$"):
        read_idx(path)
