"""Tar shards as a source: a folder of them, a pattern of names or URLs, or the index that `unmask shard` writes.

Shards on this machine are read in place. Those behind URLs are fetched whole, once for all processes of the machine
(`unmask.data.remote`). Without an index, shards are listed by reading their headers, and what was found is kept in the
user's cache; a shard behind a URL is taken never to change.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from unmask.data.captions import Captions
from unmask.data.index import cache_folder
from unmask.data.layout import TEST_FOLDERS, Layout, Split, hashed_test_mask
from unmask.data.remote import RemoteCache, RemoteConfig, check_access, fetch, is_url, shown
from unmask.data.shard_table import (
    ARRAYS_FILE,
    INDEX_FILE,
    DamagedIndex,
    Listing,
    Shard,
    ShardTable,
    check_arrays,
    check_names,
    is_index,
    list_shard,
    read_facts,
    read_table,
    table_of,
)
from unmask.data.source import Source, select
from unmask.data.tar_members import DamagedTar

_MOST_SHARDS = 1_000_000
_CACHE_VERSION = 1
_MIN_CACHED_IMAGES = 1000  # fewer are listed faster than a cache is worth
_SETTLED_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its file system
_THREADS = 8  # hides the latency of a disk; two for a network, which one fetch can fill
_FETCHING_THREADS = 2
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@runtime_checkable
class Shelf(Protocol):
    """Where the bytes of shards lie."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, fewer where it ends before. Raises OSError."""
        ...


class LocalShelf:
    """Shards that are files here, opened for each read: many may be open in many workers otherwise."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, fewer where it ends before. Raises OSError."""
        descriptor = os.open(self._paths[shard], os.O_RDONLY)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)


class RemoteShelf:
    """Shards behind URLs, fetched whole when the first of their images is asked for.

    `versioned`: whether checksums come from an index, and tell old copies of a shard from new ones.
    """

    def __init__(self, urls: Sequence[str], shards: Sequence[Shard], cache: RemoteCache, *, versioned: bool) -> None:
        self._urls = tuple(urls)
        self._shards = tuple(shards)
        self._cache = cache
        self._versioned = versioned

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard, fewer where it ends before. Raises OSError, too, while the shard is lost."""
        about = self._shards[shard]
        version = about.checksum if self._versioned else None
        with self._cache.opened(self._urls[shard], version=version, size=about.size, checksum=about.checksum) as file:
            return os.pread(file.fileno(), size, offset)


class ShardSource(Source):
    """The images in tar shards, in the order of the shards and of the images in each."""

    kind = "tar shards"

    def __init__(self, name: str, table: ShardTable, shelf: Shelf) -> None:
        self.name = name
        self.labels = table.labels
        self.classes = table.classes
        self.shards = table.starts[:-1][np.diff(table.starts) > 0]
        self._table = table
        self._shelf = shelf

    def __len__(self) -> int:
        return len(self._table)

    def path(self, index: int) -> str:
        return f"{self._shard(index)[1]}/{self._table.names[index].decode('utf-8', 'backslashreplace')}"

    def read(self, index: int) -> bytes:
        shard, name = self._shard(index)
        size = int(self._table.sizes[index])
        content = self._shelf.read(shard, int(self._table.offsets[index]), size)
        if len(content) < size:
            raise OSError(f"the shard {name} is cut short")
        return content

    def captions(self) -> Captions | None:
        return self._table.texts()

    def layout(self, split: Split) -> Layout:
        """The images of a split: all, or sent to one side or the other by a hash of their names."""
        indices = np.arange(len(self))
        if split != "all":
            hidden = hashed_test_mask(list(self._table.names), self.labels)
            indices = np.flatnonzero(hidden if split == "test" else ~hidden)
        return Layout(indices, None if self.labels is None else self.labels[indices], self.classes)

    def _shard(self, index: int) -> tuple[int, str]:
        shard = int(np.searchsorted(self._table.starts, index, side="right")) - 1
        return shard, os.fsencode(self._table.shards[shard].name).decode("utf-8", "backslashreplace")


def has_shards(folder: Path) -> bool:
    """Whether a folder without images holds shards, or folders `train` and `val` (or `test` ...) that do."""
    return bool(_tars(folder)) or (_split_folder(folder, "train") is not None)


def open_shards(spec: str, split: Split, config: RemoteConfig | None = None) -> Source:
    """The images of a split that `spec` means: a folder of shards, an `index.json`, or a pattern of paths or URLs.

    Train and test are folders or shards of these names where there are both; otherwise a hash of each image's name
    sends about a fifth to "test". ValueError, with one sentence, where there is no image to be had.
    """
    if is_url(spec):
        return _open_remote(spec, split, RemoteConfig.from_environment() if config is None else config)
    path = Path(spec).expanduser()
    if path.is_dir():
        inside = _split_folder(path, split)
        return _open_folder(spec, path, split) if inside is None else _open_folder(spec, inside, "all")
    if path.name == INDEX_FILE:
        return _open_folder(spec, path.parent, split, named=True)
    paths = [Path(name).expanduser() for name in expand_braces(spec)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{spec} means {len(paths)} shards, of which {missing[0]}{more} does not exist")
    return _open_local(spec, paths, split)


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` in full; what has no braces as it is. ValueError for too many, or none."""
    parts = _BRACES.split(pattern)
    if any(brace in part for part in parts[::2] for brace in "{}"):
        raise ValueError(f"{pattern} has braces that do not match")
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
        if count > _MOST_SHARDS:
            raise ValueError(f"{pattern} means more than {_MOST_SHARDS} shards")
    if not count:
        raise ValueError(f"{pattern} means no shard at all")
    return ["".join(combination) for combination in product(*choices)]


