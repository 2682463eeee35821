"""Facts and warnings in words: each said where it is true, and only there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import Int64

from unmask.data.dataset import BadFile
from unmask.data.halves import Halves, Told
from unmask.data.sources import FileSource
from unmask.data.stored import PixelRange
from unmask.data.survey import Group, Survey, Values
from unmask.report.survey_words import Plan, data_size, fact_rows, looked_at, warnings

PLAN = Plan(crop=(224, 224), rows={"method": "ConMIM"})


def halves(pretraining: int, testing: int = 0, **changes: Any) -> Halves:
    """So many images, with a fifth or `testing` of others for testing."""
    names = [f"{number}.png".encode() for number in range(pretraining + testing)]
    source, more = (FileSource("photos", Path("photos"), part) for part in (names[:pretraining], names))
    training = pretraining if testing else pretraining * 4 // 5
    usual = Halves(source, more, training, (("a", training, 100), ("b", training, 100)), "", Told())
    return replace(usual, **changes)


def sizes(*some: tuple[int, int]) -> Int64[np.ndarray, "N 2"]:
    """Heights and widths of 5,000 images: these, again and again."""
    return np.resize(np.array(some), (5000, 2))


def found(**changes: Any) -> Survey:
    """A survey of 5,000 good photographs."""
    usual = Survey(
        halves=halves(5000),
        read=5000,
        decoded=2000,
        positions_N=np.arange(5000),
        sizes_N2=sizes((300, 400), (480, 640)),
        bytes_N=np.full(5000, 30_000),
        kinds=Counter(jpg=5000),
        dtypes=Counter(uint8=2000),
        values={3: Values(2000, np.full((3, 256), 1 / 256))},
        grey=0,
        uniform=0,
        shown=tuple(range(2000)),
        bad=(),
        groups=(),
        compared=2000,
    )
    return replace(usual, **changes)


def test_good_photographs_need_no_warning() -> None:
    assert warnings(found(), PLAN) == []
    assert fact_rows(found()) == {
        "kind": "image files",
        "images": "5,000; an evaluation would train on 4,000 of them and test on 1,000",
        "classes": "2, of 4,100 images each",
        "looked at": "all files were read, 2,000 of 5,000 decoded",
        "bad files": "none",
        "sizes": "400 x 300 to 640 x 480 pixels (width x height), median 520 x 390",
        "files": "all jpg; 150 MB, 30 kB each (median)",
        "pixels": "all colour; all uint8",
        "mean": "0.500, 0.500, 0.500 (of each channel, from 0 to 1)",
        "deviation": "0.290, 0.290, 0.290",
        "copies": "no exact copy; no near copy (2,000 compared)",
        "in both halves": "no image of the training half was found again in the test half",
    }


BAD = tuple(BadFile(number, f"{number}.png", "the file is empty") for number in range(600))
WARNED = {
    "refused": ({}, Plan(refusal="no"), "unmask pretrain would refuse: no."),
    "some bad": ({"bad": BAD[:12]}, PLAN, "12 files cannot be used; a run passes over such files and names them."),
    "many bad": (
        {"bad": BAD},
        PLAN,
        "12% of the files cannot be used: a run stops at more than 10% (--max-bad-share).",
    ),
    "few": (
        {"halves": halves(240)},
        PLAN,
        "240 images are very few for pre-training: an encoder that others have trained is the better start "
        "(--from-weights timm:NAME).",
    ),
    "uneven": (
        {"halves": halves(5000, class_counts=(("a", 30, 1), ("b", 400, 1)))},
        PLAN,
        "Classes differ much in size: b has 400 training images, a 30.",
    ),
    "tiny": (
        {"sizes_N2": sizes((28, 28))},
        replace(PLAN, crop=(28, 28)),
        "The images are tiny (28 x 28 pixels): much of what is published about pre-training does not hold there.",
    ),
    "large": (
        {"sizes_N2": sizes((4000, 4000))},
        PLAN,
        "The images are large (4000 x 4000 pixels): decoding them decides the speed, and copies of 500 pixels or so "
        "would train as well.",
    ),
    "smaller than crops": (
        {"sizes_N2": sizes((100, 300), (300, 300), (300, 300))},
        PLAN,
        "33% of the images have less than half as many pixels a side as the crops of 224 x 224: they are enlarged "
        "(--image-size).",
    ),
    "long": (
        {"sizes_N2": sizes((300, 1000), (300, 300))},
        PLAN,
        "50% of the images have one side more than 3 times the other: a square crop sees a piece of them.",
    ),
    "grey in colour": (
        {"grey": 1990},
        PLAN,
        "Nearly all images are grey, though stored in colour: --channels 1 spares two thirds of the work on pixels.",
    ),
    "grey": (
        {"values": {1: Values(2000, np.full((1, 256), 1 / 256))}},
        PLAN,
        "Nearly all images are grey: --channels 1 spares two thirds of the work on pixels.",
    ),
    "some grey": ({"grey": 500}, PLAN, "25% of the images in colour have nothing but grey in them."),
    "mixed channels": (
        {"values": {5: Values(1500, np.full((5, 256), 1 / 256)), 4: Values(2, np.full((4, 256), 1 / 256))}},
        replace(PLAN, channels=5),
        "The images do not have the same number of channels: 5 (1,500 images), 4 (2 images). A run takes those of one "
        "number.",
    ),
    "one colour": (
        {"uniform": 1},
        PLAN,
        "1 decoded image is of one colour: there is nothing to learn from them.",
    ),
    "copies": (
        {"groups": (Group((1, 2, 3), True),)},
        PLAN,
        "2 images are the same as another one, to the last bit.",
    ),
    "many near copies": (
        {"groups": (Group(tuple(range(200)), False),)},
        PLAN,
        "199 images look nearly like others, of 2,000 compared.",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_what_is_odd_is_said_and_nothing_else(case: str) -> None:
    changes, plan, sentence = WARNED[case]
    assert warnings(found(**changes), plan) == [sentence]


def test_images_of_both_halves() -> None:
    groups = (Group((1, 4500, 4600), True), Group((2, 4700), False), Group((4800, 4801), True), Group((5, 6), False))
    survey = found(groups=groups)
    assert warnings(survey, PLAN) == [
        "3 images are the same as another one, to the last bit.",
        "2 test images are the same as one for training: an evaluation would be too kind.",
        "1 test image is nearly the same as one for training: an evaluation would be too kind.",
    ]
    rows = fact_rows(survey)
    assert rows["in both halves"] == "2 test images are for training, too; 1 nearly so"
    assert rows["copies"] == "3 exact copies, in 2 groups; 2 near copies, in 2 groups (2,000 compared)"
    unlabelled = replace(survey.halves, class_counts=())
    assert fact_rows(replace(survey, halves=unlabelled)).keys() == rows.keys() - {"in both halves"}


def test_facts_about_what_is_less_usual() -> None:
    rows = fact_rows(
        found(
            halves=halves(5000, 70, class_counts=(), captions=Told(5000, 25000)).in_range(
                PixelRange(low=(112.0,), high=(3890.0,))
            ),
            read=5070,
            decoded=5070,
            bad=BAD[:3],
            kinds=Counter(tif=4000, png=1000),
            dtypes=Counter(uint16=2000),
            values={13: Values(2000, np.full((13, 256), 1 / 256))},
            sizes_N2=sizes((10, 20), (20, 10)),
        )
    )
    assert rows["images"] == "5,000 for pre-training, 70 more kept for testing"
    assert rows["classes"] == "none: no folder a class, no labels"
    assert rows["captions"] == "25,000 for all 5,000 images"
    assert rows["looked at"] == "all files were read and decoded"
    assert rows["bad files"] == "3 of 5,070"
    assert rows["sides"] == "width is 0.5 to 2 times the height, median 1.25"
    assert rows["files"].startswith("tif (4,000), png (1,000); ")
    assert rows["pixels"] == "all 13 channels; all uint16"
    assert rows["range"] == "112 to 3890 become black to white, where pixels have more than 8 bits"
    assert rows["mean"] == f"{', '.join(['0.500'] * 8)}, ... (of each channel, from 0 to 1)"


def test_a_part_of_the_files() -> None:
    assert looked_at(found(read=3000)) == "3,000 of 5,000 files were read, 2,000 of 5,000 decoded"


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.23 kB"), (2e7, "20 MB"), (3.21e9, "3.21 GB"), (4e13, "40 TB")],
)
def test_sizes_in_words(size: float, words: str) -> None:
    assert data_size(size) == words
