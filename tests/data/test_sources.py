"""What a user types becomes the right images, splits and labels, or one sentence."""

from __future__ import annotations

import gzip
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.data.decode import decode
from unmask.data.layout import arrange
from unmask.data.paths import PathTable
from unmask.data.sources import ArraySource, Source, labelled, open_source


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def paths(source: Source) -> list[str]:
    return [source.path(i) for i in range(len(source))]


def test_a_folder_of_classes(photo_folder: Path) -> None:
    source = open_source(photo_folder)
    assert len(source) == 12
    assert source.classes == ("cold", "warm")
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    assert source.path(0) == str(photo_folder / "cold" / "00.png")
    data = source.read(0)
    assert data == (photo_folder / "cold" / "00.png").read_bytes()


@pytest.mark.parametrize("names", [("1.jpg", "2.jpg"), ("1.jpg", "a/2.jpg")])
def test_images_outside_folders_have_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = open_source(touch(tmp_path, *names))
    assert len(source) == 2
    assert source.labels is None
    assert source.classes is None


@pytest.mark.parametrize("test", ["val", "test", "valid", "validation", "Val"])
def test_split_folders_are_used(tmp_path: Path, test: str) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/deep/2.jpg", f"{test}/a/3.jpg", f"{test}/b/4.jpg", "more/5.jpg")
    train, held_out = labelled(tmp_path)
    assert paths(train) == [str(tmp_path / "train/a/1.jpg"), str(tmp_path / "train/b/deep/2.jpg")]
    assert paths(held_out) == [str(tmp_path / test / "a/3.jpg"), str(tmp_path / test / "b/4.jpg")]
    assert train.classes == held_out.classes == ("a", "b")
    # Pre-training must not see the test images.
    assert paths(open_source(tmp_path)) == paths(train)


def test_without_split_folders_a_hash_of_the_name_decides(tmp_path: Path) -> None:
    root = touch(tmp_path / "x", *(f"{c}/{i}.jpg" for c in "ab" for i in range(300)))
    train, test = labelled(root)
    assert sorted(paths(train) + paths(test)) == sorted(paths(open_source(root)))
    assert 80 < len(test) < 160
    touch(root, *(f"c/{i}.jpg" for i in range(50)))
    assert set(paths(test)) < set(paths(labelled(root)[1]))
    copy = touch(tmp_path / "elsewhere", *(f"{c}/{i}.jpg" for c in "ab" for i in range(300)))
    assert [p.removeprefix(str(copy)) for p in paths(labelled(copy)[1])] == [
        p.removeprefix(str(root)) for p in paths(test)
    ]


def test_every_class_is_on_both_sides_of_a_hashed_split(tmp_path: Path) -> None:
    for c in range(30):
        touch(tmp_path, f"{c}/one.jpg", f"{c}/two.jpg")
    train, test = labelled(tmp_path)
    assert train.labels is not None
    assert test.labels is not None
    assert sorted(train.labels) == sorted(test.labels) == list(range(30))


