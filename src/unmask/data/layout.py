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
    # Joined first: a million digests become numbers at once.
    digests = b"".join([hashlib.blake2b(name, digest_size=8).digest() for name in names])
    hashes = np.frombuffer(digests, dtype=">u8").astype(np.uint64)
    hidden = hashes < np.uint64(int(TEST_SHARE * 2**64))
    groups = np.zeros(len(names), dtype=np.int64) if labels is None else labels
    counts = np.bincount(groups)
    hidden_counts = np.bincount(groups[hidden], minlength=len(counts))
    hidden[_lowest(hashes, groups, np.flatnonzero((counts >= 2) & (hidden_counts == 0)), counts)] = True
    hidden[_lowest(~hashes, groups, np.flatnonzero((counts >= 2) & (hidden_counts == counts)), counts)] = False
    return hidden


def _lowest(
    hashes: NDArray[np.uint64], groups: NDArray[np.int64], wanted: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Position of the lowest hash of each wanted group, the first of equal ones.

    One sort for all groups, for there may be half as many as images.
    """
    if not len(wanted):
        return wanted
    return np.lexsort((hashes, groups))[(np.cumsum(counts) - counts)[wanted]]


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
        end = paths.end_of(path[:skip] + name + b"/", position)
        runs[name] = slice(position - inside.start, end - inside.start)
        position = end
    if not runs:
        return None, None
    labels = np.empty(len(inside), dtype=np.int64)
    for label, name in enumerate(sorted(runs)):
        labels[runs[name]] = label
    return labels, tuple(name.decode("utf-8", "backslashreplace") for name in sorted(runs))
