"""Images with boxes and outlines in COCO's JSON layout: which files belong together, and whether they make sense.

Shape legend: N images, A annotations, K things of one image, H x W pixels.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray

from unmask.data.annotated import DetectionSource, Things
from unmask.data.decode import MAX_PIXELS, DecodeError, read_size
from unmask.data.layout import TEST_FOLDERS, Split, hashed_test_mask
from unmask.data.paths import as_path
from unmask.data.scenes import open_scenes_detection
from unmask.data.sources import FileSource
from unmask.errors import in_short

BUILTIN_DETECTION = "builtin:scenes"
ANNOTATIONS = ("annotations.json", "_annotations.coco.json")
"""What the file beside the images is called; the second by Roboflow."""
YEARS = ("2017", "2014", "")
TOLERANCE = 1.0
"""By how many pixels a box may leave its image, as boxes counted from one do; it is then clipped."""


class CocoSource(FileSource, DetectionSource):
    """The images that a COCO file lists, with their things.

    `unannotated` counts the images left out of training because nothing but crowds is marked in them, `empty_boxes` the
    annotations left out because their box has no area, `without_outline` those that have a box alone; one of these,
    and `has_masks` is False for the whole source.
    """

    classes: tuple[str, ...]

    def __init__(
        self, name: str, root: Path, table: _Table, images_N: NDArray[np.int64], classes: tuple[str, ...]
    ) -> None:
        """`images_N` are places in the table; `classes` the table's in any order."""
        super().__init__(name, root, [table.names[place] for place in images_N.tolist()])
        self.classes = classes
        self.has_masks = not table.without_outline
        self.empty_boxes = table.empty_boxes
        self.without_outline = table.without_outline
        self.unannotated = 0
        self._table = table
        self._images_N = images_N
        self._label_of = np.array([classes.index(word) for word in table.classes], dtype=np.int64)

    def read(self, index: int) -> bytes:
        """The bytes of the file. Raises OSError, and DecodeError where the image is not of its annotations' size."""
        data = super().read(index)
        found, (height, width) = read_size(data), self._table.sizes_N2[self._images_N[index]].tolist()
        if found != (height, width):
            raise DecodeError(f"it has {found[1]} x {found[0]} pixels, its annotations are for {width} x {height}")
        return data

    def things(self, index: int) -> Things:
        """What is in the image. Raises DecodeError for an outline that cannot be read."""
        table, image = self._table, self._images_N[index]
        places_K = np.arange(*table.starts[image : image + 2])
        masks = None
        if self.has_masks:
            size = table.sizes_N2[image].tolist()
            if math.prod(size) > MAX_PIXELS:
                raise DecodeError(f"its annotations are for more than the {MAX_PIXELS} pixels allowed")
            masks = np.zeros((len(places_K), *size), dtype=np.bool_)
            for mask_HW, place in zip(masks, places_K.tolist(), strict=True):
                mask_HW[:] = table.outlines.mask(place, *size)
        return Things(
            boxes_K4=table.boxes_A4[places_K],
            labels_K=self._label_of[table.labels_A[places_K]],
            masks_KHW=masks,
            crowd_K=table.crowd_A[places_K],
        )


def open_detection(spec: str | Path, split: Split) -> DetectionSource:
    """The images of one half of `spec`, with their things; "all" is what may be trained on.

    - COCO's own layout: `annotations/instances_train2017.json` (or 2014, or no year) for the images in `train2017/`,
      and the same with `val`;
    - `train/` beside `val/`, `test/`, `valid/` or `validation/`, each with an `annotations.json` among its images, or
      `train.json` and `val.json` (and so on) beside the folders;
    - one folder with `annotations.json`, or the JSON file itself: a hash of each image's name sends about a fifth to
      "test". Images lie beside the file, or in `images/`;
    - `builtin:scenes`.

    Outlines are polygons or run lengths, plain or compressed. Images in which nothing but crowds is marked stay in the
    test half and are left out of the training half. Raises ValueError with one sentence where there is nothing to be
    had or the file says what cannot be.
    """
    if str(spec) == BUILTIN_DETECTION:
        return open_scenes_detection(split)
    places = _find(spec)
    half = places[-1] if split == "test" else places[0]
    table = _read(half.file)
    return _source(str(spec), half, table, split, table.classes, hashed=len(places) == 1)


