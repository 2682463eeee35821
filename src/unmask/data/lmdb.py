"""Images in an LMDB database: the bytes of an image file under each key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.data.formats import image_extension
from unmask.data.layout import Split, arrange
from unmask.data.paths import PathTable
from unmask.data.source import Source, select
from unmask.extras import require

_ENOUGH_VALUES = 100
_HEAD = 132  # bytes, by which every format is known
_ONE_AT_A_TIME = threading.Lock()
"""LMDB lets a process open a database once only."""


class LmdbSource(Source):
    """Images in an LMDB database, in the order of their keys; keys like paths are laid out like a folder.

    Keys that begin with `__` (`__len__`, `__keys__`) tell about the database and are left out. Keys that no path could
    be, because they hold a NUL byte, are named in hexadecimal.
    """

    kind = "an LMDB database"

    def __init__(self, name: str, path: Path) -> None:
        """Lists the keys once. Raises lmdb's Error, or ValueError where the values are not image files."""
        self.name = name
        self.labels = None
        self.classes = None
        self._path = path
        with self._transaction() as transaction, transaction.cursor() as cursor:
            keys = [bytes(key) for key in cursor.iternext(values=False) if key[:2] != b"__"]
            looked_at = [transaction.get(key)[:_HEAD] for key in keys[:_ENOUGH_VALUES]]
        if keys and not any(image_extension(value) for value in looked_at):
            first = looked_at[0][:16]
            raise ValueError(f"{name} holds something else than image files: its first value begins {first!r}")
        self._hexadecimal = any(b"\0" in key for key in keys)
        # In hexadecimal, too, keys and names have the same order.
        self.paths = PathTable.of(key.hex().encode() if self._hexadecimal else key for key in keys)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return f"{self.name}/{self.paths[index].decode('utf-8', 'backslashreplace')}"

    def read(self, index: int) -> bytes:
        name = self.paths[index]
        key = bytes.fromhex(name.decode()) if self._hexadecimal else name
        try:
            with self._transaction() as transaction:
                value = transaction.get(key)
        except library().Error as error:
            raise OSError(f"it cannot be read: {error}") from error
        if value is None:
            raise OSError("it is no longer in the database")
        return bytes(value)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        # Opened for each image: what is open while a worker is forked can be used neither there nor opened again.
        with (
            _ONE_AT_A_TIME,
            library().open(
                str(self._path),
                subdir=self._path.is_dir(),
                readonly=True,
                create=False,
                lock=False,
                readahead=False,
                meminit=False,
            ) as environment,
            environment.begin() as transaction,
        ):
            yield transaction


def library() -> Any:
    """The library lmdb. ValueError where it is missing."""
    return require("lmdb", "LMDB databases need")


def is_database(path: Path) -> bool:
    """Whether it is a database, by its name or by the file that LMDB keeps in a folder."""
    return path.suffix.lower() == ".lmdb" or (path / "data.mdb").is_file()


def open_lmdb(spec: str, path: Path, split: Split) -> Source:
    """The images of a split of a database. ValueError, with one sentence, where there is none to be had."""
    try:
        base = LmdbSource(spec, path)
    except library().Error as error:
        raise ValueError(f"{spec} cannot be read as an LMDB database: {error}") from error
    if not len(base):
        raise ValueError(f"{spec} holds no image")
    return select(base, arrange(base.paths, split), spec, split)
