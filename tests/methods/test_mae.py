"""MAE against its own sentence in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from unmask.data.batch import Batch
from unmask.masking import masked_count
from unmask.methods.mae import MAE, MAEConfig
from unmask.objectives.reconstruction import patchify

Tiny = Callable[..., MAE]
BatchFor = Callable[..., Batch]


def test_the_default_mask_hides_147_of_196_patches() -> None:
    assert masked_count(MAEConfig().mask, (14, 14)) == 147


@torch.no_grad()
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_the_loss_is_the_mean_squared_error_of_hidden_patches(
    tiny: Tiny, batch_for: BatchFor, norm_pixels: bool
) -> None:
    method = tiny(MAE, changes={"norm_pixels": norm_pixels})
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    prediction = method.decoder.predict(
        method.decoder(method.encoder(views.online, drop_BN=views.mask_BN), views.mask_BN)
    ).numpy()
    errors = []
    for sample, row, column in np.ndindex(4, 4, 4):
        if views.mask_BN[sample, 4 * row + column]:
            patch = views.online.numpy()[sample, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            values = patch.transpose(1, 2, 0).reshape(-1).astype(np.float64)
            if norm_pixels:
                values = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            errors.append(np.mean((prediction[sample, 4 * row + column] - values) ** 2))
    assert len(errors) == 4 * 12
    assert method.losses(views)["reconstruction"].item() == pytest.approx(np.mean(errors), rel=1e-5)


@torch.no_grad()
def test_hidden_patches_are_seen_by_the_loss_and_not_by_the_encoder(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MAE)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.randn(views.online.shape, generator=torch.Generator().manual_seed(0))
    changed = replace(views, online=torch.where(hidden_B1HW, noise, views.online))
    assert torch.equal(
        method.encoder(views.online, drop_BN=views.mask_BN), method.encoder(changed.online, drop_BN=views.mask_BN)
    )
    assert not torch.equal(method.losses(views)["reconstruction"], method.losses(changed)["reconstruction"])


def test_the_head_learns_from_hidden_patches_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MAE)
    views = method.make_views(batch_for(method))
    shapes: list[torch.Size] = []
    method.decoder.head.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    method.losses(views)
    assert shapes == [torch.Size([4 * 12, 32])]


@torch.no_grad()
def test_a_perfect_prediction_paints_the_image_itself(tiny: Tiny, batch_for: BatchFor) -> None:
    """With the head's weights at zero, its bias is painted: the mean patch in units of the true patch."""
    method = tiny(MAE).eval()
    views = method.make_views(batch_for(method))
    torch.nn.init.zeros_(method.decoder.head.weight)
    painted = method.inspect(views).reconstruction_BCHW
    assert painted is not None
    means = patchify(views.online, (8, 8)).mean(dim=-1)
    torch.testing.assert_close(patchify(painted, (8, 8)), means[..., None].expand(-1, -1, 192))
    plain = tiny(MAE, changes={"norm_pixels": False}).eval()
    torch.nn.init.zeros_(plain.decoder.head.weight)
    torch.nn.init.constant_(plain.decoder.head.bias, 0.5)
    painted = plain.inspect(views).reconstruction_BCHW
    assert painted is not None
    torch.testing.assert_close(painted, torch.full_like(painted, 0.5))
