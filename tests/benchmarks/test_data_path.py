"""The data path's benchmark: the same photographs, views of the same kind from both sides, every decoder's pixels."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from benchmarks.data_path import METHODS, OurPath, decoders, measure_pipelines, photos, pipeline_table
from benchmarks.plain import pipelines
from PIL import Image


def test_photos_are_of_imagenets_size_and_repeat():
    files = photos(4)
    assert files == photos(4)
    assert len(set(files)) == 4
    for data in files:
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size) == ("JPEG", (500, 375))


@pytest.mark.parametrize("name", METHODS)
def test_both_sides_give_as_many_views_of_the_same_size_and_range(name):
    files = photos(3)
    random.seed(0)
    torch.manual_seed(0)
    theirs = pipelines.batch(pipelines.PIPELINES[name](), files)
    ours = OurPath.of(name, files).views()
    mine = [view for view in (ours.online, ours.target) if view is not None]
    assert [view.shape for view in theirs] == [view.shape for view in mine] == [(3, 3, 224, 224)] * len(theirs)
    assert len(theirs) == (1 if name == "mae" else 2)
    for one, other in zip(theirs, mine, strict=True):
        assert one.dtype == other.dtype == torch.float32
        # Other random crops and colours of the same pictures.
        assert abs(one.mean() - other.mean()) < 1
        assert abs(one.std() - other.std()) < 0.7


def test_views_of_conmim_and_cmae_show_what_the_authors_show():
    image = pipelines.decoded(photos(1)[0])
    pairs = [pipelines.conmim()(image) for _ in range(8)]  # one in five keeps its colours
    assert all(weak.shape == strong.shape == (3, 224, 224) for weak, strong in pairs)
    assert any(not torch.equal(weak, strong) for weak, strong in pairs)
    first, _ = pipelines.cmae(size=64, shift=0)(image)
    assert first.shape == (3, 64, 64)


def test_every_decoder_makes_the_same_picture():
    (data,) = photos(1)
    expected = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    found = decoders()
    assert {"Pillow", "torchvision.io", "ours", "ours, in a data worker"} <= set(found)
    for name, decode in found.items():
        made = decode(data)
        if name == "ours, in a data worker":
            continue  # tells nothing but the time
        made = made.pixels_HWC if name == "ours" else made
        array = np.asarray(made.permute(1, 2, 0) if isinstance(made, torch.Tensor) else made).astype(int)
        assert array.shape == expected.shape
        assert np.abs(array - expected).mean() < (0 if name in ("Pillow", "ours") else 3) + 1e-9


def test_the_table_has_a_row_for_each_method():
    timings = measure_pipelines(photos(2), rounds=1)
    table = pipeline_table(timings, 2, "caption")
    assert [row[0] for row in table.rows] == list(METHODS)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert all(value > 0 for row in table.rows for value in row[1:])
