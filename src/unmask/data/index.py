"""Which images a folder holds: a quick recursive scan, cached between runs.

A cache is used only while every folder seen by the scan still has the modification time it had then: adding,
removing or renaming an entry changes its folder's time, so one `stat` a folder replaces listing a million
files.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.data.paths import PathTable

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".webp", b".tif", b".tiff", b".bmp", b".npy", b".dcm")
_CACHE_VERSION = 2
_MIN_CACHED_FILES = 1000  # smaller folders are listed faster than a cache is worth
_SETTLED_NS = 2_000_000_000  # a folder changed this recently may change again within one tick of its file system
_THREADS = 8  # hides the latency of network file systems; a local disk needs one


@dataclass(frozen=True)
class _Folder:
    """A folder still to list: its path from the root ("" or ending with "/") and the folders around it."""

    relative: bytes
    ancestors: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class _Listing:
    relative: bytes
    modified_ns: int
    files: list[bytes]
    folders: list[_Folder]


def is_image_name(name: bytes) -> bool:
    """Whether a file of this name counts as an image: by its extension, and not hidden (".name")."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(b".")


def cache_folder() -> Path:
    """Where indices are cached: `$XDG_CACHE_HOME/unmask` or `~/.cache/unmask`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unmask"


def index_folder(root: Path) -> PathTable:
    """Relative paths of all images below `root`, sorted.

    Symbolic links are followed, except into a folder that holds the link; hidden files and folders are left
    out. Folders that cannot be listed below the root are skipped. Raises OSError when `root` itself cannot be
    listed.
    """
    cache = _cache_file(root)
    cached = _load(cache, root)
    if cached is not None:
        return cached
    started_ns = time.time_ns()
    paths, folders, modified_ns = _scan(root)
    settled = int(modified_ns.max()) < started_ns - _SETTLED_NS
    if len(paths) >= _MIN_CACHED_FILES and settled:
        _save(cache, paths, folders, modified_ns)
    return paths


def _scan(root: Path) -> tuple[PathTable, PathTable, NDArray[np.int64]]:
    """Paths of the images; the folders listed ("./" before each) and their modification times."""
    top = os.fsencode(root)
    files: list[bytes] = []
    seen: dict[bytes, int] = {}
    level = [_Folder(relative=b"", ancestors=frozenset())]
    with ThreadPoolExecutor(_THREADS) as threads:
        while level:
            # Several folders a task: handing one over costs as much as listing it.
            size = max(1, len(level) // (4 * _THREADS))
            tasks = [level[start : start + size] for start in range(0, len(level), size)]
            listings = list(threads.map(lambda folders: [_list(top, folder) for folder in folders], tasks))
            level = []
            for listing in chain.from_iterable(listings):
                if listing is None:
                    continue
                files.extend(listing.files)
                seen[b"./" + listing.relative] = listing.modified_ns
                level.extend(listing.folders)
    folders = PathTable.of(seen)
    return PathTable.of(files), folders, np.array([seen[folder] for folder in folders], dtype=np.int64)


def _list(top: bytes, folder: _Folder) -> _Listing | None:
    """The entries of one folder; None when it lies within itself by a link, or cannot be listed."""
    here = os.path.join(top, folder.relative)
    files: list[bytes] = []
    names: list[bytes] = []
    try:
        # Before listing: a file added meanwhile then makes the cache stale instead of being missed for ever.
        status = os.stat(here)
        identity = (status.st_dev, status.st_ino)
        if identity in folder.ancestors:
            return None
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                if entry.is_dir():
                    names.append(name)
                elif is_image_name(name):
                    files.append(folder.relative + name)
    except OSError:
        if not folder.relative:
            raise
        return None
    ancestors = folder.ancestors | {identity}
    folders = [_Folder(relative=folder.relative + name + b"/", ancestors=ancestors) for name in sorted(names)]
    return _Listing(folder.relative, status.st_mtime_ns, files, folders)


def _cache_file(root: Path) -> Path:
    key = hashlib.blake2b(os.fsencode(root.absolute()), digest_size=16).hexdigest()
    return cache_folder() / f"index-{_CACHE_VERSION}-{key}.npz"


def _load(cache: Path, root: Path) -> PathTable | None:
    """The cached paths, or None when there is no cache, it is damaged, or a folder has changed since."""
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            folders, modified_ns = PathTable(arrays["folders"]), arrays["modified_ns"]
            top = os.fsencode(root)
            for folder, expected in zip(folders, modified_ns.tolist(), strict=True):
                if os.stat(os.path.join(top, folder)).st_mtime_ns != expected:
                    return None
            return PathTable(arrays["paths"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(cache: Path, paths: PathTable, folders: PathTable, modified_ns: NDArray[np.int64]) -> None:
    """Write the cache aside and rename it: nobody reads half a file. A full disk is no error here."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=cache.parent, prefix=cache.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, paths=paths.joined, folders=folders.joined, modified_ns=modified_ns)
            os.replace(aside, cache)
        except BaseException:
            os.unlink(aside)
            raise
    except OSError:
        return
