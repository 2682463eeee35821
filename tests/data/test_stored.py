"""Numbers of every kind become 8 bits by a range; axes of channels are found or refused."""

from __future__ import annotations

import io
import math
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unmask.data.decode import DecodeError, open_image
from unmask.data.stored import PixelRange, StoredPixels, channel_axis, channels_last

KINDS = ("uint16", "int16", "uint32", "int32", "float16", "float32", "float64")


@given(
    kind=st.sampled_from(KINDS),
    values=st.lists(st.integers(-30_000, 30_000), min_size=1, max_size=20),
    low=st.integers(-20_000, 20_000),
    span=st.integers(1, 40_000),
)
@settings(max_examples=60, deadline=None)
def test_a_range_is_linear_and_clipped(kind: str, values: list[int], low: int, span: int) -> None:
    whole = np.array(values)[None, :, None]
    array = (np.abs(whole) if kind.startswith("u") else whole).astype(kind)
    found = StoredPixels(array).eight_bit(PixelRange(low=(low,), high=(low + span,)))
    expected = np.clip((array.astype(np.float64) - low) * 255 / span, 0, 255)
    assert found.dtype == np.uint8
    # Halves may be rounded either way.
    assert np.abs(found - expected).max() <= 0.5 + 1e-3
    order = np.argsort(array.ravel(), kind="stable")
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()


def test_each_channel_has_its_own_range_or_all_have_one() -> None:
    stored = StoredPixels(np.array([[[0, 100, 200]]], dtype=np.uint16))
    own = stored.eight_bit(PixelRange(low=(0, 0, 100), high=(100, 100, 300)))
    assert own.ravel().tolist() == [0, 255, 128]
    assert stored.eight_bit(PixelRange(low=(0,), high=(200,))).ravel().tolist() == [0, 128, 255]
    with pytest.raises(DecodeError, match="it has 3 channels, the range of pixel values is for 2"):
        stored.eight_bit(PixelRange(low=(0, 0), high=(1, 1)))


def test_images_of_8_bits_have_no_range() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    assert StoredPixels(array).eight_bit(PixelRange(low=(2,), high=(3,))) is array


@pytest.mark.parametrize(("kind", "ends"), [("uint16", (0, 65535)), ("int16", (-32768, 32767)), ("float32", (0, 1))])
def test_without_a_range_the_ends_of_the_type_are_black_and_white(kind: str, ends: tuple[float, float]) -> None:
    array = np.array(ends, dtype=kind)[None, :, None]
    assert StoredPixels(array).eight_bit().ravel().tolist() == [0, 255]


def test_every_16_bit_number_becomes_what_it_always_has() -> None:
    levels = np.arange(65536, dtype=np.uint16)
    found = StoredPixels(levels[None, :, None]).eight_bit().ravel()
    assert np.array_equal(found, (levels.astype(int) + 128) // 257)


@pytest.mark.parametrize("kind", ["uint16", "int16", "float32"])
def test_what_is_no_measurement_becomes_low(kind: str) -> None:
    values = [7, 100] if kind != "float32" else [7, 100, math.nan, math.inf, -math.inf]
    stored = StoredPixels(np.array(values, dtype=kind)[None, :, None], nodata=100)
    assert stored.eight_bit(PixelRange(low=(0,), high=(7,))).ravel().tolist() == [255] + [0] * (len(values) - 1)
    far = StoredPixels(stored.values_HWC[:, :2], nodata=-1e30)
    assert far.eight_bit(PixelRange(low=(0,), high=(7,))).ravel().tolist() == [255, 255]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        ((), (), "as many low values as high ones"),
        ((1.0,), (2.0, 3.0), "as many low values as high ones, got 1 and 2"),
        ((2.0,), (2.0,), "must go up, not from 2 to 2"),
        ((0.0,), (math.nan,), "must go up"),
        ((-math.inf,), (1.0,), "must go up"),
    ],
)
def test_ranges_that_cannot_be(low: tuple[float, ...], high: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PixelRange(low=low, high=high)


@given(st.integers(1, 12), st.integers(13, 60), st.integers(13, 60))
@settings(max_examples=30, deadline=None)
def test_the_axis_of_channels_is_found_in_either_order(channels: int, height: int, width: int) -> None:
    image = np.zeros((height, width, channels), dtype=np.uint8)
    assert channels_last(image).shape == image.shape
    assert channels_last(image.transpose(2, 0, 1)).shape == image.shape


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((9, 9, 200), 2), ((200, 9, 9), 0), ((64, 64, 64), None), ((3, 50, 3), None), ((50, 60, 70), None)],
)
def test_the_axis_of_channels_at_its_limits(shape: tuple[int, ...], axis: int | None) -> None:
    if axis is None:
        with pytest.raises(DecodeError, match="does not tell which axis is that of the channels"):
            channel_axis(shape)
    else:
        assert channel_axis(shape) == axis


def npy(array: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_hold_one_image(order: Any) -> None:
    array = np.random.default_rng(0).integers(0, 4000, (24, 40, 5)).astype(np.int16, order=order)
    for found, expected in ((array, array), (array.transpose(2, 0, 1), array), (array[:, :, 0], array[:, :, :1])):
        opened = open_image(npy(found))
        assert isinstance(opened.content, StoredPixels)
        assert np.array_equal(opened.content.values_HWC, expected)
        assert opened.dtype == "int16"


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array(["word"])),
        npy(np.zeros((3, 4), dtype=complex)),
        npy(np.zeros(4)),
        npy(np.zeros((30, 40)))[:-1],
        npy(np.array([{}]), allow_pickle=True),
        b"\x93NUMPY\x01\x00" + bytes(4),
    ],
)
def test_npy_files_of_something_else(data: bytes) -> None:
    with pytest.raises(DecodeError):
        open_image(data)


@pytest.mark.parametrize("alpha", [False, True])
def test_png_files_of_16_bits_and_colours_keep_all_bits(alpha: bool) -> None:
    array = np.random.default_rng(0).integers(0, 4000, (6, 8, 4 if alpha else 3)).astype(np.uint16)
    if alpha:
        array[:, :, 3] = 65535
    opened = open_image(imagecodecs.png_encode(array))
    assert isinstance(opened.content, StoredPixels)
    assert np.array_equal(opened.content.values_HWC, array[:, :, :3])
    found = opened.decode(min_size=None, channels=3).pixels_HWC
    assert np.array_equal(found, (array[:, :, :3].astype(int) + 128) // 257)
