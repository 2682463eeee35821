"""Images find their masks, crops keep both together, and everything that does not fit is said in one sentence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import max_pool2d

from unmask.data import segmentation
from unmask.data.annotated import IGNORE, SegmentationSource
from unmask.data.bad_files import TooManyBadFiles
from unmask.data.decode import DecodeError
from unmask.data.layout import hashed_test_mask
from unmask.data.segmentation import check_halves, open_pair, open_segmentation, read_index_mask, segmentation_halves
from unmask.data.segmentation_crops import (
    SegmentationBatch,
    SegmentationCropConfig,
    SegmentationDataset,
    SegmentationTestLoader,
    covering_size,
    segmentation_loader,
)
from unmask.data.sources import ArraySource

GREY = (0.5, 0.5, 0.5)


class Painted(ArraySource, SegmentationSource):
    """Masks, and images that show them: class k is of grey 60 k."""

    classes: tuple[str, ...]

    def __init__(self, masks: list[NDArray[np.uint8]], channels: int = 3, name: str = "painted") -> None:
        super().__init__(name, [np.repeat((60 * mask)[:, :, None], channels, axis=2) for mask in masks])
        self.classes = ("a", "b", "c", "d")
        self.masks = masks

    def mask(self, index: int) -> NDArray[np.uint8]:
        return self.masks[index]


def blocks(height: int, width: int, seed: int = 0, side: int = 8) -> NDArray[np.uint8]:
    """A mask of square blocks of random classes 0 to 3."""
    coarse = np.random.default_rng(seed).integers(0, 4, (-(-height // side), -(-width // side)), dtype=np.uint8)
    return coarse.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


def write(folder: Path, image: str, mask: str | None, values: NDArray[np.uint8] | None = None) -> None:
    """A small image, and its mask of these values (0, 1 and 2 unless given)."""
    if values is None:
        values = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 3
    for name in (image, mask):
        if name is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), 90, dtype=np.uint8)).save(folder / image)
    if mask is not None:
        Image.fromarray(values).save(folder / mask)


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Three training and two test images with masks of three classes."""
    for half, count in (("train", 3), ("val", 2)):
        for number in range(count):
            write(tmp_path, f"{half}/images/{number}.jpg", f"{half}/masks/{number}.png")
    return tmp_path


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    """ADE20K's folders with two training images and one for validation."""
    values = np.zeros((12, 16), dtype=np.uint8)
    values[0, :5] = (0, 1, 2, 150, 255)
    for part, name in (("training", "a"), ("training", "b"), ("validation", "c")):
        write(tmp_path, f"images/{part}/{name}.jpg", f"annotations/{part}/{name}.png", values)
    return tmp_path


def names(source: SegmentationSource) -> list[str]:
    return [Path(source.path(index)).name for index in range(len(source))]


def test_ade20k_has_150_classes_and_ignores_zero(ade: Path) -> None:
    train, test = segmentation_halves(ade)
    assert (names(train), names(test)) == (["a.jpg", "b.jpg"], ["c.jpg"])
    assert len(train.classes) == 150
    assert train.classes[:2] == ("class 1", "class 2")
    assert train.mask(0)[0, :6].tolist() == [IGNORE, 0, 1, 149, IGNORE, IGNORE]


def test_ade20ks_own_file_names_its_classes(ade: Path) -> None:
    rows = [f"{number}\t0.1\t5\t5\t1\tname {number}, other name" for number in range(1, 151)]
    (ade / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]))
    assert open_segmentation(ade, "test").classes == tuple(f"name {number}" for number in range(1, 151))
    (ade / "objectInfo150.txt").write_text("\n".join(rows[:-1]))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt names 149 classes, not the 150 of ADE20K$"):
        open_segmentation(ade, "test")


