"""Paths as the file system has them: a million of them in one sorted buffer, and that of a name."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class PathTable(Sequence[bytes]):
    """Sorted relative paths ("/" between folders) as the file system's bytes, joined by NUL in one array.

    No path can hold a NUL byte. Workers share the array's memory after a fork, because numpy keeps no
    reference counts inside it.
    """

    def __init__(self, joined: NDArray[np.uint8]) -> None:
        """`joined` holds every path followed by one NUL byte; the paths must be sorted."""
        self.joined = joined
        self._ends = np.flatnonzero(joined == 0)

    @classmethod
    def of(cls, paths: Iterable[bytes]) -> PathTable:
        """The table of these paths, sorted by their bytes."""
        ordered = sorted(paths)
        text = b"\0".join(ordered) + b"\0" if ordered else b""
        return cls(np.frombuffer(text, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) + 1 if index else 0
        return self.joined[start : self._ends[index]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        # One split is many times quicker than a million slices.
        return iter(self.joined.tobytes().split(b"\0")[:-1])

    def prefixed(self, prefix: bytes) -> range:
        """Positions of the paths below the folder `prefix`, which ends with "/"; they lie side by side."""
        assert prefix.endswith(b"/")
        start = bisect.bisect_left(self, prefix)
        # "0" is the byte after "/", so this is the first path behind the folder's last one.
        return range(start, bisect.bisect_left(self, prefix[:-1] + b"0", lo=start))

    def end_of(self, prefix: bytes, first: int) -> int:
        """Position behind the last path below the folder `prefix`, of which `first` is the first one.

        In steps that double: what it costs grows with the folder, not with the table, for there may be as many folders
        as images.
        """
        behind = prefix[:-1] + b"0"
        low, step = first, 1
        while low + step < len(self) and self[low + step] < behind:
            low, step = low + step, 2 * step
        return bisect.bisect_left(self, behind, lo=low, hi=min(low + step, len(self)))


def as_path(name: object) -> bytes | None:
    """A name as the file system has it; None for what JSON can hold and no file can be called."""
    try:
        return os.fsencode(name) if isinstance(name, str) and name and "\0" not in name else None
    except UnicodeEncodeError:
        return None
