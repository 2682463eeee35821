"""Damaged archives, lists and IDX files are a source or one sentence, and what they hold is bytes or an OSError."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from fuzzing import altered_text, answer, damaged
from unmask.data.idx import read_idx
from unmask.data.shard_table import (
    DamagedIndex,
    Listing,
    Shard,
    check_names,
    list_shard,
    read_facts,
    read_table,
    table_of,
)
from unmask.data.sources import open_source
from unmask.data.tar_members import DamagedTar

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


@cache
def zips() -> dict[str, bytes]:
    """Stored and deflated, plain and with the 64-bit sizes of large archives."""
    made = {}
    for name, way, large in (("stored", zipfile.ZIP_STORED, False), ("deflated", zipfile.ZIP_DEFLATED, False),
                             ("zip64", zipfile.ZIP_STORED, True)):  # fmt: skip
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", way) as archive:
            for path in ("cold/a.png", "../out.png"):
                with archive.open(path, "w", force_zip64=large) as file:
                    file.write(picture())
        made[name] = buffer.getvalue()
    # Sizes beyond 64 signed bits, as only a stranger would write them.
    directory = made["stored"].rindex(b"PK\x01\x02")
    told = bytearray(made["stored"])
    extra = struct.pack("<HHQQ", 1, 16, 2**64 - 1, 2**64 - 1)
    name = struct.unpack_from("<H", told, directory + 28)[0]
    struct.pack_into("<II", told, directory + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", told, directory + 30, len(extra))
    told[directory + 46 + name : directory + 46 + name] = extra
    end = told.rindex(b"PK\x05\x06")
    struct.pack_into("<I", told, end + 12, struct.unpack_from("<I", told, end + 12)[0] + len(extra))
    made["endless"] = bytes(told)
    return made


def test_zips(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        look_through(path)

    for content in zips().values():
        check(content)
    # Its directory stands at the end, where damage of a head does not reach.
    ends = damaged({name: content[::-1] for name, content in zips().items()}).map(lambda content: content[::-1])
    fuzz(st.one_of(damaged(zips()), ends), check)
    assert os.listdir(tmp_path) == ["photos.zip"]


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


def test_shards(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"

    def look() -> None:
        for name, offset, size in zip(*places_of(list_shard(path)), strict=True):
            assert b"\0" not in name
            assert 0 <= offset <= offset + size <= path.stat().st_size

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(look, DamagedTar, OSError)

    fuzz(st.one_of(damaged(tars()), damaged(tars()).map(with_tar_checksums)), check)


def places_of(listing: Listing) -> tuple[list[bytes], list[int], list[int]]:
    return list(listing.names), listing.offsets.tolist(), listing.sizes.tolist()


def test_indices_of_shards(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(tars()["ustar"])
    table = table_of([Shard(path.name, path.stat().st_size)], [list_shard(path)])
    facts = json.loads(json.dumps(table.facts()))

    def check(drawn: tuple[bytes, bytes]) -> None:
        def look() -> None:
            found = read_table(read_facts(drawn[0]), drawn[1])
            check_names(found)
            found.texts()

        answer(look, DamagedIndex, ValueError)

    whole = st.just(table.arrays())
    fuzz(
        st.one_of(
            st.tuples(altered_text(facts), whole),
            st.tuples(st.just(json.dumps(facts).encode()), damaged({"arrays": table.arrays()})),
        ),
        check,
    )
