"""Images in one file of NumPy's: which arrays, which halves, which labels, and nothing unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.data.sources import labelled, open_source

GENERATOR = np.random.default_rng(0)


def images(*shape: int, kind: str = "uint16") -> Any:
    return (GENERATOR.random(shape) * 1000).astype(kind)


@pytest.mark.parametrize(
    ("shape", "channels"), [((30, 8, 9), 1), ((30, 8, 9, 5), 5), ((30, 5, 8, 9), 5), ((5, 64, 64, 13), 13)]
)
def test_one_file_of_images(shape: tuple[int, ...], channels: int, tmp_path: Path) -> None:
    stack = images(*shape)
    np.save(tmp_path / "all.npy", stack)
    source = open_source(tmp_path / "all.npy")
    assert len(source) == shape[0]
    assert source.open(3).channels == channels
    found = np.asarray(source.read(3))
    assert np.array_equal(found, stack[3].transpose(1, 2, 0) if shape[1] == 5 and len(shape) == 4 else stack[3])
    halves = [open_source(tmp_path / "all.npy", split=split) for split in ("train", "test")]
    assert sum(map(len, halves)) == shape[0]
    assert min(map(len, halves)) > 0


def test_images_with_labels(tmp_path: Path) -> None:
    labels = np.arange(30) % 3 * 10
    np.savez(tmp_path / "all.npz", images=images(30, 8, 9), labels=labels)
    source = open_source(tmp_path / "all.npz")
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ((labels // 10).tolist(), ("0", "10", "20"))
    train, test = labelled(tmp_path / "all.npz")
    assert len(train) + len(test) == 30


@pytest.mark.parametrize("names", [("train_images", "test_images", "train_labels", "test_labels"),
                                   ("x_train", "x_test", "y_train", "y_test")])  # fmt: skip
def test_halves_as_their_names_say(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = (images(6, 8, 9), images(4, 8, 9), np.array(list("abcabc"))[:, None], np.array(list("cbaa"))[:, None])
    np.savez_compressed(tmp_path / "all.npz", **dict(zip(names, arrays, strict=True)))
    train, test = labelled(tmp_path / "all.npz")
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 0, 1, 2], [2, 1, 0, 0])
    assert train.classes == ("a", "b", "c")
    assert np.array_equal(test.read(1), arrays[1][1])
    assert len(open_source(tmp_path / "all.npz")) == 6


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"one": images(8, 9)}, r"must hold images as \[N, H, W\]"),
        ({"one": images(4, 9, 9, 9)}, "of an image its shape .* does not tell which axis"),
        ({"one": np.array(["a", "b"])}, "which are no pixels"),
        ({"one": images(4, 8, 9), "two": images(4, 8, 9)}, "holds the arrays one, two: one of them alone"),
        ({"images": images(4, 8, 9), "labels": np.zeros(3, int)}, "has 4 images but 3 labels"),
        ({"images": images(4, 8, 9), "labels": np.zeros((4, 2))}, "must be one whole number or word an image"),
    ],
)
def test_what_cannot_be_used_is_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        open_source(tmp_path / "all.npz")


@pytest.mark.parametrize("name", ["pickled.npy", "pickled.npz", "damaged.npy", "damaged.npz", "claims.npz"])
def test_damaged_and_pickled_files(name: str, tmp_path: Path) -> None:
    objects = np.array([{}, {}], dtype=object)
    path = tmp_path / name
    if name == "pickled.npy":
        np.save(path, objects, allow_pickle=True)
    elif name == "pickled.npz":
        np.savez(path, images=objects)
    elif name == "claims.npz":
        with zipfile.ZipFile(path, "w") as archive:
            header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 1000), }".ljust(117) + "\n"
            archive.writestr("images.npy", b"\x93NUMPY\x01\x00v\x00" + header.encode())
    else:
        path.write_bytes(b"\x93NUMPY\x01\x00" if name == "damaged.npy" else b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"cannot be read as NumPy's arrays|is no \.npz file"):
        open_source(path)
