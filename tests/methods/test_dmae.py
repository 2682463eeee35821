"""DMAE's noise, and a loss that looks everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from unmask.data.batch import Batch
from unmask.methods.dmae import DMAE, DMAEConfig
from unmask.methods.mae import MAE
from unmask.objectives.reconstruction import patchify

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


def test_noise_is_normal_with_sigma_in_units_of_the_unnormalised_image(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(DMAE, changes={"sigma": 0.25, "std": (0.1, 0.2, 0.4)})
    views = method.make_views(batch_for(method, 16))
    noise_BCHW = (views.online - views.clean) * torch.tensor([0.1, 0.2, 0.4])[:, None, None]
    for channel in noise_BCHW.unbind(dim=1):
        assert channel.mean().abs() < 0.01
        assert channel.std().item() == pytest.approx(0.25, rel=0.03)
        assert (channel.abs() < 0.25).float().mean().item() == pytest.approx(0.683, abs=0.02)
    flat_BK = noise_BCHW.flatten(1)
    assert torch.corrcoef(flat_BK).fill_diagonal_(0).abs().max() < 0.1


def test_the_clean_picture_is_maes(tiny: Tiny, batch_for: BatchFor) -> None:
    method, mae = tiny(DMAE), tiny(MAE)
    batch = batch_for(method)
    views, plain = method.make_views(batch), mae.make_views(batch)
    assert torch.equal(views.clean, plain.online)
    assert torch.equal(views.mask_BN, plain.mask_BN)
    silent = tiny(DMAE, changes={"sigma": 0.0}).make_views(batch)
    assert torch.equal(silent.online, silent.clean)


@torch.no_grad()
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_the_loss_is_the_mean_over_all_patches_of_the_clean_picture(
    tiny: Tiny, batch_for: BatchFor, norm_pixels: bool
) -> None:
    method = tiny(DMAE, changes={"norm_pixels": norm_pixels})
    views = method.make_views(batch_for(method))
    prediction_BNK = method.predict(views).double().numpy()
    errors = []
    for sample, patch in np.ndindex(4, 16):
        values = patchify(views.clean, (8, 8))[sample, patch].double().numpy()
        if norm_pixels:
            values = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
        errors.append(np.mean((prediction_BNK[sample, patch] - values) ** 2))
    assert method.losses(views)["reconstruction"].item() == pytest.approx(np.mean(errors), rel=1e-5)


@torch.no_grad()
def test_the_encoder_sees_the_visible_noisy_patches_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(DMAE)
    views = method.make_views(batch_for(method))
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.randn(views.online.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        method.predict(views), method.predict(replace(views, online=torch.where(hidden_B1HW, other, views.online)))
    )
    assert torch.equal(method.predict(views), method.predict(replace(views, clean=other)))


@torch.no_grad()
def test_pictures_take_their_level_from_the_clean_picture(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(DMAE).eval()
    torch.nn.init.zeros_(method.decoder.head.weight)
    views = method.make_views(batch_for(method))
    painted = method.inspect(views).reconstruction_BCHW
    assert painted is not None
    means = patchify(views.clean, (8, 8)).mean(dim=-1, keepdim=True)
    torch.testing.assert_close(patchify(painted, (8, 8)), means.expand(-1, -1, 192))


def test_negative_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sigma must be 0 or more, got -0.1$"):
        DMAEConfig(sigma=-0.1)
