"""Images of several classes each, or of none, from a CSV file.

The first line names the columns. Either `labels` holds the names of an image's classes, with `;` or `|` between them
(an empty cell: no class), or every class has a column of its own with 0 or 1:

    image,labels,split            image,cat,dog,split
    a.jpg,cat;dog,train           a.jpg,1,1,train
    b.jpg,,test                   b.jpg,0,0,test

Images are named relative to the file's folder; `split` may be missing. Shape legend: N images, K classes.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.data.layout import TEST_FOLDERS, hashed_test_mask
from unmask.data.sources import FileSource

IMAGE, LABELS, SPLIT = "image", "labels", "split"


class MultiLabelSource(FileSource):
    """Image files of which each has any number of classes.

    `targets_NK` is 1 where an image has a class and 0 elsewhere, float32; `classes` names its columns. `labels` is
    None: an image has no one class.
    """

    def __init__(
        self, name: str, root: Path, paths: Sequence[bytes], targets_NK: NDArray[np.float32], classes: tuple[str, ...]
    ) -> None:
        assert targets_NK.shape == (len(paths), len(classes))
        super().__init__(name, root, paths)
        self.targets_NK = targets_NK
        self.classes = classes


def open_multilabel(path: str | Path) -> tuple[MultiLabelSource, MultiLabelSource]:
    """The training and the test images of a CSV file, with the same classes in both.

    Classes are the sorted names in `labels`, or the columns in their order. A column `split` says `train` for training
    and `val`, `test`, `valid` or `validation` for testing; as with folders, the first of these that occurs is taken and
    rows of the others are left out. Without the column a hash of each name sends about a fifth of the images to
    testing; of the images whose rarest class is the same, two or more, each half gets one at least. Whether the files
    exist shows when they are read. Raises ValueError with one sentence where the file cannot be read as such, has no
    images for training or testing or fewer than two classes, or a class has no image for training.
    """
    table = _read(Path(path).expanduser())
    names = _names(table)
    classes, targets_NK = _targets(table)
    half_N = _halves(table, names, targets_NK)
    halves = []
    for half, name in enumerate(("training", "testing")):
        indices = np.flatnonzero(half_N == half)
        if not len(indices):
            raise ValueError(f"{table.file} has no image for {name}")
        paths = [names[index] for index in indices.tolist()]
        halves.append(MultiLabelSource(str(path), table.file.parent, paths, targets_NK[indices], classes))
    train, test = halves
    for class_name, positives in zip(classes, train.targets_NK.sum(axis=0).tolist(), strict=True):
        if not positives:
            raise ValueError(f"{table.file} has no training image of the class {class_name!r}, so it cannot be learned")
    return train, test


def rarest_class(targets_NK: NDArray[np.float32]) -> NDArray[np.int64]:
    """For every image the rarest of its classes, K for an image without a class: one group an image.

    What shares out these groups evenly shares out rare classes, too.
    """
    counts_NK = np.where(targets_NK > 0, targets_NK.sum(axis=0), np.inf)
    return np.where(targets_NK.any(axis=1), counts_NK.argmin(axis=1), targets_NK.shape[1]).astype(np.int64)


@dataclass(frozen=True)
class _Table:
    """The rows of a file, each with as many cells as there are columns, and the line on which each ends."""

    file: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def where(self, row: int) -> str:
        return f"{self.file}, line {self.lines[row]},"


def _read(file: Path) -> _Table:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: byte {error.start} cannot be read") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        columns = tuple(cell.strip() for cell in next(reader, []))
        _check_columns(file, columns)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(columns):
                raise ValueError(
                    f"{file}, line {reader.line_num}, has {len(cells)} cells, but the first line names {len(columns)} "
                    "columns"
                )
            rows.append([cell.strip() for cell in cells])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}, is not CSV: {error}") from error
    if not rows:
        raise ValueError(f"{file} lists no image")
    return _Table(file, columns, rows, lines)


def _check_columns(file: Path, columns: tuple[str, ...]) -> None:
    if IMAGE not in columns:
        raise ValueError(f"{file} has no column {IMAGE!r}: its first line must name the columns")
    double = [column for column in columns if columns.count(column) > 1]
    if double:
        raise ValueError(f"{file} has more than one column {double[0]!r}")
    others = [column for column in columns if column not in (IMAGE, LABELS, SPLIT)]
    if LABELS in columns and others:
        raise ValueError(f"{file} has a column {LABELS!r} and beside it {others[0]!r}: name classes in one way only")
    if LABELS not in columns and not others:
        raise ValueError(f"{file} has no column {LABELS!r} and no column for a class")


def _names(table: _Table) -> list[bytes]:
    """The names of the images, none of them twice."""
    names, seen = [], set()
    for row, cell in enumerate(table.column(IMAGE)):
        if not cell:
            raise ValueError(f"{table.where(row)} names no image")
        name = os.fsencode(os.path.normpath(cell))
        if name in seen:
            raise ValueError(f"{table.where(row)} names {cell!r} once more: give all its classes on one line")
        seen.add(name)
        names.append(name)
    return names


def _targets(table: _Table) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """The classes, and which row has which."""
    if LABELS in table.columns:
        given = [{word.strip() for word in re.split("[;|]", cell)} - {""} for cell in table.column(LABELS)]
        classes = tuple(sorted(set().union(*given)))
        column_of = {name: column for column, name in enumerate(classes)}
        targets_NK = np.zeros((len(given), len(classes)), dtype=np.float32)
        for row, words in enumerate(given):
            targets_NK[row, [column_of[word] for word in words]] = 1
    else:
        classes = tuple(column for column in table.columns if column not in (IMAGE, SPLIT))
        targets_NK = np.stack([_zeros_and_ones(table, name) for name in classes], axis=1)
    if len(classes) < 2:
        raise ValueError(f"{table.file} has fewer than two classes: there is nothing to tell apart")
    return classes, targets_NK


def _zeros_and_ones(table: _Table, name: str) -> NDArray[np.float32]:
    cells = table.column(name)
    for row, cell in enumerate(cells):
        if cell not in ("0", "1"):
            raise ValueError(f"{table.where(row)} has {cell!r} for the class {name!r}, which must be 0 or 1")
    return np.array(cells, dtype=np.float32)


def _halves(table: _Table, names: list[bytes], targets_NK: NDArray[np.float32]) -> NDArray[np.int64]:
    """0 for training, 1 for testing, 2 for neither."""
    if SPLIT not in table.columns:
        return hashed_test_mask(names, rarest_class(targets_NK)).astype(np.int64)
    words = [word.lower() for word in table.column(SPLIT)]
    for row, word in enumerate(words):
        if word not in ("train", *TEST_FOLDERS):
            raise ValueError(
                f"{table.where(row)} has the split {word!r}, which is none of train, {', '.join(TEST_FOLDERS)}"
            )
    test = next((word for word in TEST_FOLDERS if word in words), None)
    return np.array([0 if word == "train" else 1 if word == test else 2 for word in words])
