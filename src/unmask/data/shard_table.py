"""What lies where in tar shards: names, offsets, labels and captions of a million images in a few arrays.

A shard is in the layout of the library webdataset: the members that belong to one image lie one behind the other and
share their name up to its first dot, the key (`000012.jpg`, `000012.cls`, `000012.txt`). `.cls` is the class, a number
or a word; `.txt` is a caption; `caption` in `.json` is one, too, or a list of several.

The index beside shards is two files: `index.json` says what there is, and `index.safetensors` holds the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from unmask.data.captions import Captions
from unmask.data.index import EXTENSIONS, is_image_name
from unmask.data.paths import PathTable
from unmask.data.tar_members import DamagedTar, Member, members
from unmask.formats import FORMATS, objection

INDEX_FILE = "index.json"
ARRAYS_FILE = "index.safetensors"
KIND = "shard index"
_MARK = "unmask_shards"
_MOST_TEXT = 1 << 20  # bytes of a label or caption
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedIndex(ValueError):
    """An index that contradicts itself or is none; the message says why in a few words, beginning with a verb."""


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, its bytes, and the SHA-256 of them where it is known."""

    name: str
    size: int
    checksum: str | None = None


@dataclass(frozen=True)
class Listing:
    """The images of one shard: names in a buffer, places in arrays; the class of each in words, the captions as JSON.

    `words` and `captions` are empty for images without.
    """

    names: PathTable
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    words: PathTable
    captions: PathTable


@dataclass(frozen=True)
class ShardTable:
    """All images of a sequence of shards.

    `starts` are the position of each shard's first image, and behind them the number of images. `captions` are JSON
    lists of texts, one an image, or None where no image has any.
    """

    shards: tuple[Shard, ...]
    starts: NDArray[np.int64]
    names: PathTable
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    captions: PathTable | None

    def __len__(self) -> int:
        return len(self.offsets)

    def facts(self) -> dict[str, Any]:
        """All but the arrays, for JSON."""
        counts = np.diff(self.starts).tolist()
        return {
            _MARK: FORMATS[KIND],
            "images": len(self),
            "classes": self.classes,
            "shards": [
                {"name": shard.name, "bytes": shard.size, "sha256": shard.checksum, "images": count}
                for shard, count in zip(self.shards, counts, strict=True)
            ],
        }

    def arrays(self) -> bytes:
        """The arrays as a safetensors file, always the same bytes for the same table."""
        arrays = {"names": self.names.joined, "offsets": self.offsets, "sizes": self.sizes}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.captions is not None:
            arrays["captions"] = self.captions.joined
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    def of_shards(self, chosen: Sequence[int]) -> ShardTable:
        """The table of these shards, in this order."""
        ranges = [np.arange(self.starts[shard], self.starts[shard + 1]) for shard in chosen]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *ranges])
        return replace(
            self,
            shards=tuple(self.shards[shard] for shard in chosen),
            starts=np.cumsum([0, *map(len, ranges)], dtype=np.int64),
            names=joined(self.names[row] for row in rows.tolist()),
            offsets=self.offsets[rows],
            sizes=self.sizes[rows],
            labels=None if self.labels is None else self.labels[rows],
            captions=None if self.captions is None else joined(self.captions[row] for row in rows.tolist()),
        )

    def texts(self) -> Captions | None:
        """The captions of every image; None where no image has any. ValueError where they are damaged."""
        if self.captions is None:
            return None
        return tuple(tuple(json.loads(text)) for text in self.captions)


def joined(texts: Any) -> PathTable:
    """These byte strings, none of which holds a NUL byte, in one buffer in their own order."""
    text = b"".join([part + b"\0" for part in texts])
    return PathTable(np.frombuffer(text, dtype=np.uint8))


