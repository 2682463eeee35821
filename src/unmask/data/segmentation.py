"""Images with a class for every pixel: which files belong together, crops for training, whole images for testing.

`segmentation_halves` finds images and masks in a folder, `segmentation_loader` cuts training crops as mmsegmentation
does, `SegmentationTestLoader` gives whole test images with their masks as they are.
Shape legend: B images of a batch, C channels, H x W pixels of the image (or the crop), h x w pixels after resizing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from typing_extensions import Doc

from unmask.data.annotated import IGNORE, SegmentationSource
from unmask.data.crop import Stream, sample_generator
from unmask.data.dataset import BadFile, replacements
from unmask.data.decode import DecodeError, OpenImage, open_image
from unmask.data.index import index_folder
from unmask.data.layout import TEST_FOLDERS, arrange
from unmask.data.loader import StepLoader, _leave_signals_to_main, _watched
from unmask.data.paths import PathTable
from unmask.data.scenes import Half, open_scenes_segmentation
from unmask.data.seeded import seeded
from unmask.data.sources import FileSource

Size = tuple[int, int]

BUILTIN_SEGMENTATION = "builtin:scenes"
CLASSES_FILE = "classes.txt"
ADE_CLASSES_FILE = "objectInfo150.txt"
ADE_CLASSES = 150
MOST_CLASSES = IGNORE
LOOKED_AT = 8
"""Images of each half that are read before anything is trained: if none of them fits its mask, nothing will."""
MASKS_LOOKED_AT = 200
"""Training masks that are read to find the classes where no file names them."""
LONGEST = 4
"""An image is resized to at most this many crops along its longer side. [mmsegmentation: 2048 for crops of 512]"""
_TRIES = 10
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
    assert isinstance(image, Image.Image)
    if image.mode not in ("1", "L", "P"):
        raise DecodeError(f"a mask must have one number a pixel (grey or palette), not be {image.mode}")
    values_HW = np.array(image).astype(np.uint8)
    if data.startswith(_PNG_SIGNATURE):
        bits, kind = struct.unpack_from("BB", data, 24)
        if kind == 0 and bits in _SCALED_GREY:
            values_HW //= _SCALED_GREY[bits]
    return values_HW


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
    opened = open_image(source.read(index))
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


def covering_size(height: int, width: int, crop: Size, ratio: float = 1.0) -> Size:
    """Height and width to which an image is resized: `ratio` times the smallest size that covers the crop.

    Its aspect stays. A very long image stays smaller, see `LONGEST`.
    """
    scale = min(max(crop[0] / height, crop[1] / width), LONGEST * max(crop) / max(height, width)) * ratio
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, kw_only=True)
class SegmentationCropConfig:
    """How training crops are cut: mmsegmentation's pipeline for ADE20K, which BEiT and its heirs use."""

    scale: Annotated[
        tuple[float, float],
        Doc("Range of the image's size by the smallest that covers the crop. [mmsegmentation: ratio_range (.5, 2)]"),
    ] = (0.5, 2.0)
    largest_class: Annotated[
        float,
        Doc("Share of a crop that one class may fill; ten tries, then any crop. [mmsegmentation: cat_max_ratio .75]"),
    ] = 0.75
    flip: Annotated[float, Doc("Probability of a horizontal flip. [mmsegmentation: .5]")] = 0.5
    distortion: Annotated[
        float,
        Doc(
            "Probability of each change of brightness (12.5 %), contrast (50 %), saturation (50 %) and hue (a tenth of "
            "the circle); images of other than 1 or 3 channels do without. [mmsegmentation: .5]"
        ),
    ] = 0.5

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"the scale of training crops must be a range above 0, got {low} to {high}")
        shares = {"largest_class": self.largest_class, "flip": self.flip, "distortion": self.distortion}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True)
class SegmentationSample:
    """A crop and its mask, after the bad files met on the way to it; `pair` is None where no image was found."""

    pair: tuple[UInt8[Tensor, "C H W"], UInt8[Tensor, "H W"]] | None
    index: int
    bad: tuple[BadFile, ...]

    @property
    def empty(self) -> bool:
        """Whether no readable image was found."""
        return self.pair is None


