"""What the names of images say: which belong to training, which to testing, and of which class each is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unmask.data.paths import PathTable

Split = Literal["all", "train", "test"]

TEST_FOLDERS = ("val", "test", "valid", "validation")
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Layout:
    """The images of one split: positions in the table, and their labels when they lie in class folders."""

    indices: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None


def arrange(paths: PathTable, split: Split) -> Layout:
    """Choose the images of `split` and label them by the first folder of their name.

    With a folder `train` beside one of `val`, `test`, `valid`, `validation` (the first of these that exists,
    in small letters, "Capitalised" or "CAPITALS"), these are the splits, and "all" means training images
    only: nothing of the test images may reach pre-training. Without, a hash of each name sends about a fifth
    to "test", the same whatever else is there. Labels are None unless every image of the split lies in a
    class folder.
    """
    train, test = _split_folder(paths, ("train",)), _split_folder(paths, TEST_FOLDERS)
    if train is not None and test is not None:
        folder = test if split == "test" else train
        inside = paths.prefixed(folder)
        labels, classes = _classes(paths, inside, skip=len(folder))
        return Layout(np.arange(inside.start, inside.stop), labels, classes)
    labels, classes = _classes(paths, range(len(paths)), skip=0)
    if split == "all":
        return Layout(np.arange(len(paths)), labels, classes)
    hidden = hashed_test_mask(list(paths), labels)
    indices = np.flatnonzero(hidden if split == "test" else ~hidden)
    return Layout(indices, None if labels is None else labels[indices], classes)


def hashed_test_mask(names: list[bytes], labels: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """True for the images that a hash of their name sends to the test split.

    Every class (or the whole, when unlabelled) of two images or more gets at least one image on each side;
    only then may a name's side depend on other names.
    """
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    hashes = np.fromiter((int.from_bytes(digest, "big") for digest in digests), dtype=np.uint64, count=len(names))
    hidden = hashes < np.uint64(int(TEST_SHARE * 2**64))
    groups = np.zeros(len(names), dtype=np.int64) if labels is None else labels
    counts = np.bincount(groups)
    hidden_counts = np.bincount(groups[hidden], minlength=len(counts))
    for group in np.flatnonzero((counts >= 2) & (hidden_counts == 0)):
        members = np.flatnonzero(groups == group)
        hidden[members[np.argmin(hashes[members])]] = True
    for group in np.flatnonzero((counts >= 2) & (hidden_counts == counts)):
        members = np.flatnonzero(groups == group)
        hidden[members[np.argmax(hashes[members])]] = False
    return hidden


def _split_folder(paths: PathTable, names: Sequence[str]) -> bytes | None:
    """The first of these folders (with "/", in any usual case) that holds images."""
    for name in names:
        for spelled in (name, name.capitalize(), name.upper()):
            folder = spelled.encode() + b"/"
            if paths.prefixed(folder):
                return folder
    return None


def _classes(paths: PathTable, inside: range, skip: int) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Label of each image in the range by its first folder after `skip` bytes, and the sorted classes.

    (None, None) when an image lies in no folder. Sorted paths keep a class together, so only one path a class
    is read.
    """
    runs: dict[bytes, slice] = {}
    position = inside.start
    while position < inside.stop:
        path = paths[position]
        name, slash, _ = path[skip:].partition(b"/")
        if not slash:
            return None, None
        end = paths.prefixed(path[:skip] + name + b"/").stop
        runs[name] = slice(position - inside.start, end - inside.start)
        position = end
    if not runs:
        return None, None
    labels = np.empty(len(inside), dtype=np.int64)
    for label, name in enumerate(sorted(runs)):
        labels[runs[name]] = label
    return labels, tuple(name.decode("utf-8", "backslashreplace") for name in sorted(runs))
