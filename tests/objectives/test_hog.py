"""Histograms of oriented gradients against the plainest loop there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from unmask.objectives.hog import hog, hog_width, sobel


def _images(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def _reference(image_CHW: NDArray[np.float64], patch: int, cell: int, bins: int) -> NDArray[np.float64]:
    """One image, pixel by pixel: [patches, channels, bins, cell rows, cell columns]."""
    channels, height, width = image_CHW.shape
    columns, cells = width // patch, patch // cell
    found = np.zeros((height // patch * columns, channels, bins, cells, cells))
    padded = np.pad(image_CHW, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    for channel, row, column in np.ndindex(channels, height, width):
        around = padded[channel, row : row + 3, column : column + 3]
        across, down = (kernel * around).sum(), (kernel.T * around).sum()
        # Reflected borders: nothing there, however the sum was rounded.
        across = 0.0 if column in (0, width - 1) else across
        down = 0.0 if row in (0, height - 1) else down
        which = math.floor(math.atan2(across, down) / math.pi * bins) % bins
        place = (row // patch * columns + column // patch, channel, which, row % patch // cell, column % patch // cell)
        found[place] += math.hypot(across, down)
    lengths = np.sqrt((found**2).sum(axis=2, keepdims=True))
    return found / np.maximum(lengths, 1e-12)


@given(
    channels=st.integers(1, 4),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    cell=st.sampled_from([2, 3, 4]),
    cells=st.integers(1, 2),
    bins=st.sampled_from([2, 5, 9]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_it_is_the_loop(channels: int, rows: int, columns: int, cell: int, cells: int, bins: int, seed: int) -> None:
    patch = cell * cells
    images_BCHW = _images(2, channels, rows * patch, columns * patch, seed)
    mask_BN = torch.rand(2, rows * columns, generator=torch.Generator().manual_seed(seed)) < 0.6
    found_MK = hog(images_BCHW, (patch, patch), mask_BN, cell=cell, bins=bins)
    expected = np.stack([_reference(image_CHW, patch, cell, bins) for image_CHW in images_BCHW.numpy()])
    expected_MK = torch.from_numpy(expected).flatten(2)[mask_BN]
    torch.testing.assert_close(found_MK, expected_MK, rtol=1e-9, atol=1e-9)
    assert found_MK.shape[1] == hog_width((patch, patch), channels=channels, cell=cell, bins=bins)


def test_gradients_across_reflected_borders_are_exactly_nothing() -> None:
    """Not nearly: the bin of such a pixel would hang on rounding."""
    images_BCHW = _images(2, 3, 16, 24).float() * 3.7 + 0.1
    across_BCHW, down_BCHW = sobel(images_BCHW)
    assert across_BCHW[..., [0, -1]].abs().max() == 0
    assert down_BCHW[..., [0, -1], :].abs().max() == 0
    assert across_BCHW[..., 1:-1].abs().min() > 0


def test_an_upright_edge_falls_into_the_middle_bin_whichever_side_is_bright() -> None:
    """Directions half a turn apart are one."""
    ramp_W = torch.arange(8.0)
    for slope in (1, -1):
        images_BCHW = (slope * ramp_W).expand(1, 1, 8, 8)
        (found_K,) = hog(images_BCHW, (8, 8), torch.ones(1, 1, dtype=torch.bool), cell=8, bins=9)
        assert found_K.argmax() == 4
        assert found_K[4].item() == pytest.approx(1)


def test_a_level_edge_falls_into_the_first_bin_whichever_side_is_bright() -> None:
    ramp_H1 = torch.arange(8.0)[:, None]
    for slope in (1, -1):
        images_BCHW = (slope * ramp_H1).expand(1, 1, 8, 8)
        (found_K,) = hog(images_BCHW, (8, 8), torch.ones(1, 1, dtype=torch.bool), cell=8, bins=9)
        assert found_K[0].item() == pytest.approx(1)


def test_contrast_changes_nothing_and_a_flat_patch_is_all_zero() -> None:
    images_BCHW = _images(1, 2, 8, 16)
    mask_BN = torch.ones(1, 2, dtype=torch.bool)
    once, thrice = (hog(factor * images_BCHW + 5, (8, 8), mask_BN, cell=4, bins=9) for factor in (1, 3))
    torch.testing.assert_close(once, thrice)
    flat = hog(torch.ones(1, 2, 8, 16), (8, 8), mask_BN, cell=4, bins=9)
    assert flat.abs().max() == 0


def test_nothing_hidden_gives_nothing() -> None:
    found_MK = hog(_images(1, 1, 8, 8), (4, 4), torch.zeros(1, 4, dtype=torch.bool), cell=4, bins=9)
    assert found_MK.shape == (0, 9)


@pytest.mark.parametrize(("patch", "cell"), [((8, 8), 3), ((8, 12), 8), ((8, 8), 16), ((8, 8), 1)])
def test_cells_that_do_not_fill_a_patch_are_refused(patch: tuple[int, int], cell: int) -> None:
    height, width = patch
    sentence = f"^cells of {cell}x{cell} pixels, of at least 2x2, do not fill patches of {height}x{width} pixels$"
    with pytest.raises(ValueError, match=sentence):
        hog_width(patch, channels=3, cell=cell, bins=9)