@pytest.mark.parametrize("test_name", ["val", "test", "Validation"])
def test_halves_in_folders_of_their_own(halves: Path, test_name: str) -> None:
    (halves / "val").rename(halves / test_name)
    train, test = segmentation_halves(halves)
    assert (len(train), len(test)) == (3, 2)
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.path(1) == str(halves / "train/images/1.jpg")
    assert train.mask(1).tolist() == (np.arange(192).reshape(12, 16) % 3).tolist()
    assert isinstance(test.read(0), bytes)


def test_images_beside_masks_are_cut_by_a_hash_or_by_folders_inside(tmp_path: Path) -> None:
    plain, cut = tmp_path / "plain", tmp_path / "cut"
    for number in range(20):
        write(plain, f"images/sub/{number}.png", f"masks/sub/{number}.png")
        half = "train" if number < 15 else "val"
        write(cut, f"images/{half}/{number}.png", f"masks/{half}/{number}.png")
    train, test = segmentation_halves(plain)
    inside = sorted(f"sub/{number}.png".encode() for number in range(20))
    hidden = hashed_test_mask(inside, None)
    assert 0 < hidden.sum() < 20
    for source, wanted in ((train, ~hidden), (test, hidden)):
        expected = [Path(name.decode()).name for name, chosen in zip(inside, wanted, strict=True) if chosen]
        assert names(source) == expected
    assert [len(half) for half in segmentation_halves(cut)] == [15, 5]


@pytest.mark.parametrize("place", ["classes.txt", "train/classes.txt"])
def test_classes_are_named_by_a_file(halves: Path, place: str) -> None:
    (halves / place).write_text("\ufeffsky\n ground \nbird\nfish\n\n", encoding="utf-8")
    for half in segmentation_halves(halves):
        assert half.classes == ("sky", "ground", "bird", "fish")


def test_each_half_may_name_its_classes_and_must_name_the_same(halves: Path) -> None:
    (halves / "train/classes.txt").write_text("sky\nground\nbird\n")
    (halves / "val/classes.txt").write_text("sky\nground\nbat\n")
    with pytest.raises(ValueError, match=r"has not the same classes for training and testing: bat is only in one of"):
        segmentation_halves(halves)
    (halves / "val/classes.txt").write_text("sky\nbird\nground\n")
    with pytest.raises(ValueError, match=r"the same classes for training and testing: their order differs$"):
        segmentation_halves(halves)


def test_scenes_are_built_in() -> None:
    train, test = segmentation_halves("builtin:scenes")
    assert len(train.classes) == 10
    assert len(open_segmentation("builtin:scenes", "test")) == len(test)
    check_halves(train, test)