class _CountingTable(PathTable):
    """How many paths were read one by one."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        type(self).reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("images", [1000, 4000])
def test_the_cost_of_many_small_classes_grows_with_their_number_only(images: int) -> None:
    paths = _CountingTable.of(b"%05d/%d.jpg" % divmod(number, 2) for number in range(images))
    _CountingTable.reads = 0
    halves = [arrange(paths, split) for split in ("train", "test")]
    assert _CountingTable.reads < 2 * (6 * images / 2 + 500)
    for half in halves:
        # One image of each class of two is on either side.
        assert half.labels is not None
        assert half.labels.tolist() == list(range(images // 2))
        assert (half.indices // 2).tolist() == list(range(images // 2))


def test_a_subset_keeps_labels(photo_folder: Path) -> None:
    source = open_source(photo_folder)
    chosen = source.subset([11, 0, 5]).subset([0, 2])
    assert paths(chosen) == [source.path(11), source.path(5)]
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.classes == source.classes
    assert chosen.read(0) == source.read(11)


def test_a_list_of_files(photo_folder: Path) -> None:
    file = photo_folder / "list.txt"
    file.write_bytes("\ufeffwarm/01.png\twarm\r\n\ncold/00.png\tcold\n".encode())
    source = open_source(file)
    assert paths(source) == [str(photo_folder / "warm/01.png"), str(photo_folder / "cold/00.png")]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0]
    assert source.classes == ("cold", "warm")
    assert source.read(1) == (photo_folder / "cold/00.png").read_bytes()


def test_a_list_without_labels_splits_too(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\n".join(f"{i}.jpg" for i in range(100)))
    parts = [paths(open_source(file, split=split)) for split in ("all", "train", "test")]
    assert parts[0] == [str(tmp_path / f"{i}.jpg") for i in range(100)]
    assert sorted(parts[1] + parts[2]) == sorted(parts[0])
    assert open_source(file).labels is None


def test_a_tar_archive_is_laid_out_like_a_folder(photo_folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(photo_folder, arcname=".")
    packed, loose = open_source(archive), open_source(photo_folder)
    assert packed.classes == loose.classes
    assert packed.labels is not None
    assert (packed.labels == loose.labels).all()
    assert [packed.read(i) for i in range(12)] == [loose.read(i) for i in range(12)]
    assert packed.path(0) == f"{archive}/cold/00.png"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files(tmp_path: Path, suffix: str) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        f"{part}-{kind}": generator.integers(0, high, shape, dtype=np.uint8)
        for part, n in (("train", 6), ("t10k", 4))
        for kind, high, shape in (("images-idx3", 256, (n, 28, 28)), ("labels-idx1", 3, (n,)))
    }
    arrays["train-labels-idx1"][:] = arrays["t10k-labels-idx1"][0] = 2
    arrays["train-labels-idx1"][:3] = 0
    for name, array in arrays.items():
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        (tmp_path / f"{name}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    train, test = labelled(tmp_path)
    assert (len(train), len(test)) == (6, 4)
    assert train.classes == ("0", "1", "2")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert (np.asarray(test.read(3)) == arrays["t10k-images-idx3"][3]).all()
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(ValueError, match="is damaged"):
        open_source(tmp_path)


def test_built_in_emoji() -> None:
    train, test = labelled("builtin:emoji")
    assert (len(train), len(test)) == (2688, 684)
    assert train.classes is not None
    assert len(train.classes) == 9
    assert paths(open_source("builtin:emoji")) == paths(train)
    corner = decode(train.read(0), min_size=None, channels=3)
    assert corner.pixels_HWC.shape == (64, 64, 3)
    assert (corner.pixels_HWC[0, 0] == 255).all()
    codes = [{Path(p).stem for p in paths(part)} for part in (train, test)]
    assert not codes[0] & codes[1]


def test_built_in_fashion_mnist() -> None:
    train, test = labelled("builtin:fashion-mnist")
    for part, each in ((train, 1000), (test, 200)):
        assert part.labels is not None
        assert np.bincount(part.labels).tolist() == [each] * 10
    assert train.classes is not None
    assert train.classes[9] == "ankle-boot"
    assert np.asarray(train.read(0)).shape == (28, 28)


def test_arrays() -> None:
    images = np.zeros((3, 4, 5, 7), dtype=np.uint8)
    source = ArraySource("mine", images, labels=[0, 1, 1], classes=("a", "b"))
    assert len(source) == 3
    assert source.path(2) == "mine/2"
    assert source.read(2).shape == (4, 5, 7)
    with pytest.raises(ValueError, match="mine has 3 images but 2 labels"):
        ArraySource("mine", images, labels=[0, 1])


def test_a_name_that_is_not_unicode_can_be_printed_and_read(tmp_path: Path) -> None:
    (tmp_path / "\udcff.jpg").write_bytes(b"content")
    source = open_source(tmp_path)
    assert source.path(0) == f"{tmp_path}/\\xff.jpg"
    assert source.read(0) == b"content"


def test_the_home_folder_is_understood(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photo_folder.parent))
    assert len(open_source("~/photos")) == 12


@pytest.mark.parametrize(
    ("names", "spec", "sentence"),
    [
        ((), "nowhere", "nowhere does not exist"),
        (
            ("x/notes.txt",),
            "x",
            r"x holds no image \(no file ending in jpg, jpeg, png, webp, tif, tiff, bmp, npy, dcm\)",
        ),
        (
            ("x.png",),
            "x.png",
            "x.png is neither a folder of images, nor a .txt list of image files, nor a .tar",
        ),
        (("x.txt",), "x.txt", "x.txt lists no image"),
        (("x.tar",), "x.tar", "x.tar cannot be read as an uncompressed tar archive"),
        (("x/train-images-idx3-ubyte",), "x", "x lacks the images or the labels of train"),
    ],
)
def test_what_cannot_be_opened_is_said(tmp_path: Path, names: tuple[str, ...], spec: str, sentence: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=sentence):
        open_source(tmp_path / spec)


def test_an_unknown_built_in_name() -> None:
    with pytest.raises(ValueError, match="builtin:emojis is not built in: choose one of builtin:emoji, builtin:fa"):
        open_source("builtin:emojis")


def test_a_half_labelled_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\tcat\nb.jpg\n")
    with pytest.raises(ValueError, match="has a label on 1 of its 2 lines: label all of them or none"):
        open_source(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("1.jpg", "2.jpg"), "the training images of .* have no labels: put them into one folder a class"),
        (("train/a/1.jpg", "train/b/1.jpg", "val/1.jpg"), "the test images of .* have no labels"),
        (
            ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"),
            "not the same classes for training and testing: b is only in one of them",
        ),
        (("a/1.jpg", "a/2.jpg"), "has only one class, a: there is nothing to tell apart"),
        (("a/1.jpg",), "has no images for the split .*: it holds only 1"),
    ],
)
def test_what_cannot_be_evaluated_is_said(tmp_path: Path, names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        labelled(touch(tmp_path, *names))