def detection_halves(spec: str | Path) -> tuple[DetectionSource, DetectionSource]:
    """The training and the test images of `spec` (see `open_detection`), with the same classes in both.

    Raises ValueError also where a kind of thing is named in one half only.
    """
    if str(spec) == BUILTIN_DETECTION:
        return open_scenes_detection("train"), open_scenes_detection("test")
    places = _find(spec)
    tables = [_read(half.file) for half in places]
    classes = tables[0].classes
    odd = sorted(set(classes) ^ set(tables[-1].classes))
    if odd:
        raise ValueError(
            f"{spec} has not the same categories for training and testing: {odd[0]} is only in one of them"
        )
    hashed = len(places) == 1
    train = _source(str(spec), places[0], tables[0], "train", classes, hashed=hashed)
    return train, _source(str(spec), places[-1], tables[-1], "test", classes, hashed=hashed)


@dataclass(frozen=True)
class _Place:
    """A file of annotations and the folder of its images."""

    file: Path
    folder: Path


def _find(spec: str | Path) -> tuple[_Place, ...]:
    """Training and test annotations, or one place for both. ValueError where there are none."""
    root = Path(spec).expanduser()
    if root.suffix == ".json" and root.is_file():
        return (_with_images(root),)
    if not root.is_dir():
        raise ValueError(
            f"{spec} is neither a folder nor a COCO .json file" if root.exists() else f"{spec} does not exist"
        )
    halves: dict[str, list[_Place]] = {"train": [], "val": []}
    for year in YEARS:
        for half, found in halves.items():
            file = root / "annotations" / f"instances_{half}{year}.json"
            if file.is_file():
                found.append(_Place(file, root / f"{half}{year}"))
    train, test = halves["train"], halves["val"]
    train += _beside(root, ("train",))
    test += _beside(root, TEST_FOLDERS)
    if train and test:
        return train[0], test[0]
    if train or test:
        there, missing = (train[0].file, "test") if train else (test[0].file, "training")
        raise ValueError(f"{spec} has {there.relative_to(root)} but no annotations of {missing} images beside it")
    for name in ANNOTATIONS:
        if (root / name).is_file():
            return (_with_images(root / name),)
    raise ValueError(
        f"{spec} holds no annotations in COCO's layout: no {ANNOTATIONS[0]}, none in train/ and val/, and no "
        "annotations/instances_train2017.json"
    )


def _beside(root: Path, names: Sequence[str]) -> list[_Place]:
    """Annotations in a folder of one of these names, or beside it, in the names' order."""
    found = []
    for name in names:
        for file in (*(root / name / inside for inside in ANNOTATIONS), root / f"{name}.json"):
            if file.is_file():
                found.append(_Place(file, root / name))
    return found


def _with_images(file: Path) -> _Place:
    images = file.parent / "images"
    return _Place(file, images if images.is_dir() else file.parent)


def _source(
    spec: str, place: _Place, table: _Table, split: Split, classes: tuple[str, ...], *, hashed: bool
) -> CocoSource:
    images_N = np.arange(len(table.names))
    if hashed and split != "all":
        hidden = hashed_test_mask(table.names, None)
        images_N = np.flatnonzero(hidden if split == "test" else ~hidden)
    kept = images_N if split == "test" else images_N[table.worth_training_N[images_N]]
    if not len(kept):
        what = "no image for testing" if split == "test" else "no image for training in which a thing is marked"
        raise ValueError(f"{spec} has {what}")
    source = CocoSource(spec, place.folder, table, kept, classes)
    source.unannotated = len(images_N) - len(kept)
    return source


