"""Damaged captions, tables of labels and COCO files are read or refused in one sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as rle
from hypothesis import strategies as st
from PIL import Image

from fuzzing import altered, altered_lines, altered_text, answer, damaged
from unmask.data.captions import read_captions
from unmask.data.coco import open_detection
from unmask.data.decode import DecodeError
from unmask.data.multilabel import open_multilabel
from unmask.data.segmentation import open_segmentation

Fuzz = Callable[..., None]
IMAGES = (b"a.png", b"warm/b.png")


def test_captions_of_csv(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: read_captions(path, IMAGES), ValueError)

    fuzz(damaged({"csv": b'image,caption\na.png,"one, two"\nwarm/b.png,"say ""a"""\n./a.png,more\n'}), check)


def test_captions_of_json_lines(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    lines = [{"image": "a.png", "caption": "one"}, {"image": "warm/b.png", "caption": ["two", "three"]}]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: read_captions(path, IMAGES), ValueError)

    fuzz(altered_lines(lines), check, examples=40)


def test_tables_of_labels(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = [
        f"{number}.png,{'cat;dog' if number % 2 else 'cat'},{'val' if number > 5 else 'train'}" for number in range(9)
    ]
    columns = "image,cat,dog\n" + "".join(f"{number}.png,{number % 2},1\n" for number in range(9))
    wholes = {"labels": "\n".join(["image,labels,split", *rows]).encode(), "columns": columns.encode()}

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: read_halves(path), ValueError)

    fuzz(damaged(wholes), check)


def read_halves(path: Path) -> None:
    for half in open_multilabel(path):
        for index in range(min(3, len(half))):
            answer(partial(half.read, index), OSError)


SIDES = (12, 10)


def coco() -> dict[str, Any]:
    """Three images with polygons, run lengths plain and compressed, a crowd, a box alone."""
    mask_HW = np.zeros(SIDES, np.uint8, order="F")
    mask_HW[2:6, 3:7] = 1
    packed = rle.encode(mask_HW)["counts"]
    common = {"category_id": 2, "iscrowd": 0, "area": 16}
    outlines = [
        [[3, 2, 7, 2, 7, 6, 3, 6]],
        [[3.5, 2.5, 7, 2, 7, 6], [1, 1, 2, 1, 2, 2]],
        {"size": list(SIDES), "counts": packed.decode() if isinstance(packed, bytes) else packed},
        {"size": list(SIDES), "counts": [38, 4, 8, 4, 8, 4, 8, 4, 42]},
    ]
    annotations = [
        {"id": number, "image_id": number % 3 + 1, "bbox": [3, 2, 4, 4], "segmentation": outline, **common}
        for number, outline in enumerate(outlines, start=1)
    ]
    annotations[3] |= {"iscrowd": 1, "category_id": 7}
    images = [{"id": n, "file_name": f"{n}.png", "height": SIDES[0], "width": SIDES[1]} for n in (1, 2, 3)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def test_coco(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    for number in (1, 2, 3):
        Image.new("RGB", SIDES[::-1]).save(tmp_path / f"{number}.png")

    def look() -> None:
        source = open_detection(path, "all")
        for index in range(len(source)):
            answer(lambda index=index: source.read(index), OSError, DecodeError)
            answer(lambda index=index: source.things(index), OSError, DecodeError)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(look, ValueError)

    counts = coco()["annotations"][2]["segmentation"]["counts"]

    def with_counts(changed: str) -> bytes:
        values = coco()
        values["annotations"][2]["segmentation"]["counts"] = changed
        return json.dumps(values).encode()

    runs = damaged({"counts": counts.encode()}).map(lambda text: with_counts(text.decode("latin1")))
    of_things = altered(coco()["annotations"]).map(lambda found: json.dumps(coco() | {"annotations": found}).encode())
    fuzz(st.one_of(altered_text(coco()), of_things, runs), check, examples=80)


def masks() -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3).save(buffer, "PNG")
    return {"mask": buffer.getvalue(), "names": b"wall\nsky\ntree\n"}


@pytest.mark.parametrize("what", ["mask", "names"])
def test_folders_of_masks(fuzz: Fuzz, tmp_path: Path, what: str) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(masks()["mask"])

    def check(content: bytes) -> None:
        path = tmp_path / "masks" / "1.png" if what == "mask" else tmp_path / "classes.txt"
        path.write_bytes(content)
        answer(lambda: open_segmentation(tmp_path, "train"), ValueError)

    fuzz(damaged({what: masks()[what]}), check, examples=10)
