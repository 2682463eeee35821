"""Cutting into patches and back, and the reconstruction losses against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.objectives.reconstruction import (
    absolute_error_per_pixel,
    channel_statistics,
    mean_squared_error,
    normalise_patches,
    patch_statistics,
    patchify,
    unpatchify,
)

SIZES = st.integers(1, 4)


@settings(max_examples=30, deadline=None)
@given(batch=SIZES, channels=SIZES, rows=SIZES, columns=SIZES, height=SIZES, width=SIZES)
def test_patches_go_there_and_back(batch: int, channels: int, rows: int, columns: int, height: int, width: int) -> None:
    shape = (batch, channels, rows * height, columns * width)
    images = torch.arange(float(np.prod(shape))).reshape(shape)
    patches = patchify(images, (height, width))
    assert patches.shape == (batch, rows * columns, height * width * channels)
    assert torch.equal(unpatchify(patches, (height, width), (rows, columns)), images)


def test_values_of_a_patch_lie_row_by_row_with_channels_last() -> None:
    images = torch.arange(2.0 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(images, (2, 3))
    for sample, patch in np.ndindex(2, 4):
        top, left = 2 * (patch // 2), 3 * (patch % 2)
        cut = images[sample, :, top : top + 2, left : left + 3]
        assert torch.equal(patches[sample, patch], cut.permute(1, 2, 0).flatten())


def test_normalised_patches_have_mean_zero_and_unbiased_variance_one() -> None:
    patches = torch.randn(2, 5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 7 + 3
    numbers = patches.numpy()
    expected = (numbers - numbers.mean(-1, keepdims=True)) / np.sqrt(numbers.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalise_patches(patches).numpy(), expected, rtol=1e-12)
    mean, deviation = patch_statistics(patches)
    torch.testing.assert_close(normalise_patches(patches) * deviation + mean, patches)


def test_flat_patches_become_zero_not_noise() -> None:
    assert torch.equal(normalise_patches(torch.full((1, 2, 12), 0.5)), torch.zeros(1, 2, 12))


def test_mean_squared_error_is_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(6, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    expected = ((prediction.numpy() - target.numpy()) ** 2).mean()
    assert mean_squared_error(prediction, target).item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(hidden=st.integers(1, 12), channels=st.integers(1, 4), seed=st.integers(0, 100))
def test_absolute_error_is_simmims_formula_on_masked_pixels(hidden: int, channels: int, seed: int) -> None:
    """sum(|x - y| mask) / (sum(mask) + 1e-5) / channels over pixels, as the authors write it."""
    generator = torch.Generator().manual_seed(seed)
    images, reconstructed = (
        torch.randn(2, channels, 8, 12, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    mask_BN = (torch.rand(12, generator=generator).argsort() < hidden).reshape(2, 6)
    pixels_B1HW = mask_BN.reshape(2, 1, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3).numpy()
    weight = pixels_B1HW.astype(np.float64)
    count = np.float32(weight.sum()) + np.float32(1e-5)
    expected = (np.abs(images.numpy() - reconstructed.numpy()) * weight).sum() / np.float64(count) / channels
    found = absolute_error_per_pixel(
        patchify(reconstructed, (4, 4))[mask_BN], patchify(images, (4, 4))[mask_BN], channels
    )
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_losses_of_equal_patches_are_zero_and_their_gradients_finite() -> None:
    target = torch.randn(3, 12)
    prediction = target.clone().requires_grad_()
    loss = mean_squared_error(prediction, target) + absolute_error_per_pixel(prediction, target, 3)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


@settings(max_examples=20, deadline=None)
@given(channels=SIZES, pixels=st.integers(1, 9), seed=st.integers(0, 99))
def test_statistics_of_channels_are_each_channels_own(channels: int, pixels: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(2, 3, (2, 5, pixels, channels))
    mean, deviation = channel_statistics(torch.from_numpy(values).flatten(2), channels)
    assert mean.shape == deviation.shape == (2, 5, pixels * channels)
    for found, expected in (
        (mean, values.mean(2, keepdims=True)),
        (deviation, np.sqrt(values.var(2, keepdims=True) + 1e-5)),
    ):
        np.testing.assert_allclose(found.unflatten(2, (pixels, channels)), np.broadcast_to(expected, values.shape))
