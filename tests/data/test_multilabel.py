"""A CSV of images with several classes becomes two sources with the right targets, or one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmask.data.layout import hashed_test_mask
from unmask.data.loader import EvalLoader
from unmask.data.multilabel import MultiLabelSource, open_multilabel, rarest_class

CELLS = {"a.png": "cat;dog", "b.png": "", "sub/c.png": "dog | bird", "d.png": " cat ; ", "e.png": "bird;cat;cat"}


def _write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf8")
    return file


def _names(source: MultiLabelSource, folder: Path) -> list[str]:
    return [source.path(index).removeprefix(f"{folder}/") for index in range(len(source))]


def _classes_of(source: MultiLabelSource) -> list[set[str]]:
    assert source.classes is not None
    return [{source.classes[column] for column in np.flatnonzero(row)} for row in source.targets_NK]


def test_labels_in_one_cell(tmp_path: Path) -> None:
    lines = [f"{cells},{name},{'val' if name == 'e.png' else 'train'}" for name, cells in CELLS.items()]
    train, test = open_multilabel(_write(tmp_path / "list.csv", "\ufefflabels, image ,split", *lines, ""))
    assert train.classes == test.classes == ("bird", "cat", "dog")
    assert train.labels is None
    assert train.name == str(tmp_path / "list.csv")
    assert _names(train, tmp_path) == ["a.png", "b.png", "sub/c.png", "d.png"]
    assert _classes_of(train) == [{"cat", "dog"}, set(), {"bird", "dog"}, {"cat"}]
    assert _names(test, tmp_path) == ["e.png"]
    assert _classes_of(test) == [{"bird", "cat"}]
    assert train.targets_NK.dtype == np.float32
    assert train.targets_NK.shape == (4, 3)


def test_a_column_for_every_class_says_the_same(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "wide.csv",
        "image,split,dog,cat,bird",
        "a.png,train,1,1,0",
        "b.png,train,0, 0 ,0",
        "sub/c.png,TRAIN,1,0,1",
        "",
        "d.png,test,0,1,0",
    )
    train, test = open_multilabel(file)
    assert train.classes == ("dog", "cat", "bird")
    assert train.targets_NK.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert test.targets_NK.tolist() == [[0, 1, 0]]


def test_images_are_read_beside_the_file_and_bad_ones_are_left_to_the_reader(photo_folder: Path) -> None:
    file = _write(
        photo_folder / "list.csv",
        "image,labels,split",
        "cold/00.png,cold;first,train",
        "missing.jpg,cold,train",
        f"{photo_folder}/warm/01.png,warm,train",
        "./cold/../warm/03.jpg,warm,val",
    )
    train, test = open_multilabel(file)
    assert train.read(0) == (photo_folder / "cold" / "00.png").read_bytes()
    assert test.path(0) == str(photo_folder / "warm" / "03.jpg")
    loader = EvalLoader(train, height=8, width=8, batch_size=4, workers=0)
    (images_BCHW, indices_B), *_ = loader
    assert len(images_BCHW) == 2
    assert train.targets_NK[indices_B.numpy()].tolist() == [[1, 1, 0], [0, 0, 1]]
    assert list(loader.bad_files) == [str(photo_folder / "missing.jpg")]


def test_the_first_test_split_is_taken(tmp_path: Path) -> None:
    rows = ["a.png,x;y,train", "b.png,x,test", "c.png,y,val", "d.png,y,Validation"]
    train, test = open_multilabel(_write(tmp_path / "list.csv", "image,labels,split", *rows))
    assert _names(train, tmp_path) == ["a.png"]
    assert _names(test, tmp_path) == ["c.png"]
    train, test = open_multilabel(_write(tmp_path / "list.csv", "image,labels,split", *rows[:2]))
    assert _names(test, tmp_path) == ["b.png"]


def test_without_a_split_the_hash_of_the_name_decides(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(400)]
    lines = [f"{name},{'x' if number % 2 else 'x;y'}" for number, name in enumerate(names)]
    train, test = open_multilabel(_write(tmp_path / "list.csv", "image,labels", *lines))
    hidden = hashed_test_mask([name.encode() for name in names], None)
    assert _names(test, tmp_path) == [name for name, test in zip(names, hidden, strict=True) if test]
    assert _names(train, tmp_path) == [name for name, test in zip(names, hidden, strict=True) if not test]
    # The order of the lines does not matter to where an image goes.
    turned = open_multilabel(_write(tmp_path / "list.csv", "image,labels", *reversed(lines)))
    assert set(_names(turned[1], tmp_path)) == set(_names(test, tmp_path))


def test_a_rare_class_is_in_both_halves_of_a_hashed_split(tmp_path: Path) -> None:
    for trial in range(30):
        lines = [f"{trial}-{number}.jpg,{'common;rare' if number < 2 else 'common'}" for number in range(20)]
        train, test = open_multilabel(_write(tmp_path / "list.csv", "image,labels", *lines))
        assert train.targets_NK[:, 1].sum() == test.targets_NK[:, 1].sum() == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=30))
def test_the_rarest_class_is_one_of_the_images_own(rows: list[list[bool]]) -> None:
    targets_NK = np.array(rows, dtype=np.float32)
    counts_K = targets_NK.sum(axis=0)
    for row, group in zip(targets_NK, rarest_class(targets_NK).tolist(), strict=True):
        if not row.any():
            assert group == 3
        else:
            assert row[group] == 1
            assert counts_K[group] == counts_K[row > 0].min()


HEAD = "image,labels,split"
WIDE = "image,x,y,split"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([""], r"list\.csv has no column 'image': its first line must name the columns$"),
        (["file,labels"], r"list\.csv has no column 'image': its first line must name the columns$"),
        (["image,split"], r"list\.csv has no column 'labels' and no column for a class$"),
        (["image,labels,x"], r"has a column 'labels' and beside it 'x': name classes in one way only$"),
        (["image,x,y,x"], r"list\.csv has more than one column 'x'$"),
        ([HEAD], r"list\.csv lists no image$"),
        ([HEAD, "a.png,x;y"], r"list\.csv, line 2, has 2 cells, but the first line names 3 columns$"),
        ([WIDE, "a.png,1,0,train", "b.png,1,0,1,val"], r"line 3, has 5 cells, but the first line names 4 columns$"),
        ([HEAD, '"a.png,x'], r"list\.csv, line \d, is not CSV: "),
        ([HEAD, ",x;y,train"], r"list\.csv, line 2, names no image$"),
        ([HEAD, "a.png,x,train", "./a.png,y,val"], r"line 3, names './a.png' once more: give all its classes on one"),
        ([HEAD, "a.png,x,train", "b.png,x,val"], r"list\.csv has fewer than two classes: there is nothing to tell"),
        (["image,x", "a.png,1", "b.png,1"], r"list\.csv has fewer than two classes: there is nothing to tell apart$"),
        ([WIDE, "a.png,1,0,train", "b.png,1,yes,val"], r"line 3, has 'yes' for the class 'y', which must be 0 or 1$"),
        ([WIDE, "a.png,1,,train"], r"line 2, has '' for the class 'y', which must be 0 or 1$"),
        (
            [HEAD, "a.png,x;y,dev"],
            r"line 2, has the split 'dev', which is none of train, val, test, valid, validation$",
        ),
        ([HEAD, "a.png,x;y,val"], r"list\.csv has no image for training$"),
        ([HEAD, "a.png,x;y,train"], r"list\.csv has no image for testing$"),
        ([HEAD, "a.png,x,train", "b.png,y,val"], r"has no training image of the class 'y', so it cannot be learned$"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, lines: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_multilabel(_write(tmp_path / "list.csv", *lines))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv cannot be read: No such file or directory$"):
        open_multilabel(tmp_path / "none.csv")
    (tmp_path / "list.csv").write_bytes(b"image,labels\na.png,\xff\n")
    with pytest.raises(ValueError, match=r"list\.csv is not UTF-8 text: byte 19 cannot be read$"):
        open_multilabel(tmp_path / "list.csv")


def test_names_of_any_kind_are_found(tmp_path: Path) -> None:
    name = "ein größeres Bild, mit Komma.png"
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    train, _ = open_multilabel(_write(tmp_path / "l.csv", HEAD, f'"{name}",x;y,train', "b.png,x,val"))
    assert train.read(0) == (tmp_path / name).read_bytes()