def test_what_is_no_folder_with_masks_is_refused(tmp_path: Path, halves: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist$"):
        segmentation_halves(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"file is not a folder of images and masks$"):
        segmentation_halves(tmp_path / "file")
    bare = tmp_path / "bare"
    write(bare, "images/a.png", None)
    with pytest.raises(ValueError, match=r"bare has no masks: it needs images/ beside masks/ .* annotations/$"):
        segmentation_halves(bare)
    (halves / "train/masks/1.png").unlink()
    message = r"1 of the 3 train images of .* have no mask: there is train/images/1.jpg but no train/masks/1.png$"
    with pytest.raises(ValueError, match=message):
        open_segmentation(halves, "test")


def test_a_missing_half_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train/images/a.png", "train/masks/a.png")
    assert len(open_segmentation(tmp_path, "train")) == 1
    with pytest.raises(ValueError, match=r"has no images for the split test$"):
        segmentation_halves(tmp_path)


def test_one_class_is_refused(tmp_path: Path, halves: Path) -> None:
    (halves / "classes.txt").write_text("all\n")
    with pytest.raises(ValueError, match=r"has only one class, all: there is nothing to tell apart$"):
        segmentation_halves(halves)
    values = np.zeros((12, 16), dtype=np.uint8)
    values[3:6, 3:6] = 255
    lone = tmp_path / "lone"
    for number in range(4):
        write(lone, f"images/{number}.png", f"masks/{number}.png", values)
    with pytest.raises(ValueError, match=r"has only one class: its training masks hold the number 0 alone, beside 255"):
        segmentation_halves(lone)


def test_masks_that_hold_nothing_or_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, f"images/{number}.png", f"masks/{number}.png", np.full((12, 16), IGNORE, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"has only one class: its training masks hold no number, beside 255, which"):
        segmentation_halves(tmp_path)
    for number in range(4):
        (tmp_path / f"masks/{number}.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"can be used with its mask, .* its mask: it is not an image of a known format$"
    ):
        segmentation_halves(tmp_path)


def test_class_files_that_cannot_be_meant_are_refused(halves: Path) -> None:
    (halves / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"classes.txt is empty; it must name one class a line$"):
        segmentation_halves(halves)
    (halves / "classes.txt").write_text("sky\n\nbird\n")
    with pytest.raises(ValueError, match=r"^line 2 of .*classes.txt is empty, so the classes after it would be"):
        segmentation_halves(halves)
    (halves / "classes.txt").write_text("\n".join(map(str, range(256))))
    with pytest.raises(ValueError, match=r"has 256 classes; 8-bit masks tell 255 at most$"):
        segmentation_halves(halves)
    (halves / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"classes.txt cannot be read as text"):
        segmentation_halves(halves)


def test_numbers_that_no_class_has_are_refused(halves: Path) -> None:
    (halves / "classes.txt").write_text("sky\nground\n")
    message = r"^none of the 3 images of .* looked at .* example .*0.jpg: its mask holds class 2, but .* are 0 to 1$"
    with pytest.raises(ValueError, match=message):
        segmentation_halves(halves)
    (halves / "classes.txt").unlink()
    write(halves, "val/images/9.jpg", "val/masks/9.png", np.full((12, 16), 7, dtype=np.uint8))
    message = r"^a test mask of .* holds the number 7, the training masks only numbers up to 2: name all classes"
    with pytest.raises(ValueError, match=message):
        segmentation_halves(halves)


def test_masks_that_all_have_another_size_are_refused_and_a_few_are_bad_files(halves: Path) -> None:
    (halves / "classes.txt").write_text("a\nb\nc\n")
    write(halves, "train/images/0.jpg", "train/masks/0.png", np.zeros((12, 15), dtype=np.uint8))
    train, _ = segmentation_halves(halves)
    with pytest.raises(DecodeError, match=r"^its mask has 15 x 12 pixels, the image 16 x 12$"):
        open_pair(train, 0)
    open_pair(train, 1)
    for number in (1, 2):
        write(halves, f"train/images/{number}.jpg", f"train/masks/{number}.png", np.eye(9, dtype=np.uint8))
    with pytest.raises(
        ValueError, match=r"^none of the 3 images of .* its mask has 15 x 12 pixels, the image 16 x 12$"
    ):
        segmentation_halves(halves)


def test_a_damaged_mask_is_named_as_such(halves: Path) -> None:
    train = open_segmentation(halves, "train")
    (halves / "train/masks/0.png").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"^its mask: the file is empty$"):
        open_pair(train, 0)
    (halves / "train/masks/0.png").unlink()
    with pytest.raises(DecodeError, match=r"^its mask: No such file or directory$"):
        open_pair(train, 0)


def grey_png(values: NDArray[np.uint8], bits: int) -> bytes:
    """A PNG of grey with few bits a pixel, which Pillow cannot write."""
    height, width = values.shape
    lines = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in values
    )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def saved(image: Image.Image, path: Path) -> bytes:
    image.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_any_number_of_grey_bits_hold_what_was_written(bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (7, 9), dtype=np.uint8)
    assert read_index_mask(grey_png(values, bits)).tolist() == values.tolist()