class _Outlines:
    """Outlines of all annotations in a few flat arrays: workers share them, as no Python object counts references.

    COCO's training set has a million polygons. Run lengths are rare there and kept as text by themselves.
    """

    def __init__(self) -> None:
        self._coordinates = array("d")
        self._polygon_ends = array("q", [0])
        self._outline_ends = array("q", [0])
        self._run_lengths: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._outline_ends) - 1

    def add(self, polygons: list[Sequence[float]], run_lengths: bytes | None) -> None:
        """Append the outline of one annotation: polygons, run lengths, or neither where it has none."""
        if run_lengths is not None:
            self._run_lengths[len(self)] = run_lengths
        for polygon in polygons:
            self._coordinates.extend(polygon)
            self._polygon_ends.append(len(self._coordinates))
        self._outline_ends.append(len(self._polygon_ends) - 1)

    def mask(self, place: int, height: int, width: int) -> NDArray[np.uint8]:
        """The pixels inside an outline, 1 or 0. Raises DecodeError."""
        run_lengths = self._run_lengths.get(place)
        if run_lengths is not None:
            try:
                return rle.decode({"size": [height, width], "counts": run_lengths})
            except (ValueError, RuntimeError) as error:
                raise DecodeError(f"an outline in its annotations cannot be read: {error}") from error
        first, last = self._outline_ends[place], self._outline_ends[place + 1]
        polygons = []
        for polygon in range(first, last):
            corners = np.array(self._coordinates[self._polygon_ends[polygon] : self._polygon_ends[polygon + 1]])
            # The library draws points far outside one by one.
            corners[::2], corners[1::2] = corners[::2].clip(0, width), corners[1::2].clip(0, height)
            polygons.append(corners.tolist())
        return rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What a COCO file says, checked. Annotations are sorted by image; those of image n start at `starts[n]`."""

    classes: tuple[str, ...]
    names: list[bytes]
    sizes_N2: NDArray[np.int64]
    starts: NDArray[np.int64]
    boxes_A4: NDArray[np.float32]
    labels_A: NDArray[np.int64]
    crowd_A: NDArray[np.bool_]
    outlines: _Outlines
    empty_boxes: int
    without_outline: int

    @property
    def worth_training_N(self) -> NDArray[np.bool_]:
        """Which images have a thing that is no crowd."""
        owner_A = np.repeat(np.arange(len(self.names)), np.diff(self.starts))
        return np.bincount(owner_A[~self.crowd_A], minlength=len(self.names)) > 0


def _read(file: Path) -> _Table:
    """The content of a COCO file. ValueError, in one sentence, for the first thing in it that cannot be."""
    content = _content(file)
    classes, label_of = _categories(file, content["categories"])
    images = _images(file, content["images"])
    entries = enumerate(content["annotations"], start=1)
    read = [_annotation(file, entry, number, images, label_of) for number, entry in entries]
    kept = sorted((annotation for annotation in read if annotation is not None), key=lambda found: found.image)
    if not kept:
        raise ValueError(f"{file} has no annotation" + (" with a box of any area" if read else ""))
    outlines = _Outlines()
    for annotation in kept:
        outlines.add(*annotation.outline)
    return _Table(
        classes=classes,
        names=images.names,
        sizes_N2=np.array(images.sizes, dtype=np.int64),
        starts=np.searchsorted([annotation.image for annotation in kept], np.arange(len(images.names) + 1)),
        boxes_A4=np.array([annotation.box for annotation in kept], dtype=np.float32),
        labels_A=np.array([annotation.label for annotation in kept], dtype=np.int64),
        crowd_A=np.array([annotation.crowd for annotation in kept], dtype=np.bool_),
        outlines=outlines,
        empty_boxes=len(read) - len(kept),
        without_outline=sum(annotation.outline == ([], None) for annotation in kept),
    )


_Outline = tuple[list[Sequence[float]], bytes | None]
_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Names and sizes (height, width) of the images, and where each number of the file stands among them."""

    names: list[bytes]
    sizes: list[tuple[int, int]]
    place_of: dict[Any, int]


@dataclass(frozen=True, kw_only=True)
class _Annotation:
    """One thing: the place of its image, its class, whether it is a crowd, left, top, right and bottom, its outline."""

    image: int
    label: int
    crowd: bool
    box: list[float]
    outline: _Outline


