"""Damaged archives, lists and IDX files are a source or one sentence, and what they hold is bytes or an OSError."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import tarfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from fuzzing import answer, damaged
from unmask.data.idx import read_idx
from unmask.data.sources import open_source

Fuzz = Callable[..., None]


@cache
def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def tars() -> dict[str, bytes]:
    """In every dialect: short and long names, links, folders, times with fractions."""
    made = {}
    for dialect, form in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name in ("cold/a.png", "warm/b.png", "../out.png", f"warm/{'long' * 20}/{'c' * 60}.png"):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(picture()), 1.5 if dialect == "pax" else 1
                tar.addfile(member, io.BytesIO(picture()))
            link = tarfile.TarInfo("warm/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        # Without the empty blocks at its end, which no damage would do anything to.
        made[dialect] = buffer.getvalue()[: 512 * 18]
    return made


def with_tar_checksums(content: bytes) -> bytes:
    """The right checksum in every block that looks like the head of a member."""
    made = bytearray(content)
    for start in range(0, len(made) - 511, 512):
        if made[start + 257 : start + 262] == b"ustar":
            made[start + 148 : start + 156] = b" " * 8
            made[start + 148 : start + 156] = b"%06o\0 " % sum(made[start : start + 512])
    return bytes(made)


def look_through(path: Path, *more: type[Exception]) -> None:
    """Open a source and read from it; `more`: what opening may raise beside ValueError."""

    def read() -> None:
        for split in ("all", "train"):
            source = open_source(path, split=split)
            for index in range(min(len(source), 4)):
                assert source.path(index)
                answer(partial(source.read, index), OSError)

    answer(read, ValueError, *more)


def test_tars(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        look_through(path)

    fuzz(st.one_of(damaged(tars()), damaged(tars()).map(with_tar_checksums)), check, examples=40)
    assert os.listdir(tmp_path) == ["photos.tar"]


def test_lists(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    (tmp_path / "a.png").write_bytes(picture())
    lists = {"plain": b"a.png\n../a.png\n/a.png\n", "labels": b"\xef\xbb\xbfa.png\tcold\r\nb.png\twarm\r\n"}

    def check(content: bytes) -> None:
        path.write_bytes(content)
        look_through(path)

    fuzz(damaged(lists), check, examples=25)


PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def idx_of(shape: tuple[int, ...], values: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values


@pytest.mark.parametrize("suffix", PACKED)
def test_idx(fuzz: Fuzz, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    whole = {"images": idx_of((3, 4, 5), bytes(range(60))), "labels": idx_of((7,), bytes(7))}
    pack = PACKED[suffix]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: read_idx(path), ValueError)

    packed = {name: pack(content) for name, content in whole.items()}
    fuzz(st.one_of(damaged(whole).map(pack), damaged(packed)), check, examples=25)


def test_folders_of_idx(fuzz: Fuzz, tmp_path: Path) -> None:
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_of((2, 4, 4), bytes(32)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_of((2,), bytes(2)))

    def check(content: tuple[bytes, bytes]) -> None:
        images.write_bytes(content[0])
        labels.write_bytes(content[1])
        look_through(tmp_path)

    whole = {"images": idx_of((3, 4, 5), bytes(range(60))), "labels": idx_of((3,), b"\0\1\0")}
    fuzz(st.tuples(damaged(whole), damaged({"labels": whole["labels"]})), check, examples=25)
