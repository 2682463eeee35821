"""SimMIM against its authors' formula in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from unmask.data.batch import Batch
from unmask.masking import MaskConfig, masked_count
from unmask.methods.simmim import SimMIM, SimMIMConfig

Tiny = Callable[..., SimMIM]
BatchFor = Callable[..., Batch]


def test_the_default_mask_hides_120_of_196_patches() -> None:
    assert masked_count(SimMIMConfig().mask, (14, 14)) == 120


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["random", "blockwise"])
def test_the_loss_is_the_authors_masked_l1(tiny: Tiny, batch_for: BatchFor, channels: int, kind: str) -> None:
    """sum(|x - x_rec| mask) / (sum(mask) + 1e-5) / channels, with the mask in pixels; counts may differ."""
    mask = MaskConfig(kind="blockwise", ratio=0.4, min_block_patches=16) if kind == "blockwise" else MaskConfig(unit=2)
    method = tiny(SimMIM, channels=channels, patch=4, changes={"mask": mask})
    views = method.make_views(batch_for(method, 8))
    assert views.mask_BN is not None
    assert (views.mask_BN.sum(dim=1).unique().numel() > 1) == (kind == "blockwise")
    reconstruction = method.inspect(views).reconstruction_BCHW
    assert reconstruction is not None
    pixels = views.mask_BN.reshape(8, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3).double().numpy()
    error = np.abs(views.online.double().numpy() - reconstruction.double().numpy())
    expected = (error * pixels).sum() / (pixels.sum() + 1e-5) / channels
    assert method.losses(views)["reconstruction"].item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_hidden_patches_are_seen_by_the_loss_and_not_by_the_encoder(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SimMIM)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(views, online=torch.where(hidden_B1HW, 2.0, views.online))
    before, after = method.inspect(views).reconstruction_BCHW, method.inspect(changed).reconstruction_BCHW
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert not torch.equal(method.losses(views)["reconstruction"], method.losses(changed)["reconstruction"])


@torch.no_grad()
def test_visible_patches_are_not_judged(tiny: Tiny, batch_for: BatchFor) -> None:
    """The error at visible patches would show in the loss if it were."""
    method = tiny(SimMIM)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    shapes: list[torch.Size] = []
    method.decoder.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    method.losses(views)
    assert shapes == [torch.Size([int(views.mask_BN.sum()), 48])]


def test_defaults_are_the_authors() -> None:
    config = SimMIMConfig()
    assert (config.encoder.position, config.encoder.layer_scale, config.encoder.drop_path) == ("relative", 0.1, 0.1)
    assert (config.optimizer.clip, config.optimizer.decay, config.optimizer.step_at) == (5.0, "step", 700 / 800)
    assert config.optimizer.peak(2048) == pytest.approx(4e-4)