def _content(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    for key in _KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{file} has no list of {key!r}; a COCO file has lists of {', '.join(_KEYS)}")
    return {key: content[key] for key in _KEYS}


def _categories(file: Path, entries: list[Any]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of the kinds of things in the order of their numbers, and the label of each number."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for place, entry in enumerate(entries, start=1):
        number, name = (_get(file, "category", entry, place, key) for key in ("id", "name"))
        if not isinstance(number, int) or not isinstance(name, str):
            raise ValueError(
                f"{file}: category number {place} must have a whole number as its id and a text as its name"
            )
        if number in names or name in taken:
            raise ValueError(f"{file}: category {in_short(number)}, {in_short(name)}, is there twice")
        names[number] = name
        taken.add(name)
    return tuple(names[number] for number in sorted(names)), {number: n for n, number in enumerate(sorted(names))}


def _images(file: Path, entries: list[Any]) -> _Images:
    images = _Images(names=[], sizes=[], place_of={})
    for place, entry in enumerate(entries, start=1):
        number, name, *size = (_get(file, "image", entry, place, key) for key in ("id", "file_name", "height", "width"))
        path = as_path(name)
        if not isinstance(number, int | str) or path is None:
            raise ValueError(f"{file}: image number {place} must have an id and a file name")
        if number in images.place_of:
            raise ValueError(f"{file}: image {in_short(number)} is there twice")
        if any(not isinstance(side, int) or not 1 <= side <= MAX_PIXELS for side in size):
            raise ValueError(
                f"{file}: image {in_short(number)} must have a height and a width from 1 to {MAX_PIXELS} pixels"
            )
        images.place_of[number] = len(images.names)
        images.names.append(path)
        images.sizes.append((size[0], size[1]))
    return images


def _annotation(file: Path, entry: Any, number: int, images: _Images, label_of: dict[Any, int]) -> _Annotation | None:
    """One checked annotation; None where its box has no area."""
    image_id, category_id, given = (
        _get(file, "annotation", entry, number, key) for key in ("image_id", "category_id", "bbox")
    )
    where = f"{file}: annotation {in_short(entry['id']) if 'id' in entry else f'number {number}'}"
    if not isinstance(image_id, int | str) or image_id not in images.place_of:
        raise ValueError(f"{where} is of image {in_short(image_id)}, which is not among its images")
    if not isinstance(category_id, int) or category_id not in label_of:
        raise ValueError(f"{where} is of category {in_short(category_id)}, which is not among its categories")
    image = images.place_of[image_id]
    height, width = images.sizes[image]
    numbers = _numbers(given)
    if numbers is None or len(numbers) != 4:
        raise ValueError(f"{where} must have a box of four numbers, got {in_short(given)}")
    if min(numbers[2:]) <= 0:
        return None
    edges = [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
    if min(edges[:2]) < -TOLERANCE or edges[2] > width + TOLERANCE or edges[3] > height + TOLERANCE:
        name = in_short(os.fsdecode(images.names[image]))
        raise ValueError(
            f"{where} has the box {in_short(given)}, which leaves its image {name} of {width} x {height} pixels"
        )
    box = [min(max(edge, 0.0), float(most)) for edge, most in zip(edges, (width, height) * 2, strict=True)]
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    outline = _outline(where, entry.get("segmentation"), height, width)
    return _Annotation(
        image=image, label=label_of[category_id], crowd=bool(entry.get("iscrowd")), box=box, outline=outline
    )


def _outline(where: str, given: Any, height: int, width: int) -> _Outline:
    """Polygons and run lengths of an annotation, of which at most one is there."""
    if isinstance(given, dict):
        return [], _run_lengths(where, given, height, width)
    polygons = [_numbers(polygon) for polygon in given] if isinstance(given, list) else []
    if any(polygon is None for polygon in polygons) or not isinstance(given, list | None):
        raise ValueError(f"{where} must have an outline of lists of numbers or of run lengths")
    # Less than three corners enclose nothing; COCO's own files have some, and everybody leaves them out.
    return [
        polygon for polygon in polygons if polygon is not None and len(polygon) >= 6 and len(polygon) % 2 == 0
    ], None


def _run_lengths(where: str, given: dict[str, Any], height: int, width: int) -> bytes:
    """Compressed run lengths, column by column. Whether compressed ones are sound shows when they are read."""
    if given.get("size") != [height, width]:
        raise ValueError(
            f"{where} has an outline of size {in_short(given.get('size'))}, its image is {[height, width]}"
        )
    counts = given.get("counts")
    if isinstance(counts, str) and counts.isascii():
        return counts.encode()
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(f"{where} must have run lengths that are whole numbers or compressed text")
    if sum(counts) != height * width:
        raise ValueError(f"{where} has run lengths of {in_short(sum(counts))} pixels, its image has {height * width}")
    if height * width > MAX_PIXELS:
        return b""  # nobody looks at them: such an image is refused
    compressed: bytes = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return compressed


def _get(file: Path, what: str, entry: Any, place: int, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{file}: {what} number {place} has no {key!r}")
    return entry[key]


def _numbers(given: Any) -> Sequence[float] | None:
    """A list of finite numbers, in little memory; None for anything else."""
    try:
        numbers = array("d", given if isinstance(given, list) else "")
    except (TypeError, OverflowError):
        return None
    # A sum is finite only if all its parts are.
    return numbers if math.isfinite(sum(numbers)) else None
