"""Files that are no images any more, in all the ways in which files on real disks go bad."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _archive(good: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        made.writestr("image.png", good)
    return content.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda good: good[: len(good) // 2],
    "empty": lambda good: b"",
    "wrong bytes": lambda good: bytes(byte ^ 0x5A for byte in good),
    "mislabelled": _archive,
    "decompression bomb": lambda good: bomb(60_000),
}
"""Kinds of bad files, and how each is made of the bytes of a good one."""


def spoil_share(files: list[Path], share: float, seed: int = 0) -> dict[Path, str]:
    """Damage this share of the files (at least one), of each kind alike; the kind of damage by file."""
    chosen = random.Random(seed).sample(files, max(1, round(share * len(files))))
    kinds = {file: list(DAMAGES)[number % len(DAMAGES)] for number, file in enumerate(chosen)}
    for file, kind in kinds.items():
        file.write_bytes(DAMAGES[kind](file.read_bytes()))
    return kinds
