"""MaskFeat's targets and head; the histograms themselves are tested beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unmask.data.batch import Batch
from unmask.masking import sample_mask
from unmask.methods.maskfeat import MaskFeat, MaskFeatConfig
from unmask.objectives.hog import hog

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


def test_the_authors_hide_at_most_78_of_196_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    mask_BN = sample_mask(MaskFeatConfig().mask, 32, (14, 14), generator=generator, device="cpu")
    assert mask_BN.sum(dim=1).max() == 78


@torch.no_grad()
def test_the_loss_is_the_mean_squared_error_of_hidden_patches(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MaskFeat, changes={"cell": 4, "bins": 6})
    views = method.make_views(batch_for(method))
    prediction_BNK = method.head(method.norm(method.encoder(views.online, replace_BN=views.mask_BN)[:, 1:]))
    everywhere_BN = torch.ones_like(views.mask_BN)
    target_BNK = hog(views.online, (8, 8), everywhere_BN, cell=4, bins=6).view_as(prediction_BNK)
    assert target_BNK.shape[-1] == 3 * 6 * 2 * 2
    expected = (prediction_BNK - target_BNK)[views.mask_BN].pow(2).mean()
    assert method.losses(views)["features"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_encoder_ends_without_a_norm_and_the_head_sees_hidden_patches_alone(
    tiny: Tiny, batch_for: BatchFor
) -> None:
    method = tiny(MaskFeat)
    assert isinstance(method.encoder.vit.norm, nn.Identity)
    views = method.make_views(batch_for(method))
    shapes: list[torch.Size] = []
    method.head.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    method.losses(views)
    assert shapes == [torch.Size([int(views.mask_BN.sum()), 48])]


@pytest.mark.parametrize(("patch", "cell"), [(16, 8), (8, 8), (4, 4), (14, 14)])
def test_cells_follow_the_patch_where_nothing_is_said(tiny: Tiny, patch: int, cell: int) -> None:
    method = tiny(MaskFeat, patch=patch, height=2 * patch, width=2 * patch)
    assert method.cell == cell
    assert method.head.out_features == 3 * 9 * (patch // cell) ** 2


def test_cells_and_bins_that_cannot_be_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"^cells of 3x3 pixels, of at least 2x2, do not fill patches of 8x8 pixels$"):
        tiny(MaskFeat, changes={"cell": 3})
    with pytest.raises(ValueError, match=r"^bins must be at least 2, got 1$"):
        MaskFeatConfig(bins=1)
