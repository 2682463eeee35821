"""Random boxes follow torchvision's distribution, and their pixels and records belong together."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize

from unmask.data.batch import CropConfig
from unmask.data.crop import Stream, center_crop, crop_image, random_box, sample_generator
from unmask.data.decode import PixelMemory, open_image


def blobs(height: int, width: int) -> Image.Image:
    """A colour image with as much detail as half a pixel's shift leaves recognisable."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((375, 500), CropConfig()),
        ((375, 500), CropConfig(scale=(0.05, 0.3), ratio=(0.5, 2.0))),
        ((60, 400), CropConfig(scale=(0.2, 1.0))),  # often falls back to the central box
    ],
)
def test_boxes_are_distributed_as_in_torchvision(size: tuple[int, int], crop: CropConfig) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(3000)],
        dtype=float,
    )
    ours = np.array([random_box(sample_generator(0, 0, i, Stream.CROP), *size, crop) for i in range(3000)], dtype=float)
    points = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    for value in (
        lambda b: b[:, 2] * b[:, 3] / (size[0] * size[1]),
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: (b[:, 0] + b[:, 2] / 2) / size[0],
        lambda b: (b[:, 1] + b[:, 3] / 2) / size[1],
    ):
        a, b = np.quantile(value(ours), points), np.quantile(value(theirs), points)
        assert np.abs(a - b).max() < 0.05


@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    low=st.floats(0.01, 1.0),
    ratio=st.floats(0.2, 1.0),
    index=st.integers(0, 10**9),
)
@settings(max_examples=200, deadline=None)
def test_every_box_lies_in_its_image(height: int, width: int, low: float, ratio: float, index: int) -> None:
    crop = CropConfig(scale=(low, 1.0), ratio=(ratio, 1 / ratio))
    top, left, box_height, box_width = random_box(sample_generator(3, 1, index, Stream.CROP), height, width, crop)
    assert box_height >= 1
    assert box_width >= 1
    assert 0 <= top <= height - box_height
    assert 0 <= left <= width - box_width


def test_each_seed_epoch_index_and_stream_draws_its_own_numbers() -> None:
    keys = [
        (seed, epoch, index, stream)
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1)
        for index in (0, 1, 10**6)
        for stream in Stream
    ]
    draws = {sample_generator(*key).random() for key in keys}
    assert len(draws) == len(keys)
    assert {sample_generator(*key).random() for key in keys} == draws


def test_a_samples_numbers_are_philoxs_of_its_key() -> None:
    key = np.array([7, 3], dtype=np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 11, Stream.CROP]))
    assert np.array_equal(sample_generator(7, 3, 11, Stream.CROP).random(9), expected.random(9))


def test_crops_do_not_depend_on_the_memory_of_the_image() -> None:
    memory = PixelMemory()
    for index in range(6):
        data = encoded(blobs(150 + 40 * index, 300 - 30 * index), "JPEG")
        arguments = open_image(data), (CropConfig(height=48, width=40, count=2),)
        lent, _ = crop_image(*arguments, sample_generator(0, 0, index, Stream.CROP), channels=3, memory=memory)
        kept = lent[0].clone()
        own, _ = crop_image(*arguments, sample_generator(0, 0, index, Stream.CROP), channels=3)
        # The next image may overwrite the memory: nothing of a crop lies there.
        crop_image(
            open_image(encoded(blobs(300, 300), "JPEG")),
            (CropConfig(),),
            sample_generator(0, 0, 0, Stream.CROP),
            channels=3,
            memory=memory,
        )
        assert torch.equal(lent[0], kept)
        assert torch.equal(lent[0], own[0])


def test_all_crops_come_with_their_boxes() -> None:
    crops = (
        CropConfig(height=32, width=48, count=2),
        CropConfig(height=16, width=16, count=3, scale=(0.05, 0.2)),
    )
    image = blobs(90, 120)
    pixels, boxes = crop_image(open_image(encoded(image)), crops, sample_generator(0, 0, 0, Stream.CROP), channels=3)
    assert [p.shape for p in pixels] == [(2, 3, 32, 48), (3, 3, 16, 16)]
    assert [p.dtype for p in pixels] == [torch.uint8, torch.uint8]
    assert [b.shape for b in boxes] == [(2, 6), (3, 6)]
    for crop, group, group_boxes in zip(crops, pixels, boxes, strict=True):
        for found, box in zip(group, group_boxes.int().tolist(), strict=True):
            top, left, height, width, *size = box
            assert size == [90, 120]
            cut = image.crop((left, top, left + width, top + height))
            expected = np.asarray(cut.resize((crop.width, crop.height), Image.Resampling.BICUBIC))
            difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
            assert difference.max() <= 4
            assert difference.mean() < 0.2


@pytest.mark.parametrize(("side", "reduction"), [(24, 8), (100, 4), (200, 2), (400, 1)])
def test_a_jpeg_is_decoded_small_only_when_no_crop_loses_pixels(side: int, reduction: int) -> None:
    data = encoded(blobs(60, 80).resize((800, 600), Image.Resampling.BICUBIC), "JPEG")
    crops = (CropConfig(height=side, width=side, scale=(0.7, 1.0)), CropConfig(height=8, width=8))
    pixels, boxes = crop_image(open_image(data), crops, sample_generator(0, 0, 0, Stream.CROP), channels=3)
    top, left, height, width, *_ = boxes[0][0].int().tolist()
    assert min(height, width) / reduction >= side
    full = open_image(data).decode(min_size=None, channels=3)
    expected = full.resized((top, left, height, width), side, side)
    assert (pixels[0][0].int() - expected.int()).abs().float().mean() < 2


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (100, 130)])
def test_the_central_crop_is_torchvisions_within_a_pixel(size: tuple[int, int]) -> None:
    image = blobs(*size)
    found = center_crop(open_image(encoded(image)), 224, 224, channels=3)
    resized = Resize(math.ceil(224 * 256 / 224), InterpolationMode.BICUBIC)(image)
    expected = torch.from_numpy(np.array(CenterCrop(224)(resized))).permute(2, 0, 1)
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().float().mean() < 6


def test_small_central_crops_lose_no_margin() -> None:
    image = blobs(32, 32)
    found = center_crop(open_image(encoded(image)), 32, 32, channels=3)
    assert (found.permute(1, 2, 0).numpy() == np.asarray(image)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (3, 2), (700, 1)])
def test_central_crops_of_odd_images(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        data = encoded(Image.new("RGB", (size[1], size[0]), "red"), kind)
        assert center_crop(open_image(data), 24, 40, channels=3).shape == (3, 24, 40)