def _choices(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    first, last = int(match[1]), int(match[2])
    # One more than is allowed is enough to be refused.
    return [f"{number:0{len(match[1])}d}" for number in range(first, min(last, first + _MOST_SHARDS) + 1)]


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def _split_folder(folder: Path, split: Split) -> Path | None:
    """The folder of shards that belongs to a split, where there are such for training and for testing."""
    found = {name: folder / name for name in ("train", *TEST_FOLDERS) if _tars(folder / name)}
    test = next((found[name] for name in TEST_FOLDERS if name in found), None)
    if _tars(folder) or test is None or "train" not in found:
        return None
    return test if split == "test" else found["train"]


def _of_split(names: Sequence[str], split: Split) -> tuple[list[int], Split]:
    """Which shards belong to a split by the last word of their names before the number, and what split is left to do.

    Only where some are named for training and some for testing.
    """
    words = [re.split(r"[-_.]", re.sub(r"[-_.]?\d*\.tar$", "", os.path.basename(name).lower()))[-1] for name in names]
    test = next((word for word in TEST_FOLDERS if word in words), None)
    if test is None or "train" not in words:
        return list(range(len(names))), split
    wanted = test if split == "test" else "train"
    return [place for place, word in enumerate(words) if word == wanted], "all"


def _finished(spec: str, table: ShardTable, shelf: Shelf, split: Split) -> Source:
    if not len(table):
        raise ValueError(f"{spec} holds no image")
    source = ShardSource(spec, table, shelf)
    return source if split == "all" else select(source, source.layout(split), spec, split)


def _open_folder(spec: str, folder: Path, split: Split, *, named: bool = False) -> Source:
    """The shards of a folder by their index, where it has one of ours; `named`: whether the user named the index."""
    index = folder / INDEX_FILE
    try:
        content = index.read_bytes() if index.is_file() else b""
        if not named and not is_index(content):
            return _open_local(spec, _tars(folder), split)
        table = _read_index(content, lambda: (folder / ARRAYS_FILE).read_bytes())
    except OSError as error:
        raise ValueError(
            f"{error.filename or index} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error
    except DamagedIndex as error:
        raise ValueError(f"{index} {error}") from error
    for shard in table.shards:
        try:
            size = (folder / shard.name).stat().st_size
        except OSError as error:
            raise ValueError(f"{folder / shard.name} cannot be read, but {index} names it") from error
        if size != shard.size:
            raise ValueError(f"{folder / shard.name} has {size} bytes where {index} says {shard.size}")
    chosen, rest = _of_split([shard.name for shard in table.shards], split)
    table = table.of_shards(chosen) if len(chosen) < len(table.shards) else table
    table = replace(table, shards=tuple(replace(shard, name=str(folder / shard.name)) for shard in table.shards))
    return _finished(spec, table, LocalShelf([Path(shard.name) for shard in table.shards]), rest)


def _read_index(content: bytes, arrays: Callable[[], bytes]) -> ShardTable:
    """The table of an index. Raises DamagedIndex, and what `arrays` raises."""
    facts = read_facts(content)
    found = arrays()
    check_arrays(facts, found)
    table = read_table(facts, found)
    check_names(table)
    return table


def _open_local(spec: str, paths: list[Path], split: Split) -> Source:
    chosen, rest = _of_split([path.name for path in paths], split)
    paths = [paths[place] for place in chosen]
    try:
        statuses = [path.stat() for path in paths]
        stamp = [
            [str(path.absolute()), status.st_size, status.st_mtime_ns]
            for path, status in zip(paths, statuses, strict=True)
        ]
        table = _cached(stamp)
        if table is None:
            started_ns = time.time_ns()
            with ThreadPoolExecutor(_THREADS) as threads:
                listings = list(threads.map(_listed, paths))
            shards = [Shard(str(path), status.st_size) for path, status in zip(paths, statuses, strict=True)]
            table = table_of(shards, listings)
            if max(status.st_mtime_ns for status in statuses) < started_ns - _SETTLED_NS:
                _keep(stamp, table)
    except OSError as error:
        raise ValueError(f"{spec} cannot be read: {(error.strerror or str(error)).lower()}") from error
    return _finished(spec, table, LocalShelf(paths), rest)


def _listed(path: Path) -> Listing:
    try:
        return list_shard(path)
    except DamagedTar as error:
        raise ValueError(f"{path} {error}") from error


def _open_remote(spec: str, split: Split, config: RemoteConfig) -> Source:
    check_access(spec)
    address, mark, query = spec.partition("?")
    listed = address.endswith(".tar")
    if not listed and not address.endswith(".json"):
        address = f"{address.rstrip('/')}/{INDEX_FILE}"
    cache = RemoteCache(config)
    cache.forget_losses()
    if listed:
        names = expand_braces(address)
        table = _remote_list([name + mark + query for name in names], cache)
    else:
        table = _remote_index(address + mark + query, config)
        names = [shard.name for shard in table.shards]
    chosen, rest = _of_split(names, split)
    table = table.of_shards(chosen) if len(chosen) < len(names) else table
    base = "" if listed else address.rpartition("/")[0] + "/"
    urls = [f"{base}{names[place]}{mark}{query}" for place in chosen]
    table = replace(
        table, shards=tuple(replace(shard, name=shown(url)) for shard, url in zip(table.shards, urls, strict=True))
    )
    return _finished(shown(spec), table, RemoteShelf(urls, table.shards, cache, versioned=not listed), rest)


def _remote_index(url: str, config: RemoteConfig) -> ShardTable:
    """The index behind a URL, fetched anew each time: it is small, and may have changed."""
    address, mark, query = url.partition("?")
    beside = f"{address.rpartition('/')[0]}/{ARRAYS_FILE}{mark}{query}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            index, arrays = Path(folder) / INDEX_FILE, Path(folder) / ARRAYS_FILE
            fetch(url, index, config, size=None, checksum=None)

            def fetched() -> bytes:
                fetch(beside, arrays, config, size=None, checksum=None)
                return arrays.read_bytes()

            return _read_index(index.read_bytes(), fetched)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except DamagedIndex as error:
        raise ValueError(f"{shown(url)} {error}") from error


def _remote_list(urls: list[str], cache: RemoteCache) -> ShardTable:
    """The table of shards without an index: each is fetched once, listed, and known by its checksum from then on."""
    stamp = [[shown(url)] for url in urls]
    table = _cached(stamp)
    if table is None:
        with ThreadPoolExecutor(_FETCHING_THREADS) as threads:
            found = list(threads.map(lambda url: _listed_remote(url, cache), urls))
        table = table_of([shard for shard, _ in found], [listing for _, listing in found])
        _keep(stamp, table)
    return table


def _listed_remote(url: str, cache: RemoteCache) -> tuple[Shard, Listing]:
    try:
        with cache.opened(url) as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            return Shard(shown(url), os.fstat(file.fileno()).st_size, checksum), list_shard(Path(file.name))
    except DamagedTar as error:
        raise ValueError(f"{shown(url)} {error}") from error
    except OSError as error:
        raise ValueError(str(error)) from error


def _cache_file(stamp: list[Any]) -> Path:
    key = hashlib.blake2b(json.dumps([row[0] for row in stamp]).encode(), digest_size=16).hexdigest()
    return cache_folder() / f"shards-{_CACHE_VERSION}-{key}.list"


def _cached(stamp: list[Any]) -> ShardTable | None:
    """What was listed before of these very shards; None where nothing was, or it is damaged."""
    try:
        content = _cache_file(stamp).read_bytes()
        about, _, arrays = content.partition(b"\n")
        known = json.loads(about)
        return read_table(known["facts"], arrays) if known["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(stamp: list[Any], table: ShardTable) -> None:
    """Write the cache aside and rename it: nobody reads half a file. A full disk is no error here."""
    if len(table) < _MIN_CACHED_IMAGES and not is_url(stamp[0][0]):
        return
    file = _cache_file(stamp)
    content = json.dumps({"stamp": stamp, "facts": table.facts()}).encode() + b"\n" + table.arrays()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as opened:
                opened.write(content)
            os.replace(aside, file)
        except BaseException:
            os.unlink(aside)
            raise
