"""The regular files in an uncompressed tar archive and where their bytes lie; nothing is ever extracted.

Names are only labels here, so that an archive of a stranger can write nowhere, whatever its names say. Read are the old
format, POSIX's (ustar, pax) and GNU's. [POSIX.1-2017, "pax": ustar Interchange Format; GNU tar: Basic Tar Format]
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_MOST_HEADER_BYTES = 1 << 20  # of a long name or of pax records; a header from a stranger may claim any size
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: their size means nothing
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*", re.DOTALL)
_POSIX = b"ustar\0"


class DamagedTar(ValueError):
    """An archive that cannot be read in place; the message says why in a few words, beginning with a verb."""


class Member(NamedTuple):
    """A regular file in an archive: its name, and where its bytes lie."""

    name: bytes
    offset: int
    size: int


def members(descriptor: int) -> Iterator[Member]:
    """The regular files of the archive that is open as `descriptor`, in their order. Raises DamagedTar or OSError."""
    end = os.fstat(descriptor).st_size
    if end == 0:
        raise DamagedTar("is empty")
    position = 0
    long_name: bytes | None = None
    records: dict[bytes, bytes] = {}
    while position < end:
        header = os.pread(descriptor, _BLOCK, position)
        if len(header) < _BLOCK:
            raise DamagedTar("is cut short")
        if not header.strip(b"\0"):
            break
        _check(header)
        kind, size = header[156:157], _number(header[124:136])
        start = position + _BLOCK
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            content = _small(descriptor, start, size, end)
            if kind == b"L":
                long_name = content.partition(b"\0")[0]
            elif kind in (b"x", b"X"):
                records = _records(content)
            position = _behind(start, size)
            continue
        if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in records):
            raise DamagedTar("holds a sparse file, which cannot be read in place")
        if b"size" in records:
            size = _decimal(records[b"size"])
        name = records.get(b"path", _name(header) if long_name is None else long_name).partition(b"\0")[0]
        long_name, records = None, {}
        if kind in _WITHOUT_DATA:
            size = 0
        if start + size > end:
            raise DamagedTar("is cut short")
        if kind in _REGULAR and not name.endswith(b"/"):
            yield Member(name.removeprefix(b"./"), start, size)
        position = _behind(start, size)


def _behind(start: int, size: int) -> int:
    return start + -(-size // _BLOCK) * _BLOCK


def _check(header: bytes) -> None:
    """Every header holds the sum of its bytes, its own field counted as spaces; some writers took bytes as signed."""
    expected = _number(header[148:156])
    rest = header[:148] + header[156:]
    total = sum(rest) + 8 * ord(" ")
    if expected != total and expected != total - 256 * sum(byte > 127 for byte in rest):
        raise DamagedTar("is no uncompressed tar archive, or is damaged")


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise DamagedTar("is no uncompressed tar archive, or is damaged")
    return int(match[1] or b"0", 8)


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise DamagedTar("has a damaged header")
    return int(value)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == _POSIX else b""
    return prefix + b"/" + name if prefix else name


def _small(descriptor: int, start: int, size: int, end: int) -> bytes:
    if size > _MOST_HEADER_BYTES:
        raise DamagedTar(f"has a header of {size} bytes, more than the {_MOST_HEADER_BYTES} allowed")
    if start + size > end:
        raise DamagedTar("is cut short")
    return os.pread(descriptor, size, start)


def _records(content: bytes) -> dict[bytes, bytes]:
    """Pax records: each is its own length, a space, key, "=", value and a line feed."""
    found: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        length, space, _ = content[position : position + 20].partition(b" ")
        size = _decimal(length) if space else 0
        record = content[position : position + size]
        if len(record) < len(length) + 4 or len(record) != size or not record.endswith(b"\n") or b"=" not in record:
            raise DamagedTar("has a damaged header")
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        found[key] = value
        position += size
    return found