@dataclass(frozen=True)
class SegmentationBatch:
    """Crops with the class of every pixel. `seed` makes all that is drawn from here on a function of the batch."""

    images: UInt8[Tensor, "B C H W"]
    masks: UInt8[Tensor, "B H W"]
    indices: Int64[Tensor, " B"]
    seed: int | None = None

    @property
    def size(self) -> int:
        """Number of samples B."""
        return len(self.indices)

    def to(self, device: torch.device) -> SegmentationBatch:
        """The same batch on `device`; copies overlap with computation where memory is pinned."""
        images, masks = (values.to(device, non_blocking=True) for values in (self.images, self.masks))
        return replace(self, images=images, masks=masks)

    def pin_memory(self) -> SegmentationBatch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())


class SegmentationDataset(Dataset[SegmentationSample]):
    """Random crops with their masks; an item is asked for by (epoch, index).

    The image is resized at random, keeping its aspect, and cut where not one class fills the crop; then flipped, its
    colours changed, and what the image does not fill is padded at the bottom and right with the mean colour and
    `IGNORE`. All of it is a function of (seed, epoch, index). Images are resized bicubically with antialiasing (as all
    images of this package are; mmsegmentation's are bilinear without), masks by the nearest pixel.
    A bad file is replaced by another image as in `CropDataset`.
    """

    def __init__(
        self,
        source: SegmentationSource,
        crop: Size,
        config: SegmentationCropConfig,
        *,
        mean: tuple[float, ...],
        seed: int,
    ) -> None:
        """`crop` is the height and width; `mean` the images' mean by channel, in [0, 1], whose number is that of the
        channels."""
        self.source = source
        self.crop = crop
        self.config = config
        self.seed = seed
        self._fill = [round(255 * value) for value in mean]
        # Not v2.RandomPhotometricDistort: it also exchanges channels, which mmsegmentation does not.
        jitter = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1} if len(mean) in (1, 3) else {}
        self._change = v2.Compose(
            [
                v2.RandomHorizontalFlip(config.flip),
                *(v2.RandomApply([v2.ColorJitter(**{what: most})], config.distortion) for what, most in jitter.items()),
            ]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> SegmentationSample:
        epoch, index = key
        bad: dict[int, BadFile] = {}
        for candidate in replacements(self.source, self.seed, epoch, index):
            if candidate not in bad:
                try:
                    pair = self._cut(*open_pair(self.source, candidate), epoch, index)
                    return SegmentationSample(pair, candidate, tuple(bad.values()))
                except (OSError, DecodeError) as error:
                    bad[candidate] = BadFile.of(self.source, candidate, error)
        return SegmentationSample(None, index, tuple(bad.values()))

    def _cut(
        self, opened: OpenImage, mask_HW: NDArray[np.uint8], epoch: int, index: int
    ) -> tuple[UInt8[Tensor, "C H W"], UInt8[Tensor, "H W"]]:
        generator = sample_generator(self.seed, epoch, index, Stream.CROP)
        size = covering_size(opened.height, opened.width, self.crop, float(generator.uniform(*self.config.scale)))
        decoded = opened.decode(min_size=size, channels=len(self._fill))
        image_CHW = decoded.resized((0, 0, opened.height, opened.width), *size)
        mask_1HW = F.interpolate(torch.from_numpy(mask_HW)[None, None], size=size, mode="nearest-exact")[0]
        top, left = self._place(mask_1HW[0].numpy(), generator)
        window = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
        # The transforms draw from torch's global state, which other code of the process shares.
        with seeded(int(sample_generator(self.seed, epoch, index, Stream.RETOUCH).integers(2**63 - 1))):
            image, mask = self._change(
                tv_tensors.Image(image_CHW[:, *window].contiguous()), tv_tensors.Mask(mask_1HW[:, *window].contiguous())
            )
        down, across = self.crop[0] - image.shape[1], self.crop[1] - image.shape[2]
        padded_CHW = v2.functional.pad_image(image.as_subclass(Tensor), [0, 0, across, down], fill=self._fill)
        padded_1HW = v2.functional.pad_image(mask.as_subclass(Tensor), [0, 0, across, down], fill=IGNORE)
        return padded_CHW.contiguous(), padded_1HW[0].contiguous()

    def _place(self, mask_HW: NDArray[np.uint8], generator: np.random.Generator) -> Size:
        """Top and left of a crop in which no class fills more than its share, or of the last one tried."""
        rows, columns = (max(0, have - want) for have, want in zip(mask_HW.shape, self.crop, strict=True))
        for attempt in range(_TRIES + 1):
            top, left = int(generator.integers(rows + 1)), int(generator.integers(columns + 1))
            if attempt == _TRIES or self.config.largest_class == 1:
                break
            counts = np.bincount(mask_HW[top : top + self.crop[0], left : left + self.crop[1]].ravel(), minlength=256)
            counted = counts[:IGNORE]
            if 0 < counted.max() < self.config.largest_class * counted.sum():
                break
        return top, left


def segmentation_loader(
    source: SegmentationSource,
    crop: Size,
    config: SegmentationCropConfig,
    *,
    mean: tuple[float, ...],
    first: int,
    last: int,
    batch_size: int,
    seed: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    max_bad_share: float = 0.1,
) -> StepLoader[SegmentationSample, SegmentationBatch]:
    """Batches of training crops (see `SegmentationDataset`) for the steps `first` to `last` - 1, as `StepLoader` has
    them."""
    return StepLoader(
        SegmentationDataset(source, crop, config, mean=mean, seed=seed),
        _batch,
        name=source.name,
        size=len(source),
        batch_size=batch_size,
        total_steps=last,
        start_step=first,
        seed=seed,
        workers=workers,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
        max_bad_share=max_bad_share,
    )


@dataclass(frozen=True)
class SegmentationTestImage:
    """A whole image, resized to cover the crop, and its mask at the original size."""

    image: UInt8[Tensor, "C h w"]
    mask: UInt8[Tensor, "H W"]
    index: int


class SegmentationTestLoader:
    """The whole images of a source in its order, one `SegmentationTestImage` after the other.

    Each is resized to the smallest size that covers the crop (see `covering_size`). Bad files are left out and noted in
    `bad_files` (name to reason). Iterating raises ValueError when no image can be used, WorkerDied when a worker
    process dies.
    """

    def __init__(self, source: SegmentationSource, crop: Size, *, channels: int, workers: int) -> None:
        self.bad_files: dict[str, str] = {}
        self._dataset = _TestDataset(source, crop, channels)
        self._workers = workers

    def __len__(self) -> int:
        """Number of images, bad files among them."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[SegmentationTestImage]:
        # Images differ in size: no batches, and nothing to collate.
        loader = DataLoader(
            self._dataset, batch_size=None, num_workers=self._workers, worker_init_fn=_leave_signals_to_main
        )
        found_any = False
        loaded: Any = iter(loader)
        for item in cast(Iterator[SegmentationTestImage | BadFile], _watched(loaded)):
            if isinstance(item, BadFile):
                self.bad_files[item.path] = item.reason
            else:
                found_any = True
                yield item
        if not found_any:
            raise ValueError(f"no readable image with a mask in {self._dataset.source.name}")


class _TestDataset(Dataset[SegmentationTestImage | BadFile]):
    """Each image with its mask, or why it cannot be used."""

    def __init__(self, source: SegmentationSource, crop: Size, channels: int) -> None:
        self.source = source
        self._crop = crop
        self._channels = channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> SegmentationTestImage | BadFile:
        try:
            opened, mask_HW = open_pair(self.source, index)
            size = covering_size(opened.height, opened.width, self._crop)
            decoded = opened.decode(min_size=size, channels=self._channels)
        except (OSError, DecodeError) as error:
            return BadFile.of(self.source, index, error)
        image_CHW = decoded.resized((0, 0, opened.height, opened.width), *size)
        return SegmentationTestImage(image_CHW.contiguous(), torch.from_numpy(mask_HW), index)


def _batch(samples: list[SegmentationSample]) -> SegmentationBatch:
    pairs = [sample.pair for sample in samples if sample.pair is not None]
    assert len(pairs) == len(samples)
    return SegmentationBatch(
        images=torch.stack([image for image, _ in pairs]),
        masks=torch.stack([mask for _, mask in pairs]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
    )


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