def test_masks_with_a_palette_are_numbers_and_pictures_are_no_masks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 5, (7, 9), dtype=np.uint8)
    image = Image.fromarray(values, mode="P")
    image.putpalette([3, 200, 40] * 256)
    assert read_index_mask(saved(image, tmp_path / "p.png")).tolist() == values.tolist()
    with pytest.raises(DecodeError, match=r"^a mask must have one number a pixel .* not be RGB$"):
        read_index_mask(saved(Image.new("RGB", (4, 4)), tmp_path / "x.png"))
    wide = Image.fromarray(values.astype(np.uint16))
    assert read_index_mask(saved(wide, tmp_path / "w.png")).tolist() == values.tolist()
    with pytest.raises(DecodeError, match=r"^a mask must hold numbers from 0 to 255, not from 300 to 300$"):
        read_index_mask(saved(Image.new("I;16", (4, 4), 300), tmp_path / "x.png"))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 600), st.integers(8, 600), st.floats(0.5, 2.0))
def test_images_cover_the_crop_and_keep_their_shape(height: int, width: int, h: int, w: int, ratio: float) -> None:
    rows, columns = covering_size(height, width, (h, w))
    limit = 4 * max(h, w)
    assert max(rows, columns) <= max(limit, h, w) + 1
    if max(rows, columns) < limit:
        assert rows >= h
        assert columns >= w
        assert rows == h or columns == w
    # Rounded to whole pixels, the sides are still in the image's proportion.
    assert abs(rows * width - columns * height) <= max(height, width)
    scaled = covering_size(height, width, (h, w), ratio)
    assert all(abs(b - max(1, ratio * a)) <= 1 + ratio for a, b in zip((rows, columns), scaled, strict=True))


def test_mmsegmentations_size_for_ade20k() -> None:
    # 683 x 512 at img_scale=(2048, 512); a panorama is held at 2048.
    assert covering_size(512, 683, (512, 512)) == (512, 683)
    assert covering_size(300, 400, (512, 512)) == (512, 683)
    assert covering_size(100, 1000, (512, 512)) == (205, 2048)


