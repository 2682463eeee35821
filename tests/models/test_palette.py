"""Palettes: nearest colours, k-means, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.models.palette import kmeans_palette, nearest_colours, read_palette, spread_palette


@settings(max_examples=20, deadline=None)
@given(colours=st.integers(1, 30), channels=st.integers(1, 4), seed=st.integers(0, 100))
def test_the_nearest_colour_is_the_nearest(colours: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    palette = torch.rand(colours, channels, dtype=torch.float64, generator=generator)
    pixels = torch.rand(50, channels, dtype=torch.float64, generator=generator)
    expected = [min(range(colours), key=lambda v: float((pixel - palette[v]).norm())) for pixel in pixels]
    assert nearest_colours(pixels, palette).tolist() == expected


@pytest.mark.parametrize(("colours", "channels"), [(2, 1), (512, 3), (20, 8)])
def test_a_palette_without_data_is_spread_over_all_colours_and_always_the_same(colours: int, channels: int) -> None:
    palette = spread_palette(colours, channels)
    assert palette.shape == (colours, channels)
    assert palette.unique(dim=0).shape == palette.shape
    assert (palette >= 0).all()
    assert (palette <= 1).all()
    assert torch.equal(palette, spread_palette(colours, channels))


def test_kmeans_finds_clear_clusters_and_ends_at_their_means() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.1, 0.9, 0.9]])
    colours = (centres.repeat(40, 1) + 0.02 * torch.randn(120, 3, generator=generator)).clamp(0, 1)
    palette = kmeans_palette(colours, 3, torch.Generator().manual_seed(1))
    ids = nearest_colours(colours, palette)
    for colour in range(3):
        torch.testing.assert_close(palette[colour], colours[ids == colour].mean(dim=0))
    if palette.unique(dim=0).shape[0] == 3:
        spread = kmeans_palette(colours, 12, torch.Generator().manual_seed(1))
        error = (colours - spread[nearest_colours(colours, spread)]).square().mean()
        assert error < (colours - palette[ids]).square().mean()


def test_kmeans_with_fewer_pixels_than_colours_keeps_them_all() -> None:
    pixels = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    palette = kmeans_palette(pixels, 40, torch.Generator().manual_seed(0))
    assert palette.shape == (40, 3)
    assert torch.isfinite(palette).all()
    torch.testing.assert_close(palette[nearest_colours(pixels, palette)], pixels)


def test_a_palette_file_holds_colours_from_minus_one_to_one(tmp_path: Path) -> None:
    file = tmp_path / "centres.npy"
    np.save(file, np.array([[-1.0, 0.0, 1.0], [0.5, -0.5, 0.0]]))
    torch.testing.assert_close(read_palette(file), torch.tensor([[0.0, 0.5, 1.0], [0.75, 0.25, 0.5]]))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros(3), r"holds no table of colours, one a row"),
        (np.zeros((2, 3), dtype=np.int64), r"holds no table of colours, one a row"),
        (np.array([[0.0, 1.1]]), r"holds colours outside \[-1, 1\]"),
        (np.array([[0.0, np.nan]]), r"holds colours outside \[-1, 1\]"),
        (None, r"is not a readable .npy file"),
    ],
)
def test_files_that_hold_no_palette_are_refused(values: np.ndarray | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "centres.npy"
    if values is None:
        file.write_text("no palette")
    else:
        np.save(file, values)
    with pytest.raises(ValueError, match=rf"^\S+centres.npy {sentence}$"):
        read_palette(file)
    with pytest.raises(ValueError, match=r"^\S+none.npy is not a readable .npy file$"):
        read_palette(tmp_path / "none.npy")


@pytest.mark.parametrize(
    "damage", [b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\x00v\x00" + b"(" * 118, b"\x93NUMPY\x09\x00"]
)
def test_whatever_numpy_says_of_a_damaged_file_is_one_sentence(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "centres.npy").write_bytes(damage)
    with pytest.raises(ValueError, match=r"centres\.npy is not a readable \.npy file$"):
        read_palette(tmp_path / "centres.npy")
