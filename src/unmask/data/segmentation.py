"""Images with a class for every pixel: which files belong together, and what they must hold.

Shape legend: H x W pixels of the image.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from unmask.data.annotated import IGNORE, SegmentationSource
from unmask.data.dataset import BadFile
from unmask.data.decode import DecodeError, OpenImage, open_image
from unmask.data.index import index_folder
from unmask.data.layout import TEST_FOLDERS, arrange
from unmask.data.paths import PathTable
from unmask.data.scenes import Half, open_scenes_segmentation
from unmask.data.sources import FileSource
from unmask.data.stored import StoredPixels

BUILTIN_SEGMENTATION = "builtin:scenes"
CLASSES_FILE = "classes.txt"
ADE_CLASSES_FILE = "objectInfo150.txt"
ADE_CLASSES = 150
MOST_CLASSES = IGNORE
LOOKED_AT = 8
"""Images of each half that are read before anything is trained: if none of them fits its mask, nothing will."""
MASKS_LOOKED_AT = 200
"""Training masks that are read to find the classes where no file names them."""
_ADE_PARTS: dict[Half, bytes] = {"train": b"training/", "test": b"validation/"}
_SCALED_GREY = {2: 85, 4: 17}  # a PNG of this many grey bits: Pillow multiplies its values to fill 8 bits
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class FolderSegmentation(FileSource, SegmentationSource):
    """Image files, with a mask each: a PNG of the same name in a folder beside theirs.

    `relabel` turns the values of a mask file into classes and `IGNORE`.
    """

    classes: tuple[str, ...]

    def __init__(
        self,
        name: str,
        root: Path,
        images: Sequence[bytes],
        *,
        folders: tuple[bytes, bytes],
        classes: tuple[str, ...],
        relabel: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ) -> None:
        """`folders` are those of images and masks, relative to `root` and ending with "/"; `images` lie in the first
        and are named relative to `root`, too."""
        super().__init__(name, root, images)
        self.classes = classes
        self._masks = FileSource(name, root, [_mask_path(path, folders) for path in images])
        self._relabel = relabel

    def mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """The class of every pixel, `IGNORE` where none is to be counted. Raises OSError and DecodeError.

        Whether values are classes is for `open_pair` to check.
        """
        values_HW = read_index_mask(self._masks.read(index))
        return values_HW if self._relabel is None else self._relabel(values_HW)


def read_index_mask(data: bytes) -> UInt8[np.ndarray, "H W"]:
    """The numbers in an image file of one value a pixel: grey of at most 8 bits, or a palette's numbers.

    Raises DecodeError for damaged files and for other kinds of images.
    """
    image = open_image(data).image
    if isinstance(image, StoredPixels):
        return _stored_numbers(image.values_HWC)
    if image.mode not in ("1", "L", "P"):
        raise DecodeError(f"a mask must have one number a pixel (grey or palette), not be {image.mode}")
    values_HW = np.array(image).astype(np.uint8)
    if data.startswith(_PNG_SIGNATURE):
        bits, kind = struct.unpack_from("BB", data, 24)
        if kind == 0 and bits in _SCALED_GREY:
            values_HW //= _SCALED_GREY[bits]
    return values_HW


def _stored_numbers(values_HWC: NDArray[Any]) -> UInt8[np.ndarray, "H W"]:
    """A mask from an array file (.npy) or a TIFF of one channel, where its numbers are whole and fit 8 bits."""
    if values_HWC.shape[2] != 1 or values_HWC.dtype.kind not in "ui":
        raise DecodeError(
            f"a mask must have one whole number a pixel, not {values_HWC.shape[2]} of type {values_HWC.dtype}"
        )
    lowest, highest = int(values_HWC.min()), int(values_HWC.max())
    if lowest < 0 or highest > IGNORE:
        raise DecodeError(f"a mask must hold numbers from 0 to {IGNORE}, not from {lowest} to {highest}")
    return values_HWC[:, :, 0].astype(np.uint8)


def reduce_zero_label(values_HW: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """ADE20K's numbers as classes: k is class k - 1; 0, which is what nobody named, and 255 are ignored.

    [mmsegmentation's reduce_zero_label]
    """
    return np.where(values_HW == IGNORE, IGNORE, values_HW - np.uint8(1)).astype(np.uint8)


def open_segmentation(spec: str | Path, split: Half) -> SegmentationSource:
    """The images of one half of `spec`, with their masks.

    - ADE20K: `images/training` and `images/validation` beside `annotations/`, numbers 1 to 150 with 0 to be ignored;
      classes are named by `objectInfo150.txt` (the first word for each), where it is there;
    - `train/` beside `val/`, `test/`, `valid/` or `validation/`, each with `images/` and `masks/`;
    - `images/` beside `masks/`: with such folders inside both, these are the halves, otherwise a hash of each name
      sends about a fifth to "test";
    - `builtin:scenes`.

    The mask of `images/a/b.jpg` is `masks/a/b.png`: one number a pixel, 255 where it does not count. `classes.txt`, in
    the folder or in each half, names the classes, one a line from number 0; without it they are "0", "1" ... up to the
    largest number in the training masks (200 of them, spread evenly, where there are more).

    Raises ValueError with one sentence where there is nothing to be had, an image has no mask, there are fewer than two
    classes, or none of the first images looked at fits its mask.
    """
    if str(spec) == BUILTIN_SEGMENTATION:
        return open_scenes_segmentation(split)
    folder = _find(spec)
    source = _source(folder, split, _names(folder, split) or _numbers(folder))
    _require_several(source)
    _require_fit(source)
    return source


def segmentation_halves(spec: str | Path) -> tuple[SegmentationSource, SegmentationSource]:
    """The training and the test images of `spec` (see `open_segmentation`), checked by `check_halves`.

    Raises ValueError also where no file names the classes and a test mask (200 are looked at) holds a larger number
    than the training masks.
    """
    if str(spec) == BUILTIN_SEGMENTATION:
        return open_scenes_segmentation("train"), open_scenes_segmentation("test")
    folder = _find(spec)
    train_names, test_names = _names(folder, "train"), _names(folder, "test")
    train = _source(folder, "train", train_names or _numbers(folder))
    test = _source(folder, "test", test_names or train.classes)
    largest = max(_values_in(test), default=0) if test_names is None else 0
    if largest >= len(test.classes):
        raise ValueError(
            f"a test mask of {spec} holds the number {largest}, the training masks only numbers up to "
            f"{len(test.classes) - 1}: name all classes, one a line, in {CLASSES_FILE}"
        )
    check_halves(train, test)
    return train, test


def check_halves(train: SegmentationSource, test: SegmentationSource) -> None:
    """Raise ValueError where these cannot be the two halves of one task.

    That is where they have other classes, or only one, or where none of the first images looked at fits its mask.
    """
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        why = f"{odd[0]} is only in one of them" if odd else "their order differs"
        raise ValueError(f"{train.name} has not the same classes for training and testing: {why}")
    for source in (train, test):
        _require_several(source)
        _require_fit(source)


def open_pair(source: SegmentationSource, index: int) -> tuple[OpenImage, UInt8[np.ndarray, "H W"]]:
    """An image, of a JPEG only its header, and the mask that fits it.

    Raises OSError and DecodeError, the latter also where sizes differ or the mask holds what is no class.
    """
    opened = source.open(index)
    try:
        mask_HW = source.mask(index)
    except (OSError, DecodeError) as error:
        # The file that is named is the image's.
        raise DecodeError(f"its mask: {BadFile.of(source, index, error).reason}") from error
    if mask_HW.shape != (opened.height, opened.width):
        height, width = mask_HW.shape
        raise DecodeError(f"its mask has {width} x {height} pixels, the image {opened.width} x {opened.height}")
    largest = int(np.where(mask_HW == IGNORE, 0, mask_HW).max(initial=0))
    if largest >= len(source.classes):
        raise DecodeError(f"its mask holds class {largest}, but the classes are 0 to {len(source.classes) - 1}")
    return opened, mask_HW


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """What a folder holds: for each half its images, and the folders ("/" at the end) of its images and its masks."""

    spec: str
    root: Path
    images: dict[Half, list[bytes]]
    folders: dict[Half, tuple[bytes, bytes]]
    ade: bool = False


def _mask_path(image: bytes, folders: tuple[bytes, bytes]) -> bytes:
    stem, _, _ = image.removeprefix(folders[0]).rpartition(b".")
    return folders[1] + stem + b".png"


def _find(spec: str | Path) -> _Folder:
    """Which images and masks there are. ValueError where there are none, or an image is without its mask."""
    root = Path(spec).expanduser()
    if not root.exists():
        raise ValueError(f"{spec} does not exist")
    if not root.is_dir():
        raise ValueError(f"{spec} is not a folder of images and masks")
    try:
        paths = index_folder(root)
    except OSError as error:
        raise ValueError(f"{spec} cannot be read: {error.strerror}") from error
    found = _ade(paths) or _split(paths) or _beside(paths)
    known = set(paths)
    images = {half: names for half, (_, names) in found.items()}
    folders = {half: pair for half, (pair, _) in found.items()}
    masks = {half: [_mask_path(name, folders[half]) for name in images[half]] for half in images}
    if not any(mask in known for names in masks.values() for mask in names):
        raise ValueError(
            f"{spec} has no masks: it needs images/ beside masks/ with a PNG of the same name for each image, or "
            "train/ beside val/ with both in each, or ADE20K's images/ beside annotations/"
        )
    for half in images:
        without = [place for place, mask in enumerate(masks[half]) if mask not in known]
        if without:
            image, mask = (names[half][without[0]].decode("utf-8", "backslashreplace") for names in (images, masks))
            raise ValueError(
                f"{len(without)} of the {len(images[half])} {half} images of {spec} have no mask: there is {image} but "
                f"no {mask}"
            )
    return _Folder(
        spec=str(spec), root=root, images=images, folders=folders, ade=folders["train"][1].startswith(b"annotations/")
    )


_Found = dict[Half, tuple[tuple[bytes, bytes], list[bytes]]]


def _ade(paths: PathTable) -> _Found | None:
    if not paths.prefixed(b"annotations/") or not paths.prefixed(b"images/" + _ADE_PARTS["train"]):
        return None
    pairs = {half: (b"images/" + part, b"annotations/" + part) for half, part in _ADE_PARTS.items()}
    return {half: (pair, _inside(paths, pair[0])) for half, pair in pairs.items()}


def _split(paths: PathTable) -> _Found | None:
    """A folder of training images beside one of test images, named as in `unmask.data.layout`."""
    train = _first_with_images(paths, ("train",))
    test = _first_with_images(paths, TEST_FOLDERS)
    if train is None and test is None:
        return None
    train, test = train or b"train/", test or b"val/"
    pairs: dict[Half, tuple[bytes, bytes]] = {
        "train": (train + b"images/", train + b"masks/"),
        "test": (test + b"images/", test + b"masks/"),
    }
    return {half: (pair, _inside(paths, pair[0])) for half, pair in pairs.items()}


def _beside(paths: PathTable) -> _Found:
    """`images/` beside `masks/`, cut into halves by their folders or by a hash of their names."""
    pair = (b"images/", b"masks/")
    names = [path.removeprefix(pair[0]) for path in _inside(paths, pair[0])]
    halves: tuple[Half, Half] = ("train", "test")
    chosen = {half: arrange(PathTable.of(names), half).indices.tolist() if names else [] for half in halves}
    return {half: (pair, [pair[0] + names[place] for place in chosen[half]]) for half in halves}


def _inside(paths: PathTable, folder: bytes) -> list[bytes]:
    found = paths.prefixed(folder)
    return paths[found.start : found.stop]


def _first_with_images(paths: PathTable, names: Sequence[str]) -> bytes | None:
    for name in names:
        for spelled in (name, name.capitalize(), name.upper()):
            if paths.prefixed(spelled.encode() + b"/images/"):
                return spelled.encode() + b"/"
    return None


def _source(folder: _Folder, half: Half, classes: tuple[str, ...]) -> FolderSegmentation:
    images = folder.images[half]
    if not images:
        raise ValueError(f"{folder.spec} has no images for the split {half}")
    return FolderSegmentation(
        folder.spec,
        folder.root,
        images,
        folders=folder.folders[half],
        classes=classes,
        relabel=reduce_zero_label if folder.ade else None,
    )


def _names(folder: _Folder, half: Half) -> tuple[str, ...] | None:
    """The names of the classes that a file gives; None where there is no such file."""
    if folder.ade:
        return _ade_names(folder.root / ADE_CLASSES_FILE)
    halves: tuple[Half, Half] = (half, "train")
    beside = [(folder.root / os.fsdecode(folder.folders[owner][0])).parent for owner in halves]
    for place in (folder.root, *beside):
        if (place / CLASSES_FILE).exists():
            return tuple(_lines(place / CLASSES_FILE))
    return None


def _numbers(folder: _Folder) -> tuple[str, ...]:
    """The numbers up to the largest in the training masks, as names."""
    every = tuple(str(number) for number in range(MOST_CLASSES))
    train = _source(folder, "train", every)
    _require_fit(train)
    values = _values_in(train)
    if len(values) < 2:
        held = f"the number {min(values)} alone" if values else "no number"
        raise ValueError(
            f"{folder.spec} has only one class: its training masks hold {held}, beside {IGNORE}, which is ignored"
        )
    return every[: max(values) + 1]


def _ade_names(file: Path) -> tuple[str, ...]:
    """The first name of each class. A row is number, share, counts and names, with tabs between."""
    if not file.exists():
        return tuple(f"class {number + 1}" for number in range(ADE_CLASSES))
    rows = [line.split("\t") for line in _lines(file)]
    names = tuple(row[-1].partition(",")[0].strip() for row in rows if row[0].strip().isdigit())
    if len(names) != ADE_CLASSES:
        raise ValueError(f"{file} names {len(names)} classes, not the {ADE_CLASSES} of ADE20K")
    return names


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text: {error}") from error
    names = [line.strip() for line in lines]
    if not names:
        raise ValueError(f"{file} is empty; it must name one class a line")
    if "" in names:
        raise ValueError(f"line {names.index('') + 1} of {file} is empty, so the classes after it would be misnamed")
    return names


def _values_in(source: SegmentationSource) -> set[int]:
    """The numbers that masks hold, `IGNORE` left out; at most `MASKS_LOOKED_AT` masks, spread evenly, are read."""
    found: set[int] = set()
    for index in _spread(len(source), MASKS_LOOKED_AT):
        try:
            found |= set(np.unique(source.mask(index)).tolist())
        except (OSError, DecodeError):
            continue
    return found - {IGNORE}


def _spread(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)).tolist()


def _require_several(source: SegmentationSource) -> None:
    if len(source.classes) < 2:
        raise ValueError(
            f"{source.name} has only one class, {', '.join(source.classes)}: there is nothing to tell apart"
        )
    if len(source.classes) > MOST_CLASSES:
        raise ValueError(f"{source.name} has {len(source.classes)} classes; 8-bit masks tell {MOST_CLASSES} at most")


def _require_fit(source: SegmentationSource) -> None:
    """Raise ValueError where none of a handful of images fits its mask."""
    reasons: list[str] = []
    looked_at = _spread(len(source), LOOKED_AT)
    for index in looked_at:
        try:
            open_pair(source, index)
            return
        except (OSError, DecodeError) as error:
            reasons.append(f"{source.path(index)}: {BadFile.of(source, index, error).reason}")
    raise ValueError(
        f"none of the {len(looked_at)} images of {source.name} that were looked at can be used with its mask, for "
        f"example {reasons[0]}"
    )
