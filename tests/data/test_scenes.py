"""Scenes are what they say: exact masks and boxes, photos untouched elsewhere, halves that share nothing."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects
from scipy.stats import chisquare
from sklearn.datasets import load_sample_images

from unmask.data.annotated import Things
from unmask.data.decode import decode
from unmask.data.layout import Split
from unmask.data.scenes import (
    Half,
    open_scenes_detection,
    open_scenes_segmentation,
    paint_scene,
    visible_parts,
)
from unmask.data.sources import TarSource, open_source

HALVES: tuple[Half, ...] = ("train", "test")
SOME = range(0, 400, 4)


@cache
def scenes(half: Half) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8], Things]]:
    """Pixels, mask and things of some scenes, as the two sources give them."""
    masked, boxed = open_scenes_segmentation(half), open_scenes_detection(half)
    return [(masked.read(index), masked.mask(index), boxed.things(index)) for index in SOME]


@pytest.mark.parametrize(
    ("split", "count", "name"), [("all", 2000, "train"), ("train", 2000, "train"), ("test", 400, "test")]
)
def test_what_the_sources_say_of_themselves(split: Split, count: int, name: str) -> None:
    masked, boxed = open_scenes_segmentation(split), open_scenes_detection(split)
    assert len(masked) == len(boxed) == count
    assert masked.classes == ("background", *boxed.classes)
    assert boxed.classes == open_source("builtin:emoji").classes
    assert len(boxed.classes) == 9
    assert boxed.has_masks
    assert masked.labels is None
    assert boxed.labels is None
    assert masked.name == boxed.name == f"builtin:scenes/{name}"
    assert masked.path(7) == boxed.path(7) == f"builtin:scenes/{name}/7"
    for index in (-1, count):
        with pytest.raises(IndexError):
            masked.read(index)
        with pytest.raises(IndexError):
            boxed.things(index)


@pytest.mark.parametrize("half", HALVES)
def test_boxes_are_tight_around_masks_that_agree_between_the_sources(half: Half) -> None:
    for pixels_HWC, mask_HW, things in scenes(half):
        assert pixels_HWC.shape == (128, 128, 3)
        assert pixels_HWC.dtype == mask_HW.dtype == np.uint8
        assert mask_HW.shape == (128, 128)
        assert things.masks_KHW is not None
        count = len(things.labels_K)
        assert 1 <= count <= 4
        assert not things.crowd_K.any()
        assert len(things.crowd_K) == count
        # No pixel is of two things, and where a thing is, the other source has its class.
        assert things.masks_KHW.sum(axis=0).max() == 1
        expected_HW = (things.masks_KHW * (things.labels_K + 1)[:, None, None]).sum(axis=0)
        np.testing.assert_array_equal(mask_HW, expected_HW)
        for mask, box in zip(things.masks_KHW, things.boxes_K4.tolist(), strict=True):
            assert mask.sum() >= 16
            rows, columns = find_objects(mask.astype(int))[0]
            assert box == [columns.start, rows.start, columns.stop, rows.stop]
            assert 0 <= box[0] < box[2] <= 128
            assert 0 <= box[1] < box[3] <= 128


@cache
def photos() -> list[NDArray[np.uint8]]:
    return load_sample_images().images


def _places(photo_HWC: NDArray[np.uint8], pixels_HWC: NDArray[np.uint8], free_HW: NDArray[np.bool_]) -> list[list[int]]:
    """Where the photo has exactly the free pixels, by looking everywhere: (top, left) of each place."""
    height, width = photo_HWC.shape[0] - 127, photo_HWC.shape[1] - 127
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)
    # A few pixels rule out nearly all places, then all of them decide.
    for row, column in np.argwhere(free_HW)[::200]:
        seen = photo_HWC[places[:, 0] + row, places[:, 1] + column]
        places = places[(seen == pixels_HWC[row, column]).all(axis=-1)]
    return [
        [top, left]
        for top, left in places.tolist()
        if (photo_HWC[top : top + 128, left : left + 128] == pixels_HWC)[free_HW].all()
    ]


@cache
def crops(half: Half) -> list[list[tuple[int, int, int]]]:
    """For each of the scenes, all the places in the photos that it may be cut from: (photo, top, left)."""
    return [
        [
            (number, top, left)
            for number, photo_HWC in enumerate(photos())
            for top, left in _places(photo_HWC, pixels_HWC, mask_HW == 0)
        ]
        for pixels_HWC, mask_HW, _ in scenes(half)
    ]


def test_outside_the_masks_is_the_photo_and_the_halves_share_no_column_of_it() -> None:
    for half in HALVES:
        assert [len(places) for places in crops(half)] == [1] * len(SOME)  # so much of a photo is nowhere twice
        assert {number for ((number, _, _),) in crops(half)} == {0, 1}
    train, test = ([left for ((_, _, left),) in crops(half)] for half in HALVES)
    assert max(train) + 128 <= 448 <= min(test)
    assert max(train) - min(train) > 300
    assert max(test) - min(test) > 50


def test_something_is_pasted_where_the_masks_are() -> None:
    for half in HALVES:
        for (pixels_HWC, mask_HW, _), ((number, top, left),) in zip(scenes(half), crops(half), strict=True):
            changed_HW = (photos()[number][top : top + 128, left : left + 128] != pixels_HWC).any(axis=-1)
            assert changed_HW[mask_HW > 0].mean() > 0.9


def test_each_half_is_made_of_its_own_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_source("builtin:emoji", split="train"), open_source("builtin:emoji", split="test")
    digests = [{hashlib.sha256(source.read(index)).digest() for index in range(len(source))} for source in whole]
    assert not digests[0] & digests[1]

    read = TarSource.read
    data_read: list[bytes] = []

    def noted(source: TarSource, index: int) -> bytes:
        data = read(source, index)
        data_read.append(data)
        return data

    monkeypatch.setattr(TarSource, "read", noted)
    for half, known in zip(HALVES, digests, strict=True):
        paint_scene.cache_clear()
        data_read.clear()
        boxed = open_scenes_detection(half)
        shown = sum(len(boxed.things(index).labels_K) for index in range(40))
        assert len(data_read) >= shown
        assert {hashlib.sha256(data).digest() for data in data_read} <= known


def test_a_thing_has_the_class_of_its_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    read = TarSource.read
    categories: list[str] = []

    def noted(source: TarSource, index: int) -> bytes:
        categories.append(source.path(index).split("/")[-2])
        return read(source, index)

    monkeypatch.setattr(TarSource, "read", noted)
    boxed = open_scenes_detection("train")
    whole = 0
    for index in range(60):
        paint_scene.cache_clear()
        categories.clear()
        labels = [boxed.classes[label] for label in boxed.things(index).labels_K]
        # Those that stay keep their order, from the back to the front; the last one always stays.
        following = iter(categories)
        assert all(label in following for label in labels)
        assert labels[-1] == categories[-1]
        whole += labels == categories
    assert whole > 40


def test_nothing_is_cut_by_the_edge_of_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc in place of every emoji stays a disc wherever it is pasted."""
    disc_HW = np.hypot(*(np.indices((64, 64)) - 31.5)) < 30
    image_HWC = np.zeros((64, 64, 4), dtype=np.uint8)
    image_HWC[disc_HW] = (200, 30, 90, 255)
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, "PNG")
    monkeypatch.setattr(TarSource, "read", lambda source, index: file.getvalue())
    paint_scene.cache_clear()
    boxed = open_scenes_detection("test")
    alone = [found for found in map(boxed.things, range(120)) if len(found.labels_K) == 1]
    paint_scene.cache_clear()
    touching = 0
    for found in alone:
        left, top, right, bottom = found.boxes_K4[0].tolist()
        assert found.masks_KHW is not None
        assert abs((right - left) - (bottom - top)) <= 2
        assert found.masks_KHW[0].sum() == pytest.approx(np.pi / 4 * (right - left) * (bottom - top), rel=0.08)
        touching += min(left, top, 128 - right, 128 - bottom) < 3
    assert touching > 0
    assert len(alone) > 20


