"""CAN: its three losses in numpy, its noise, and the target with and without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from unmask.data.batch import Batch
from unmask.masking import masked_count
from unmask.methods.can import CAN, CANConfig, NoisyViews, level_code
from unmask.objectives.contrastive import ntxent
from unmask.objectives.reconstruction import patchify

Tiny = Callable[..., CAN]
BatchFor = Callable[..., Batch]


def _patches(images: torch.Tensor) -> np.ndarray:
    return patchify(images, (8, 8)).double().numpy()


def _prediction(method: CAN, views: NoisyViews) -> tuple[np.ndarray, torch.Tensor]:
    """The decoder's output for all patches of both views, and their contrasted features."""
    found: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, value: found.append(value))
        for module in (method.projector, method.decoder.head)
    ]
    method.losses(views)
    for hook in hooks:
        hook.remove()
    return found[1].double().numpy(), found[0]


@torch.no_grad()
@pytest.mark.parametrize("clean_target", [True, False])
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_the_losses_are_their_formulas(tiny: Tiny, batch_for: BatchFor, clean_target: bool, norm_pixels: bool) -> None:
    changes = {
        "clean_target": clean_target,
        "norm_pixels": norm_pixels,
        "noise": 2.0,
        "mae_weight": 0.8,
        "noise_weight": 0.4,
        "contrast_weight": 0.1,
        "temperature": 0.3,
    }
    method = tiny(CAN, changes=changes)
    views = method.make_views(batch_for(method))
    assert views.target is not None
    assert views.mask_BN is not None
    prediction, features = _prediction(method, views)
    images = torch.cat([views.online, views.target])
    noise = views.level_T[:, None, None, None] * views.unit_TCHW
    target = _patches(images if clean_target else images + noise)
    if norm_pixels:
        deviation = np.sqrt(target.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
        target = (target - target.mean(axis=-1, keepdims=True)) / deviation
    mask = torch.cat([views.mask_BN, views.target_mask_BN]).numpy()
    reconstruction = ((prediction - target) ** 2).mean(axis=-1)[mask].mean()
    denoising = ((prediction - _patches(noise)) ** 2).mean(axis=-1)[~mask].mean()
    losses = method.losses(views)
    assert losses["reconstruction"].item() == pytest.approx(0.8 * 0.6 * reconstruction, rel=1e-5)
    assert losses["noise"].item() == pytest.approx(0.8 * 0.4 * denoising, rel=1e-5)
    contrast = ntxent(features[:4], features[4:], 0.3)
    assert losses["contrast"].item() == pytest.approx(0.1 * contrast.item(), rel=1e-5)


@torch.no_grad()
def test_the_contrasted_feature_is_the_mean_of_all_tokens_without_the_level(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CAN)
    views = method.make_views(batch_for(method))
    before = method.losses(views)
    for parameter in method.level_embed.parameters():
        parameter.add_(1.0)
    after = method.losses(views)
    assert torch.equal(before["contrast"], after["contrast"])
    assert not torch.equal(before["reconstruction"], after["reconstruction"])


def test_noise_is_drawn_anew_for_each_view_up_to_the_largest_deviation(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CAN, changes={"noise": 0.25})
    views = method.make_views(batch_for(method, 32))
    assert views.level_T.shape == (64,)
    assert len(views.level_T.unique()) == 64
    assert 0 <= views.level_T.min() < 0.03
    assert 0.22 < views.level_T.max() <= 0.25
    assert views.unit_TCHW.std().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(views.unit_TCHW[:32], views.unit_TCHW[32:])


def test_both_views_are_masked_apart(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CAN)
    views = method.make_views(batch_for(method, 8))
    assert views.mask_BN is not None
    assert not torch.equal(views.mask_BN, views.target_mask_BN)
    assert masked_count(method.config.mask, (4, 4)) == 8
    assert torch.equal(torch.cat([views.mask_BN, views.target_mask_BN]).sum(dim=1), torch.full((16,), 8))


@torch.no_grad()
def test_without_noise_both_targets_are_one(tiny: Tiny, batch_for: BatchFor) -> None:
    clean, authors = (tiny(CAN, changes={"noise": 0.0, "clean_target": clean}) for clean in (True, False))
    views = clean.make_views(batch_for(clean))
    assert float(views.level_T.abs().max()) == 0
    first, second = clean.losses(views), authors.losses(views)
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_hidden_patches_and_their_noise_reach_the_loss_and_not_the_encoder(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CAN)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    mask = torch.cat([views.mask_BN, views.target_mask_BN])
    hidden_T1HW = mask.view(8, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(views, unit_TCHW=torch.where(hidden_T1HW, 5.0, views.unit_TCHW))
    first, second = method.losses(views), method.losses(changed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    noisy = tiny(CAN, changes={"clean_target": False})
    first, second = noisy.losses(views), noisy.losses(changed)
    assert not torch.equal(first["reconstruction"], second["reconstruction"])
    assert torch.equal(first["noise"], second["noise"])


@torch.no_grad()
@pytest.mark.parametrize("norm_pixels", [True, False])
def test_pictures_show_visible_patches_as_they_are(tiny: Tiny, batch_for: BatchFor, norm_pixels: bool) -> None:
    method = tiny(CAN, changes={"norm_pixels": norm_pixels}).eval()
    views = method.make_views(batch_for(method))
    shown = method.inspect(views).reconstruction_BCHW
    assert shown is not None
    assert views.mask_BN is not None
    patches, own = patchify(shown, (8, 8)), patchify(views.online, (8, 8))
    torch.testing.assert_close(patches[~views.mask_BN], own[~views.mask_BN], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(patches[views.mask_BN], own[views.mask_BN], rtol=1e-2, atol=1e-2)


def test_the_level_is_coded_by_sines_then_cosines() -> None:
    levels = np.array([0.0, 0.05, 3.0])
    frequencies = np.exp(-np.log(10000) * np.arange(4) / 3)
    expected = np.concatenate([np.sin(levels[:, None] * frequencies), np.cos(levels[:, None] * frequencies)], axis=1)
    np.testing.assert_allclose(level_code(torch.from_numpy(levels), 8).numpy(), expected, rtol=1e-12)


def test_defaults_are_the_papers_and_the_authors() -> None:
    config = CANConfig()
    assert (config.mask.ratio, config.clean_target) == (0.5, True)
    assert (config.contrast_weight, config.mae_weight, config.noise_weight, config.noise) == (0.03, 0.97, 0.3, 0.1)
    assert config.optimizer.peak(512) == pytest.approx(5e-4)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0\.0$"):
        CANConfig(temperature=0.0)
    with pytest.raises(ValueError, match=r"^noise must be 0 or more, got -0\.1$"):
        CANConfig(noise=-0.1)
    for width in (2, 5):
        with pytest.raises(ValueError, match=rf"^level width must be even and at least 4, got {width}$"):
            CANConfig(level_width=width)