def list_shard(path: Path) -> Listing:
    """The images of a shard, read from the headers of its members. Raises DamagedTar or OSError.

    A group's images are its members with a plain extension (`KEY.jpg`); only where there is none, all that end like an
    image (`KEY.left.jpg`).
    """
    names: list[bytes] = []
    places: list[tuple[int, int]] = []
    words: list[bytes] = []
    captions: list[bytes] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for _, group in groupby(members(descriptor), key=lambda member: _key(member.name)[0]):
            parts = [(member, b"." + _key(member.name)[1]) for member in group]
            pictures = [member for member, extension in parts if is_image_name(os.path.basename(member.name))]
            plain = [member for member in pictures if b"." + _key(member.name)[1].lower() in EXTENSIONS]
            if not pictures:
                continue
            texts = {extension: member for member, extension in parts}
            word, caption = _word(descriptor, texts), _captions(descriptor, texts)
            for member in plain or pictures:
                names.append(member.name)
                places.append((member.offset, member.size))
                words.append(word)
                captions.append(caption)
    finally:
        os.close(descriptor)
    offsets, sizes = np.array(places, dtype=np.int64).reshape(-1, 2).T.copy()
    return Listing(joined(names), offsets, sizes, joined(words), joined(captions))


def _key(name: bytes) -> tuple[bytes, bytes]:
    """What the members of one image share, and what is different in each of them."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.partition(b".")
    return folder + slash + stem, extension


def _word(descriptor: int, texts: dict[bytes, Member]) -> bytes:
    return _text(descriptor, texts[b".cls"]).strip() if b".cls" in texts else b""


def _captions(descriptor: int, texts: dict[bytes, Member]) -> bytes:
    found: list[str] = []
    if b".txt" in texts:
        found = [_text(descriptor, texts[b".txt"]).decode("utf-8", "replace")]
    elif b".json" in texts:
        try:
            values = json.loads(_text(descriptor, texts[b".json"]))
        except (ValueError, RecursionError):
            values = None  # it may hold anything; only what we know of it counts
        given = values.get("caption") if isinstance(values, dict) else None
        found = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        found = [caption for caption in found if isinstance(caption, str)]
    return json.dumps([caption.strip() for caption in found if caption.strip()]).encode()


def captions_json(captions: Sequence[str]) -> bytes:
    """Several captions of one image as its member `.json`."""
    return json.dumps({"caption": list(captions)}).encode()


def _text(descriptor: int, member: Member) -> bytes:
    if member.size > _MOST_TEXT:
        raise DamagedTar(f"holds a text of {member.size} bytes, more than the {_MOST_TEXT} allowed")
    return os.pread(descriptor, member.size, member.offset).replace(b"\0", b"")


def table_of(shards: Sequence[Shard], listings: Sequence[Listing]) -> ShardTable:
    """The table of shards that were listed. Labels are None unless every image has a class.

    Classes that are all whole numbers are sorted as such, others as text.
    """
    labels, classes = _labels([word for listing in listings for word in listing.words])
    captions = joined(caption for listing in listings for caption in listing.captions)
    nothing = np.empty(0, dtype=np.int64)
    return ShardTable(
        shards=tuple(shards),
        starts=np.cumsum([0, *(len(listing.names) for listing in listings)], dtype=np.int64),
        names=joined(name for listing in listings for name in listing.names),
        offsets=np.concatenate([nothing, *(listing.offsets for listing in listings)]),
        sizes=np.concatenate([nothing, *(listing.sizes for listing in listings)]),
        labels=labels,
        classes=classes,
        captions=captions if any(caption != b"[]" for caption in captions) else None,
    )


def _labels(words: list[bytes]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    known = set(words)
    if not words or b"" in known:
        return None, None
    try:
        ordered = sorted(known, key=lambda word: (int(word), word))
    except ValueError:
        ordered = sorted(known)
    places = {word: place for place, word in enumerate(ordered)}
    labels = np.array([places[word] for word in words], dtype=np.int64)
    return labels, tuple(word.decode("utf-8", "backslashreplace") for word in ordered)


def index_facts(table: ShardTable, arrays: bytes, plan: dict[str, Any]) -> dict[str, Any]:
    """What `index.json` says: the shards, the checksum of the arrays, and how the shards were made."""
    checksum = hashlib.sha256(arrays).hexdigest()
    return table.facts() | {"arrays": {"name": ARRAYS_FILE, "bytes": len(arrays), "sha256": checksum}, "plan": plan}


def is_index(content: bytes) -> bool:
    """Whether a file named `index.json` is one of ours, good or damaged: other tools write files of that name, too."""
    return b'"' + _MARK.encode() + b'"' in content


def read_facts(content: bytes) -> dict[str, Any]:
    """What `index.json` says, its marks checked. Raises DamagedIndex."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedIndex(f"is not JSON: {error}") from error
    if not isinstance(facts, dict) or _MARK not in facts:
        raise DamagedIndex("is no index of unmask shard")
    refused = objection(KIND, facts[_MARK])
    if refused is not None:
        raise DamagedIndex(refused)
    return facts