PRINT_DIGEST = """
import hashlib
from unmask.data.scenes import open_scenes_detection, open_scenes_segmentation
digest = hashlib.sha256()
for index in (300, 5, 17, 0):
    for half in ("test", "train"):
        masked, boxed = open_scenes_segmentation(half), open_scenes_detection(half)
        things = boxed.things(index)
        for array in (boxed.read(index), masked.mask(index), things.boxes_K4, things.labels_K, things.masks_KHW):
            digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_another_process_paints_the_same_scenes() -> None:
    scenes("train")
    digest = hashlib.sha256()
    for index in (300, 5, 17, 0):
        for half in ("test", "train"):
            masked, boxed = open_scenes_segmentation(half), open_scenes_detection(half)
            things = boxed.things(index)
            assert things.masks_KHW is not None
            for array in (boxed.read(index), masked.mask(index), things.boxes_K4, things.labels_K, things.masks_KHW):
                digest.update(array.tobytes())
    done = subprocess.run([sys.executable, "-c", PRINT_DIGEST], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest.hexdigest()


def test_what_is_done_to_one_answer_does_not_change_the_next() -> None:
    masked, boxed = open_scenes_segmentation("test"), open_scenes_detection("test")
    before = boxed.things(3)
    pixels_HWC, mask_HW, things = masked.read(3), masked.mask(3), boxed.things(3)
    assert things.masks_KHW is not None
    for array in (pixels_HWC, mask_HW, things.boxes_K4, things.labels_K, things.masks_KHW, things.crowd_K):
        array[...] = 1
    assert (masked.read(3) != pixels_HWC).any()
    assert (masked.mask(3) != mask_HW).any()
    np.testing.assert_array_equal(boxed.things(3).boxes_K4, before.boxes_K4)
    np.testing.assert_array_equal(boxed.things(3).masks_KHW, before.masks_KHW)


def test_no_two_scenes_are_the_same() -> None:
    seen = {pixels_HWC.tobytes() for half in HALVES for pixels_HWC, _, _ in scenes(half)}
    assert len(seen) == len(HALVES) * len(SOME)


@pytest.mark.parametrize("half", HALVES)
def test_classes_and_numbers_of_things_are_even(half: Half) -> None:
    labels = np.concatenate([things.labels_K for _, _, things in scenes(half)])
    per_class = np.bincount(labels, minlength=9)
    assert len(per_class) == 9
    assert chisquare(per_class).pvalue > 0.01
    per_scene = np.bincount([len(things.labels_K) for _, _, things in scenes(half)])
    # As many scenes have one as have four, but some of four lose one that would be hidden.
    assert len(per_scene) == 5
    assert per_scene[0] == 0
    assert (per_scene[1:] >= len(SOME) / 10).all()


def test_things_are_of_all_sizes_and_everywhere() -> None:
    boxes_K4 = np.concatenate([things.boxes_K4 for half in HALVES for _, _, things in scenes(half)])
    longest_K = np.maximum(boxes_K4[:, 2] - boxes_K4[:, 0], boxes_K4[:, 3] - boxes_K4[:, 1])
    assert np.quantile(longest_K, 0.1) < 30
    assert np.quantile(longest_K, 0.9) > 58
    assert longest_K.max() < 100
    assert boxes_K4[:, :2].min() == 0
    assert boxes_K4[:, 2:].max() == 128


def test_scenes_pass_through_the_decoder_as_they_are() -> None:
    masked = open_scenes_segmentation("test")
    decoded = decode(masked.read(0), min_size=None, channels=3)
    np.testing.assert_array_equal(decoded.pixels_HWC, masked.read(0))


@given(masks_KHW=arrays(np.bool_, st.tuples(st.integers(1, 4), st.just(6), st.just(9))))
@settings(max_examples=300, deadline=None)
def test_what_is_left_out_is_hidden_or_tiny_and_nothing_else(masks_KHW: NDArray[np.bool_]) -> None:
    kept_K, visible_KHW = visible_parts(masks_KHW)
    kept = kept_K.tolist()
    assert kept == sorted(set(kept))
    assert visible_KHW.shape == (len(kept), 6, 9)
    # Painted one after the other onto a canvas of numbers, with the things left out tried again in their turn.
    for place in range(len(masks_KHW)):
        canvas = np.full((6, 9), -1)
        for other in range(len(masks_KHW)):
            if other in kept or other == place:
                canvas[masks_KHW[other]] = other
        area = int((canvas == place).sum())
        enough = area >= 16 and 10 * area >= 4 * int(masks_KHW[place].sum())
        assert enough == (place in kept)
        if place in kept:
            np.testing.assert_array_equal(visible_KHW[kept.index(place)], canvas == place)


def test_a_thing_of_which_forty_percent_are_visible_stays() -> None:
    masks_KHW = np.zeros((2, 10, 10), dtype=np.bool_)
    masks_KHW[0] = True
    masks_KHW[1, :6] = True
    assert visible_parts(masks_KHW)[0].tolist() == [0, 1]
    masks_KHW[1, 6, 0] = True
    assert visible_parts(masks_KHW)[0].tolist() == [1]
