"""Only one process at a time trains in a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

NAME = ".owner.json"


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Own the folder within this context. ValueError, which names the owner, where another process does.

    The lock belongs to the process (POSIX record lock): the system takes it back when the process ends, however it
    ends, and data workers do not inherit it. The file's text only tells who it is.
    """
    file = folder / NAME
    descriptor = _locked(file)
    try:
        os.write(descriptor, json.dumps(_ourselves()).encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(file: Path) -> int:
    """A descriptor of the file, locked and empty."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"cannot write {file} ({(error.strerror or 'error').lower()})") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # An owner that ended between our opening and our locking has taken its file away.
            if file.exists() and os.fstat(descriptor).st_ino == file.stat().st_ino:
                os.truncate(descriptor, 0)
                return descriptor
        except (BlockingIOError, PermissionError) as error:
            owner = _described(os.read(descriptor, 4096))
            os.close(descriptor)
            raise ValueError(
                f"{file.parent} is in use by {owner}; wait until that ends, or choose another --out"
            ) from error
        os.close(descriptor)


def _ourselves() -> dict[str, str | int]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since}


def _described(note: bytes) -> str:
    try:
        owner = json.loads(note)
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
