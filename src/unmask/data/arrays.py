"""Images that are arrays: given in memory, or in one file of NumPy's with all images.

Nothing is unpickled. Shape legend: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import ArrayLike, NDArray

from unmask.data.decode_errors import DecodeError
from unmask.data.layout import Layout, Split, hashed_test_mask
from unmask.data.source import Source, select
from unmask.data.stored import channel_axis

_TRAIN, _TEST = "train", ("test", "val")
_PAIRS = (("images", "labels"), ("x", "y"))
"""What arrays of a `.npz` file are called: images and their labels; of a half "train_images" or "x_train"."""


class ArraySource(Source):
    """Images that are arrays [H, W, C] (or [H, W]) of numbers, of any number of channels and any sizes."""

    kind = "arrays"

    def __init__(
        self,
        name: str,
        images: Sequence[NDArray[Any]] | NDArray[Any],
        *,
        labels: ArrayLike | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        if labels is not None and len(np.asarray(labels)) != len(images):
            raise ValueError(f"{name} has {len(images)} images but {len(np.asarray(labels))} labels")
        self.name = name
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.classes = classes
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def path(self, index: int) -> str:
        return f"{self.name}/{index}"

    def read(self, index: int) -> NDArray[Any]:
        image: NDArray[Any] = self._images[index]
        return image


def is_array_file(path: Path) -> bool:
    """Whether a file holds NumPy's arrays, by its name."""
    return path.suffix.lower() in (".npy", ".npz")


def open_arrays(spec: str, path: Path, split: Split) -> Source:
    """The images of a split of a `.npy` file, [N, H, W], [N, H, W, C] or [N, C, H, W], or of a `.npz` file with such
    arrays and their labels.

    ValueError, with one sentence, for anything else.
    """
    if path.suffix.lower() == ".npy":
        with _errors(spec):
            # Mapped into memory: of an array of any size only the images are read that are asked for.
            stack = np.load(path, mmap_mode="r", allow_pickle=False)
        return _halved(spec, stack, None, None, split)
    with _errors(spec):
        file = np.load(path, allow_pickle=False)
    if not isinstance(file, NpzFile):
        raise ValueError(f"{spec} is no .npz file")
    with file:
        return _of_archive(spec, _Arrays(spec, file), split)


@contextmanager
def _errors(spec: str) -> Iterator[None]:
    """A sentence for all that a damaged file provokes, or one that claims to be huge."""
    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        MemoryError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{spec} cannot be read as NumPy's arrays: {error}") from error


class _Arrays:
    """The arrays of an archive, read when they are asked for."""

    def __init__(self, spec: str, file: NpzFile) -> None:
        self.names = list(file.files)
        self._spec = spec
        self._file = file

    def __getitem__(self, name: str) -> NDArray[Any]:
        with _errors(self._spec):
            found: NDArray[Any] = self._file[name]
        if not isinstance(found, np.ndarray):
            raise ValueError(f"{self._spec} holds {name}, which is no array")
        return found


def _of_archive(spec: str, file: _Arrays, split: Split) -> Source:
    names = file.names
    if len(names) == 1:
        return _halved(spec, file[names[0]], None, None, split)
    for images, labels in _PAIRS:
        if images in names:
            return _halved(spec, file[images], *_classes(spec, [file[labels]] if labels in names else []), split)
        halves = _halves(names, images)
        if halves is None:
            continue
        called = {half: (f"{half}_{labels}", f"{labels}_{half}") for half in halves}
        found = [file[name] for half in halves for name in called[half] if name in names]
        both, classes = _classes(spec, found if len(found) == 2 else [])
        train, test = (file[name] for name in halves.values())
        if both is not None and len(both) != len(train) + len(test):
            raise ValueError(f"{spec} has {len(train) + len(test)} images but {len(both)} labels")
        own = slice(len(train), None) if split == "test" else slice(len(train))
        stack, labels_N = (test if split == "test" else train), None if both is None else both[own]
        return _whole(spec, stack, labels_N, classes)
    raise ValueError(
        f"{spec} holds the arrays {', '.join(sorted(names)[:8])}: one of them alone, or images and labels, or "
        "train_images and test_images with their labels are wanted"
    )


def _halves(names: Sequence[str], images: str) -> dict[str, str] | None:
    """The arrays of the two halves by their half; None where they are not both there."""

    def of(half: str) -> str | None:
        return next((name for name in (f"{half}_{images}", f"{images}_{half}") if name in names), None)

    train, test = of(_TRAIN), next((half for half in _TEST if of(half) is not None), None)
    found = None if test is None else of(test)
    return None if train is None or test is None or found is None else {_TRAIN: train, test: found}


def _classes(spec: str, labels: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels as positions in the sorted classes, those of several arrays one after the other."""
    if not labels:
        return None, None
    columns = [array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array for array in labels]
    if any(column.ndim != 1 or column.dtype.kind not in "uibUS" for column in columns):
        shapes = " and ".join(f"{array.dtype} of {array.shape}" for array in labels)
        raise ValueError(f"the labels of {spec} must be one whole number or word an image, not {shapes}")
    values, places = np.unique(np.concatenate(columns), return_inverse=True)
    words = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in values]
    return places.astype(np.int64), tuple(words)


def _whole(
    spec: str, images: NDArray[Any], labels: NDArray[np.int64] | None, classes: tuple[str, ...] | None
) -> ArraySource:
    """All images of an array. ValueError where it is no array of images."""
    if images.dtype != np.bool_ and images.dtype.kind not in "uif":
        raise ValueError(f"{spec} holds {images.dtype}, which are no pixels")
    if images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"{spec} must hold images as [N, H, W], [N, H, W, C] or [N, C, H, W], not {images.shape}; one image alone "
            "goes into a folder"
        )
    if images.ndim == 4:
        try:
            axis = channel_axis(images.shape[1:])
        except DecodeError as error:
            raise ValueError(f"{spec} cannot be used: of an image {error}") from error
        images = images.transpose(0, 2, 3, 1) if axis == 0 else images
    return ArraySource(spec, images, labels=labels, classes=classes)


def _halved(
    spec: str, images: NDArray[Any], labels: NDArray[np.int64] | None, classes: tuple[str, ...] | None, split: Split
) -> Source:
    """A split of images that come without one, by a hash of their positions."""
    source = _whole(spec, images, labels, classes)
    if split == "all":
        return source
    hidden = hashed_test_mask([b"%d" % place for place in range(len(source))], labels)
    indices = np.flatnonzero(hidden if split == "test" else ~hidden)
    return select(source, Layout(indices, None if labels is None else labels[indices], classes), spec, split)
