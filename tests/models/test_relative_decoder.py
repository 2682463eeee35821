"""Relative positions as geometry, batch norm over tokens, and what the relative predictor sees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.models.decoder import DecoderConfig
from unmask.models.relative_decoder import RelativePredictor, TokenBatchNorm, TokenProjector, relative_embedding

GRID = (3, 4)


def _code(values: list[float], width: int) -> np.ndarray:
    """Sines then cosines of each value, one quarter of the width of frequencies each."""
    quarter = width // 4
    frequencies = np.array([10000 ** (-k / quarter) for k in range(quarter)])
    return np.concatenate(
        [part for value in values for part in (np.sin(value * frequencies), np.cos(value * frequencies))]
    )


@settings(max_examples=25, deadline=None)
@given(
    down=st.floats(-2, 2),
    right=st.floats(-2, 2),
    high=st.floats(0.2, 5),
    wide=st.floats(0.2, 5),
    mirrored=st.booleans(),
    mirrored_right=st.floats(-2, 3),
)
def test_every_patch_has_the_authors_code(
    down: float, right: float, high: float, wide: float, mirrored: bool, mirrored_right: float
) -> None:
    relative = torch.tensor([[down, right, high, wide, float(mirrored), mirrored_right]], dtype=torch.float64)
    found = relative_embedding(relative, GRID, 8)[0]
    assert found.shape == (12, 16)
    for patch in range(12):
        row, column = divmod(patch, GRID[1])
        y = high * (row + 0.5) + down * GRID[0] - 0.5
        x = wide * (column + 0.5) + right * GRID[1] - 0.5
        if mirrored:
            x = -wide * (column + 0.5) + mirrored_right * GRID[1] - 0.5
        expected = _code([y, x, 10 * math.log(high), 10 * math.log(wide)], 8)
        np.testing.assert_allclose(found[patch].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_same_crop_has_its_own_rows_and_columns_and_its_mirror_image_the_columns_reversed() -> None:
    same = relative_embedding(torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 1.0]]).double(), GRID, 8)
    mirrored = relative_embedding(torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]).double(), GRID, 8)
    rows = torch.from_numpy(np.stack([_code([patch // 4, patch % 4, 0, 0], 8) for patch in range(12)]))
    torch.testing.assert_close(same[0], rows)
    torch.testing.assert_close(mirrored[0].unflatten(0, GRID), rows.unflatten(0, GRID).flip(1))


def test_a_width_that_has_no_quarters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^relative positions need a width divisible by 4, got 6$"):
        relative_embedding(torch.ones(1, 6), GRID, 6)


def test_batch_norm_takes_its_statistics_over_all_tokens_of_all_samples() -> None:
    tokens = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    norm = TokenBatchNorm(4).double()
    rows = tokens.reshape(15, 4).numpy()
    expected = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
    np.testing.assert_allclose(norm(tokens).detach().reshape(15, 4).numpy(), expected, rtol=1e-10)
    assert norm.bn.running_mean is not None
    np.testing.assert_allclose(norm.bn.running_mean.numpy(), 0.1 * rows.mean(axis=0), rtol=1e-6)


def _predictor(*, batch_norm: bool) -> RelativePredictor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = DecoderConfig(width=16, depth=2, heads=2)
        return RelativePredictor(config, grid=GRID, prefix=1, batch_norm=batch_norm).double()


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask_BN = torch.zeros(2, 12, dtype=torch.bool)
    mask_BN[0, 4:] = True
    mask_BN[1, :8] = True
    visible = torch.randn(2, 5, 16, dtype=torch.float64, generator=generator)
    relative = torch.tensor([[0.1, 0.2, 0.9, 1.1, 0.0, 0.7], [-0.3, 0.0, 1.5, 0.6, 1.0, 1.2]], dtype=torch.float64)
    return visible, mask_BN, relative


@torch.no_grad()
def test_the_prediction_depends_on_tokens_places_and_the_other_crops_place() -> None:
    predictor = _predictor(batch_norm=False)
    visible, mask_BN, relative = _inputs()
    prediction = predictor(visible, mask_BN, relative)
    assert prediction.shape == (2, 12, 16)
    for changed in (
        (visible * 1.1, mask_BN, relative),
        (visible, mask_BN.flip(1), relative),
        (visible, mask_BN, relative.flip(0)),
    ):
        assert not torch.allclose(predictor(*changed), prediction)
    # With layer norm no image knows of another.
    alone = predictor(visible[:1], mask_BN[:1], relative[:1])
    torch.testing.assert_close(alone, prediction[:1])


@torch.no_grad()
def test_with_batch_norm_images_share_statistics() -> None:
    predictor = _predictor(batch_norm=True)
    visible, mask_BN, relative = _inputs()
    together = predictor(visible, mask_BN, relative)
    assert not torch.allclose(predictor(visible[:1], mask_BN[:1], relative[:1]), together[:1])


def test_a_projector_without_blocks_is_linear() -> None:
    projector = TokenProjector(DecoderConfig(width=16, depth=2, heads=2), encoder_width=6, depth=0, batch_norm=True)
    tokens = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(projector(tokens), tokens @ projector.embed.weight.T + projector.embed.bias)