def check_names(table: ShardTable) -> None:
    """Raises DamagedIndex where a shard's name is not that of a file beside the index: it may come from a stranger."""
    for shard in table.shards:
        if shard.name in ("", ".", "..") or set(shard.name) & set("/\\\0?#%"):
            raise DamagedIndex(f"names a shard {shard.name!r}, which is no file beside it")


def check_arrays(facts: dict[str, Any], arrays: bytes) -> None:
    """Raises DamagedIndex where the arrays are not those of this index."""
    about = facts.get("arrays")
    if not isinstance(about, dict) or hashlib.sha256(arrays).hexdigest() != about.get("sha256"):
        raise DamagedIndex(f"does not belong to the {ARRAYS_FILE} beside it")


def read_table(facts: dict[str, Any], arrays: bytes) -> ShardTable:
    """The table that `facts` and `arrays` describe, checked in every way: both may come from a stranger.

    Raises DamagedIndex.
    """
    try:
        return _checked_table(facts, load(arrays))
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedIndex("contradicts itself or is damaged") from error


def _checked_table(facts: dict[str, Any], found: dict[str, NDArray[Any]]) -> ShardTable:
    shards = tuple(Shard(row["name"], row["bytes"], row["sha256"]) for row in facts["shards"])
    counts = np.array([row["images"] for row in facts["shards"]], dtype=np.int64)
    classes = None if facts["classes"] is None else tuple(facts["classes"])
    labels = found.get("labels")
    names, captions = PathTable(found["names"]), None
    if "captions" in found:
        captions = PathTable(found["captions"])
    offsets, sizes = found["offsets"], found["sizes"]
    total = int(counts.sum())
    ends = np.repeat(np.array([shard.size for shard in shards], dtype=np.int64), counts)
    sound = (
        all(shard.checksum is None or _SHA256.fullmatch(shard.checksum) for shard in shards)
        and (counts >= 0).all()
        and all(
            array.dtype == np.uint8 and array.ndim == 1 and (not len(array) or array[-1] == 0)
            for array in (names.joined, *(() if captions is None else (captions.joined,)))
        )
        and all(array.dtype == np.int64 and array.shape == (total,) for array in (offsets, sizes))
        and len(names) == total
        and (captions is None or len(captions) == total)
        and (offsets >= 0).all()
        and (sizes >= 0).all()
        and (sizes <= ends).all()
        and (offsets <= ends - sizes).all()
        and (labels is None) == (classes is None)
    )
    if labels is not None and classes is not None:
        sound = sound and labels.dtype == np.int64 and labels.shape == (total,)
        sound = sound and all(isinstance(name, str) for name in classes)
        sound = sound and (total == 0 or (labels.min() >= 0 and labels.max() < len(classes)))
    if not sound:
        raise ValueError
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return ShardTable(shards, starts, names, offsets, sizes, labels, classes, captions)