def crops(
    source: SegmentationSource, config: SegmentationCropConfig, *, mean: tuple[float, ...] = GREY, epochs: int = 20
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    dataset = SegmentationDataset(source, (24, 32), config, mean=mean, seed=3)
    pairs = [dataset[(epoch, index)].pair for epoch in range(epochs) for index in range(len(source))]
    return [pair for pair in pairs if pair is not None]


@pytest.mark.parametrize("size", [(24, 32), (40, 90), (17, 20)])
def test_image_and_mask_stay_together_through_everything(size: tuple[int, int]) -> None:
    source = Painted([blocks(*size, seed=seed) for seed in range(3)])
    sides, compared = [], 0
    for image, mask in crops(source, SegmentationCropConfig(distortion=0)):
        assert image.shape == (3, 24, 32)
        assert mask.shape == (24, 32)
        assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
        padding = mask == IGNORE
        assert (image[:, padding] == 128).all()
        # What the image fills is a rectangle at the top left.
        rows, columns = int((~padding).any(dim=1).sum()), int((~padding).any(dim=0).sum())
        assert not padding[:rows, :columns].any()
        sides.append((rows, columns))
        # Two pixels away from the borders of blocks and of the crop, each pixel shows its class, whatever the scale.
        grey = mask[None].float()
        inner = (max_pool2d(grey, 5, 1, 2) == -max_pool2d(-grey, 5, 1, 2))[0, 2:-2, 2:-2] & ~padding[2:-2, 2:-2]
        shown = (image[0].float() / 60).round()[2:-2, 2:-2]
        assert torch.equal(shown[inner], mask[2:-2, 2:-2][inner].float())
        compared += int(inner.sum())
    assert compared > 1000
    assert min(sides) < (24, 32)
    assert max(sides) == (24, 32)


def test_the_size_varies_as_asked() -> None:
    # A mask of stripes 8 pixels high tells the scale by the height of its stripes.
    stripes = np.repeat(np.arange(40, dtype=np.uint8)[:, None] // 8 % 2, 64, axis=1).repeat(4, axis=0)
    source = Painted([stripes])
    ratios = []
    for _, mask in crops(source, SegmentationCropConfig(distortion=0, largest_class=1.0, scale=(1.0, 2.0)), epochs=60):
        edges = np.flatnonzero(np.diff(mask[:, 0].numpy().astype(int)))
        ratios += np.diff(edges).tolist()
    # The covering scale is 1/2 (64 columns to 32), so stripes of 32 rows become 16 to 32 rows.
    assert min(ratios) >= 15
    assert max(ratios) <= 33


def test_a_mask_is_resized_by_the_pixels_in_the_middle() -> None:
    fine = blocks(72, 96, side=1)
    config = SegmentationCropConfig(scale=(1.0, 1.0), flip=0, distortion=0)
    assert all(np.array_equal(mask.numpy(), fine[1::3, 1::3]) for _, mask in crops(Painted([fine]), config, epochs=2))


def test_half_of_the_crops_are_mirrored() -> None:
    left = np.zeros((24, 32), dtype=np.uint8)
    left[:, :16] = 1
    config = SegmentationCropConfig(scale=(1.0, 1.0), distortion=0)
    mirrored = sum(int(mask[0, 0]) == 0 for _, mask in crops(Painted([left]), config, epochs=200))
    assert 75 < mirrored < 125
    assert all(int(mask[0, 0]) for _, mask in crops(Painted([left]), SegmentationCropConfig(scale=(1.0, 1.0), flip=0)))


def test_crops_that_one_class_fills_are_avoided_where_that_can_be() -> None:
    mask = np.zeros((96, 128), dtype=np.uint8)
    mask[:, 64:] = 1
    mask[:48, :40] = IGNORE

    def largest(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
        counts = torch.bincount(pair[1].flatten().long(), minlength=256)[:IGNORE]
        return float(counts.max() / counts.sum().clamp(min=1))

    free = SegmentationCropConfig(scale=(3.0, 4.0), largest_class=1.0, distortion=0)
    held = SegmentationCropConfig(scale=(3.0, 4.0), largest_class=0.75, distortion=0)
    shares = {config: [largest(pair) for pair in crops(Painted([mask]), config, epochs=150)] for config in (free, held)}
    assert np.mean([share < 0.75 for share in shares[free]]) < 0.4
    # A crop of a third of the width meets the border in a good third of the tries: ten tries nearly always do.
    assert np.mean([share < 0.75 for share in shares[held]]) > 0.85


def test_colours_change_but_never_the_mask() -> None:
    source = Painted([blocks(24, 32)])
    plain = crops(source, SegmentationCropConfig(distortion=0, flip=0))
    changed = crops(source, SegmentationCropConfig(distortion=1, flip=0))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, changed, strict=True))
    assert sum(not torch.equal(a[0], b[0]) for a, b in zip(plain, changed, strict=True)) > 15


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels(channels: int) -> None:
    source = Painted([blocks(24, 32)], channels)
    for image, _ in crops(source, SegmentationCropConfig(distortion=1), mean=(0.5,) * channels, epochs=3):
        assert image.shape == (channels, 24, 32)


def loader_batches(source: SegmentationSource, **changed: int) -> list[SegmentationBatch]:
    settings = {"first": 0, "last": 5, "batch_size": 2, "seed": 0, "workers": 0} | changed
    return list(segmentation_loader(source, (24, 32), SegmentationCropConfig(), mean=GREY, **settings))


def test_crops_follow_from_seed_epoch_and_index_alone() -> None:
    source = Painted([blocks(30, 40, seed=seed) for seed in range(5)])
    expected = loader_batches(source)
    for other in (loader_batches(source, workers=2), loader_batches(source, first=3)):
        for a, b in zip(expected[-len(other) :], other, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.masks, b.masks)
            assert torch.equal(a.indices, b.indices)
            assert a.seed == b.seed
    changed = loader_batches(source, seed=1)
    assert not all(torch.equal(a.images, b.images) for a, b in zip(expected, changed, strict=True))
    assert expected[0].size == 2
    assert expected[0].to(torch.device("cpu")).masks.shape == (2, 24, 32)


def test_cutting_leaves_the_global_random_states_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), str(np.random.get_state())
    (first, _), (again, _) = (crops(Painted([blocks(30, 40)]), SegmentationCropConfig())[0] for _ in range(2))
    assert torch.equal(first, again)
    # Python's own state is moved by beartype, which picks what it checks at random.
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


