"""Images in a zip archive, read in place by their offsets: stored or deflated, never extracted."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from unmask.data.decode import MAX_PIXELS
from unmask.data.index import is_image_name
from unmask.data.layout import Split, arrange
from unmask.data.paths import PathTable
from unmask.data.source import Source, select

_MOST_BYTES = 8 * MAX_PIXELS
"""An image of the most pixels that are decoded, four channels of 16 bits each: a member that claims more is a bomb."""
_ENCRYPTED = 1  # bit of the flags [APPNOTE.TXT 4.4.4]
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field [4.3.7]


class ZipSource(Source):
    """Images in a zip archive, laid out like a folder."""

    kind = "a zip archive"

    def __init__(self, name: str, archive: Path) -> None:
        """Lists the archive once. Raises OSError or zipfile.BadZipFile; ValueError for kinds that cannot be read."""
        self.name = name
        self.labels = None
        self.classes = None
        self._archive = archive
        found: dict[bytes, zipfile.ZipInfo] = {}
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                path = member.filename.removeprefix("./").encode("utf-8", "surrogateescape")
                if not member.is_dir() and is_image_name(os.path.basename(path)):
                    found[path] = member
        for member in found.values():
            if member.flag_bits & _ENCRYPTED:
                raise ValueError(f"{name} is encrypted ({member.filename!a}): unpack it first")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(
                    f"{name} cannot be read in place, by its compression ({member.filename!a}): unpack it first"
                )
        self.paths = PathTable.of(found)
        listed = [found[path] for path in self.paths]
        self._headers = np.array([member.header_offset for member in listed], dtype=np.int64)
        self._packed = np.array([member.compress_size for member in listed], dtype=np.int64)
        self._sizes = np.array([member.file_size for member in listed], dtype=np.int64)
        self._checksums = np.array([member.CRC for member in listed], dtype=np.uint32)
        self._deflated = np.array([member.compress_type == zipfile.ZIP_DEFLATED for member in listed], dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return f"{self.name}/{self.paths[index].decode('utf-8', 'backslashreplace')}"

    def read(self, index: int) -> bytes:
        size = int(self._sizes[index])
        if size > _MOST_BYTES:
            raise OSError(f"it claims to have {size} bytes, more than the {_MOST_BYTES} allowed")
        # Opened for each image: a handle shared by forked workers would share its position, too.
        descriptor = os.open(self._archive, os.O_RDONLY)
        try:
            content = self._member(descriptor, int(self._headers[index]), int(self._packed[index]))
        finally:
            os.close(descriptor)
        if self._deflated[index]:
            try:
                # One byte more than there should be is enough to see that there are more.
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error as error:
                raise OSError(f"it is damaged in the archive: {error}") from error
        if len(content) != size or zlib.crc32(content) != int(self._checksums[index]):
            raise OSError("it is damaged in the archive: its size or checksum is not the one noted")
        return content

    def _member(self, descriptor: int, header: int, packed: int) -> bytes:
        local = os.pread(descriptor, _LOCAL_HEADER.size, header)
        if len(local) < _LOCAL_HEADER.size or local[:4] != b"PK\x03\x04":
            raise OSError("it is not where the archive's directory says")
        _, name, extra = _LOCAL_HEADER.unpack(local)
        # No larger than the archive, whatever the directory claims.
        return os.pread(
            descriptor, min(packed, os.fstat(descriptor).st_size), header + _LOCAL_HEADER.size + name + extra
        )


def open_zip(spec: str, archive: Path, split: Split) -> Source:
    """The images of a split of a zip archive. ValueError, with one sentence, where there is none to be had."""
    try:
        base = ZipSource(spec, archive)
    # The standard library raises several kinds on damaged archives.
    except (zipfile.BadZipFile, OSError, NotImplementedError, OverflowError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{spec} cannot be read as a zip archive: {error}") from error
    if not len(base):
        raise ValueError(f"{spec} holds no image")
    return select(base, arrange(base.paths, split), spec, split)
