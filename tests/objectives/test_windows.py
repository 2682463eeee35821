"""Window statistics against loops over every pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unmask.objectives.windows import window_statistics


@pytest.mark.parametrize("window", [2, 3, 5, 8, 20])
@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_the_window_around_each_pixel(window: int, channels: int) -> None:
    images = torch.randn(2, channels, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, deviation = window_statistics(images, window)
    assert mean.shape == deviation.shape == (2, 1, 9, 11)
    for sample, row, column in np.ndindex(2, 9, 11):
        top, left = row - window // 2, column - window // 2
        values = images[sample, :, max(0, top) : top + window, max(0, left) : left + window].numpy()
        assert mean[sample, 0, row, column].item() == pytest.approx(values.mean(), abs=1e-12)
        assert deviation[sample, 0, row, column].item() == pytest.approx(np.sqrt(values.var() + 1e-6), rel=1e-9)


def test_a_plain_image_stays_finite() -> None:
    images = torch.full((1, 3, 8, 8), 1.7)
    mean, deviation = window_statistics(images, 8)
    torch.testing.assert_close(mean, torch.full((1, 1, 8, 8), 1.7))
    assert ((images - mean) / deviation).abs().max() < 0.01