def test_bad_files_are_replaced_and_too_many_stop_the_run(halves: Path) -> None:
    for number in range(30):
        write(halves, f"train/images/x{number}.jpg", f"train/masks/x{number}.png")
    write(halves, "train/images/x3.jpg", "train/masks/x3.png", np.zeros((5, 5), dtype=np.uint8))
    loader = segmentation_loader(
        open_segmentation(halves, "train"),
        (24, 32),
        SegmentationCropConfig(),
        mean=GREY,
        first=0,
        last=16,
        batch_size=2,
        seed=0,
        workers=0,
    )
    assert sum(batch.size for batch in loader) == 32
    assert loader.bad_files == {
        str(halves / "train/images/x3.jpg"): "its mask has 5 x 5 pixels, the image 16 x 12",
    }
    for number in range(12):
        write(halves, f"train/images/x{number}.jpg", f"train/masks/x{number}.png", np.zeros((5, 5), dtype=np.uint8))
    with pytest.raises(TooManyBadFiles, match="its mask has 5 x 5 pixels"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_test_images_are_whole_and_their_masks_as_they_are(workers: int) -> None:
    masks = [blocks(30, 80), blocks(24, 32, seed=1), blocks(100, 50, seed=2)]
    items = list(SegmentationTestLoader(Painted(masks), (24, 32), channels=3, workers=workers))
    assert [item.index for item in items] == [0, 1, 2]
    assert [tuple(item.image.shape) for item in items] == [(3, 24, 64), (3, 24, 32), (3, 64, 32)]
    assert all(np.array_equal(item.mask.numpy(), mask) for item, mask in zip(items, masks, strict=True))
    assert np.array_equal(items[1].image[0].numpy(), 60 * masks[1])


def test_bad_test_images_are_left_out_and_named(halves: Path) -> None:
    test = open_segmentation(halves, "test")
    (halves / "val/images/0.jpg").write_bytes(b"no image")
    loader = SegmentationTestLoader(test, (24, 32), channels=3, workers=0)
    assert len(loader) == 2
    assert [item.index for item in loader] == [1]
    assert loader.bad_files == {str(halves / "val/images/0.jpg"): "it is not an image of a known format"}
    (halves / "val/images/1.jpg").unlink()
    with pytest.raises(ValueError, match=r"^no readable image with a mask in "):
        list(loader)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SegmentationCropConfig(scale=(0.0, 1.0)),
            "the scale of training crops must be a range above 0, got 0.0",
        ),
        (lambda: SegmentationCropConfig(scale=(2.0, 1.0)), "must be a range above 0, got 2.0 to 1.0"),
        (lambda: SegmentationCropConfig(largest_class=1.5), r"largest_class must lie in \[0, 1\], got 1.5"),
        (lambda: SegmentationCropConfig(flip=-1), r"flip must lie in \[0, 1\], got -1"),
        (lambda: SegmentationCropConfig(distortion=2), r"distortion must lie in \[0, 1\], got 2"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 500))
def test_looked_at_images_are_spread_over_all(count: int) -> None:
    found = segmentation._spread(count, 8)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] == count - 1
    assert len(found) == min(count, 8)
