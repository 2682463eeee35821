"""Files behind URLs, fetched whole into a folder that all processes of a machine share.

A network fails in many ways, and a run must outlive them: each fetch is tried several times, a connection over which
nothing comes counts as failed, what was fetched is checked, and a file that cannot be had is remembered as lost for a
while, so that not each of its images waits for it again. The folder is bounded: what was used least recently goes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from unmask.data.index import cache_folder
from unmask.extras import require

CACHE_LIMIT = "UNMASK_CACHE_GB"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://.")
_PROTOCOL_LIBRARIES = {"http": ("aiohttp",), "https": ("aiohttp",), "s3": ("s3fs",)}
_CHUNK = 1 << 20
_RECENT = 10.0  # seconds for which a use is not noted again
_ABANDONED = 3600.0  # seconds after which nobody writes to a half-fetched file any more
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """How patient fetching is, and how much of what was fetched is kept."""

    cache_bytes: Annotated[int, Doc("Bytes of shards to keep on this machine; those being fetched come on top.")] = (
        50 * 10**9
    )
    attempts: Annotated[int, Doc("How often a fetch is tried, waits of 1, 2, 4 ... times first_wait between.")] = 5
    first_wait: Annotated[float, Doc("Seconds before the second attempt, give or take half of it by chance.")] = 1.0
    stall: Annotated[float, Doc("Seconds without a single byte after which an attempt has failed.")] = 60.0
    lost_for: Annotated[float, Doc("Seconds for which a file that could not be had is not tried again.")] = 600.0

    @classmethod
    def from_environment(cls) -> RemoteConfig:
        """The usual patience, and the room that `UNMASK_CACHE_GB` gives. ValueError where that is no number above 0."""
        given = os.environ.get(CACHE_LIMIT)
        if not given:
            return cls()
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = 0.0
        if not 0 < gigabytes < float("inf"):
            raise ValueError(f"{CACHE_LIMIT} must be a number above 0, not {given!r}")
        return cls(cache_bytes=int(gigabytes * 10**9))


def is_url(text: str) -> bool:
    """Whether it is an address (`https://...`, `s3://...`) and not a path."""
    return _URL.match(text) is not None


def _protocol(url: str) -> str:
    return url.partition("://")[0].lower()


def shown(url: str) -> str:
    """The URL without its query and its user, which may be secrets."""
    return re.sub(r"://[^/@]*@", "://", url.partition("?")[0])


def check_access(url: str) -> None:
    """ValueError where this kind of URL cannot be read here."""
    protocol = _protocol(url)
    require("remote", f"{shown(url)} needs", "fsspec", *_PROTOCOL_LIBRARIES.get(protocol, ()))
    try:
        _file_system(url)
    except (ImportError, ValueError) as error:
        # Of protocols that the extra does not bring, fsspec says which library they need.
        raise ValueError(f"{shown(url)} cannot be read: {_cause(error, url)}") from error


def fetch(url: str, target: Path, config: RemoteConfig, *, size: int | None, checksum: str | None) -> None:
    """Write what lies behind `url` to `target`, after several attempts if need be.

    OSError, with a sentence, where it could not be had or has not the bytes and the SHA-256 expected. What is not
    there, what may not be read, and a full disk are not tried again.
    """
    for attempt in range(1, config.attempts + 1):
        # A file of its own: an attempt that was given up may wake and write on.
        aside = target.with_name(f"{target.name}.{os.getpid()}-{attempt}.part")
        try:
            _fetch_once(url, aside, config.stall)
            _verify(aside, size, checksum)
            aside.replace(target)
            return
        # The libraries behind the URLs raise nearly anything.
        except Exception as error:
            aside.unlink(missing_ok=True)
            final = isinstance(error, FileNotFoundError | PermissionError) or getattr(error, "errno", None) in _FULL
            if final or attempt == config.attempts:
                tried = "" if attempt == 1 else f" in {attempt} attempts"
                raise OSError(f"{shown(url)} could not be fetched{tried}: {_cause(error, url)}") from error
        # By chance of its own: many machines must not come back at the same moment, nor seeds change.
        time.sleep(config.first_wait * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.5))


def _fetch_once(url: str, target: Path, stall: float) -> None:
    failed: list[Exception] = []
    file_system = _file_system(url, stall)

    def get() -> None:
        try:
            file_system.get_file(url, str(target))
        except Exception as error:
            failed.append(error)

    # In a thread, because not every library knows a timeout, and none of them a shared one.
    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    length, since = -1, time.monotonic()
    while thread.is_alive():
        thread.join(min(1.0, stall / 4))
        now = target.stat().st_size if target.exists() else -1
        if now != length:
            length, since = now, time.monotonic()
        elif thread.is_alive() and time.monotonic() - since > stall:
            raise TimeoutError(f"no byte came for {stall:g} seconds")
    if failed:
        raise failed[0]


def _file_system(url: str, stall: float = 60.0) -> Any:
    # Only here: most data are local, and the libraries take half a second to import.
    import fsspec

    protocol = _protocol(url)
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        # Without, a fetch would end after five minutes however well it goes; proxies are those of the environment.
        timeout = ClientTimeout(total=None, sock_connect=stall, sock_read=2 * stall)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    return fsspec.filesystem(protocol, **options)


def _verify(path: Path, size: int | None, checksum: str | None) -> None:
    """Raises OSError where the file is not what it should be; what is then found good stays so after a power cut."""
    if size is not None and path.stat().st_size != size:
        raise OSError(f"it has {path.stat().st_size} bytes where {size} are expected")
    if checksum is not None and file_checksum(path) != checksum:
        raise OSError("its checksum is not the one expected")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def file_checksum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cause(error: Exception, url: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, OSError) and error.errno in _FULL and error.strerror:
        return f"{error.strerror.lower()} for it on this machine"
    text = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return text.replace(url, shown(url))


class RemoteCache:
    """Files behind URLs, each fetched once for all processes of a machine.

    A file's place follows from its URL (without the query, which may be a signature of today) and its version. Whoever
    opens one holds a shared lock on it, so that it is not removed meanwhile.
    """

    def __init__(self, config: RemoteConfig, folder: Path | None = None) -> None:
        self._config = config
        self._folder = cache_folder() / "shards" if folder is None else folder

    @contextmanager
    def opened(
        self, url: str, *, version: str | None = None, size: int | None = None, checksum: str | None = None
    ) -> Iterator[BufferedReader]:
        """The file, open for reading; size and checksum are looked at when it is fetched.

        OSError, with a sentence, where it cannot be had.
        """
        place = self._place(url, version)
        file = self._open(place) or self._fetched(url, place, size, checksum)
        with file:
            if time.time() - os.fstat(file.fileno()).st_mtime > _RECENT:
                os.utime(file.fileno())
            yield file

    def forget_losses(self) -> None:
        """Try again what was lost: a new run begins with new hope."""
        for mark in self._folder.glob("*.lost"):
            mark.unlink(missing_ok=True)

    def _place(self, url: str, version: str | None) -> Path:
        key = hashlib.blake2b(f"{shown(url)} {version}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return self._folder / f"{key}.data"

    def _open(self, place: Path) -> BufferedReader | None:
        try:
            file = place.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def _fetched(self, url: str, place: Path, size: int | None, checksum: str | None) -> BufferedReader:
        mark = place.with_suffix(".lost")
        try:
            self._raise_if_lost(mark)
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(place.with_suffix(".lock")):
                # Another process may have fetched or lost it while we waited for the lock.
                file = self._open(place)
                if file is not None:
                    return file
                self._raise_if_lost(mark)
                for rest in self._folder.glob(f"{place.name}.*.part"):
                    rest.unlink(missing_ok=True)
                self._make_room(size or 0)
                try:
                    fetch(url, place, self._config, size=size, checksum=checksum)
                except OSError as error:
                    mark.write_text(str(error), encoding="utf-8")
                    raise
                file = self._open(place)
                # What was fetched may have had no size before; it is open, and so stays.
                self._make_room(0)
        except OSError as error:
            if error.strerror is None:
                raise
            raise OSError(f"{shown(url)} could not be kept in {self._folder}: {error.strerror.lower()}") from error
        if file is None:
            raise OSError(f"{shown(url)} was removed from {self._folder} at once")
        return file

    def _raise_if_lost(self, mark: Path) -> None:
        with suppress(FileNotFoundError):
            if time.time() - mark.stat().st_mtime < self._config.lost_for:
                raise OSError(mark.read_text(encoding="utf-8"))

    def _make_room(self, needed: int) -> None:
        """Remove the files used least recently until `needed` more bytes fit into the limit and onto the disk."""
        with _locked(self._folder / "room.lock"):
            kept: list[tuple[float, int, Path]] = []
            total = needed
            for path in self._folder.iterdir():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    if path.suffix == ".part" and time.time() - status.st_mtime > _ABANDONED:
                        path.unlink()
                        continue
                    total += status.st_size
                    if path.suffix == ".data":
                        kept.append((status.st_mtime, status.st_size, path))
            for _, size, path in sorted(kept):
                if total <= self._config.cache_bytes and shutil.disk_usage(self._folder).free >= needed:
                    return
                if _removed(path):
                    total -= size


def _removed(path: Path) -> bool:
    """Remove a file unless somebody reads it; returns whether it is gone."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that exists as long as it is held: no file is left behind, and a killed holder lets go."""
    while True:
        file = path.open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held it has removed it: what we locked may be a file that no other process will ever see.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
