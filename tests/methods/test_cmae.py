"""CMAE: what its authors' code does, in numbers of the default configuration and on tiny networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch
from unmask.masking import masked_count, sample_mask
from unmask.methods.cmae import CMAE, CMAEConfig
from unmask.methods.mae import MAE
from unmask.models.batch_norm import RankBatchNorm
from unmask.views import Views

Tiny = Callable[..., CMAE]
BatchFor = Callable[..., Batch]


def test_the_default_mask_leaves_68_of_196_patches() -> None:
    mask_BN = sample_mask(CMAEConfig().mask, 5, (14, 14), generator=torch.Generator().manual_seed(0), device="cpu")
    assert (~mask_BN).sum(dim=1).tolist() == [68] * 5
    assert masked_count(CMAEConfig().mask, (14, 14)) == 196 - 68


def test_defaults_are_the_authors() -> None:
    config = CMAEConfig()
    assert (config.temperature, config.two_tau, config.contrast_weight) == (0.07, True, 1.0)
    assert (config.pixel_decoder.depth, config.feature_decoder.depth) == (8, 2)
    assert config.pixel_decoder.width == config.feature_decoder.width == 512
    for head in (config.projector, config.predictor):
        assert (head.layers, head.hidden, head.out, head.norm_eps) == (2, 1536, 256, 1e-6)
        assert (head.hidden_bias, head.last_norm, head.synchronised) == (True, False, True)
    assert {config.momentum.at(progress) for progress in (0, 0.3, 1)} == {0.996}


def test_the_master_crop_of_224_pixels_has_256(tiny: Tiny) -> None:
    method = tiny(CMAE, height=224, width=224, patch=16)
    (crop,) = method.crops
    assert method.config.max_shift == 31
    assert (crop.height, crop.width) == (256, 256)


def test_the_shift_scales_with_the_images() -> None:
    assert CMAEConfig().for_images(224, 224).max_shift == 31
    assert CMAEConfig().for_images(112, 224).max_shift == round(31 / 2)
    assert CMAEConfig().for_images(32, 32).max_shift == 4
    assert CMAEConfig(max_shift=0).for_images(96, 96).max_shift == 0


def test_without_shift_the_master_is_no_larger_than_the_view(tiny: Tiny) -> None:
    (crop,) = tiny(CMAE, changes={"max_shift": 0}).crops
    assert (crop.height, crop.width) == (32, 32)


def test_the_target_is_shifted_by_0_to_31_pixels_down_and_right_and_the_online_view_by_none(tiny: Tiny) -> None:
    changes = {"max_shift": 31, "colour": ColourConfig(), "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    method = tiny(CMAE, changes=changes)
    (crop,) = method.crops
    assert (crop.height, crop.width) == (64, 64)
    # Pixels that tell their own row and column.
    rows = torch.arange(64, dtype=torch.uint8)
    master = torch.stack([rows[:, None].expand(64, 64), rows[None].expand(64, 64), torch.zeros(64, 64).byte()])
    views = method.make_views(Batch.of(master.expand(400, -1, -1, -1), seed=0))
    assert views.target is not None
    flipped_B = views.online[:, 1, 0, 0].round() == 63
    assert views.online[:, 0, 0, 0].abs().max() < 1e-3
    assert torch.equal(flipped_B, views.online[:, 1, 0, 0].round() != 0)
    down_B = views.target[:, 0, 0, 0].round()
    column_B = views.target[:, 1, 0, 0].round()
    right_B = torch.where(flipped_B, 63 - column_B, column_B)
    for shift_B in (down_B, right_B):
        assert shift_B.unique().tolist() == list(range(32))
    assert np.corrcoef(down_B, right_B)[0, 1] == pytest.approx(0, abs=0.15)
    # The whole window moves, not only its corner.
    span_B = views.target[:, 0, -1, 0].round() - down_B
    assert (span_B == 31).all()


@pytest.mark.parametrize(("two_tau", "factor"), [(True, 0.14), (False, 1.0)])
def test_the_contrast_at_uniform_logits(tiny: Tiny, batch_for: BatchFor, two_tau: bool, factor: float) -> None:
    method = tiny(CMAE, changes={"two_tau": two_tau})
    nn.init.zeros_(method.predictor.layers[-1].weight)  # type: ignore[arg-type]
    contrast = method(batch_for(method, 6))["contrast"]
    assert contrast.item() == pytest.approx(factor * math.log(6), rel=1e-6)


def test_the_contrast_is_weighted(tiny: Tiny, batch_for: BatchFor) -> None:
    method, other = tiny(CMAE), tiny(CMAE, changes={"contrast_weight": 3.0})
    losses, weighted = method(batch_for(method)), other(batch_for(method))
    torch.testing.assert_close(weighted["contrast"], 3 * losses["contrast"])
    assert torch.equal(weighted["reconstruction"], losses["reconstruction"])


def test_the_target_encoder_has_no_final_norm_unless_asked(tiny: Tiny) -> None:
    method = tiny(CMAE)
    assert isinstance(method.target_encoder.vit.norm, nn.Identity)
    assert isinstance(method.encoder.vit.norm, nn.LayerNorm)
    method = tiny(CMAE, changes={"target_norm": True})
    nn.init.constant_(method.encoder.vit.norm.weight, 3.0)
    method.update_target(0.5)
    torch.testing.assert_close(method.target_encoder.vit.norm.weight.data, torch.full((48,), 0.996 + 0.004 * 3))


def test_the_contrast_is_the_mean_of_all_decoded_positions_against_the_mean_target_feature(
    tiny: Tiny, batch_for: BatchFor
) -> None:
    """Restated: predict at every position, average, project, predict; target: mean of patch tokens, project."""
    method = tiny(CMAE).double()
    drawn = method.make_views(batch_for(method))
    assert drawn.target is not None
    assert drawn.mask_BN is not None
    views = Views(online=drawn.online.double(), target=drawn.target.double(), mask_BN=drawn.mask_BN)
    visible = method.encoder(views.online, drop_BN=drawn.mask_BN)
    assert visible.shape == (4, 1 + 4, 48)
    features = method.feature_decoder.predict(method.feature_decoder(visible, drawn.mask_BN))
    assert features.shape == (4, 16, 48)
    online = F.normalize(method.predictor(method.projector(features.mean(dim=1))), dim=-1)
    target = F.normalize(method.target_projector(method.target_encoder(views.target)[:, 1:].mean(dim=1)), dim=-1)
    expected = 0.14 * F.cross_entropy(online @ target.T / 0.07, torch.arange(4))
    torch.testing.assert_close(method.losses(views)["contrast"], expected, rtol=1e-10, atol=1e-12)


def test_predicting_after_the_mean_is_the_mean_of_predictions(tiny: Tiny, batch_for: BatchFor) -> None:
    decoder = tiny(CMAE).double().feature_decoder
    mask_BN = torch.arange(16).expand(3, 16) < 8
    decoded_BND = decoder(torch.randn(3, 9, 48, dtype=torch.float64), mask_BN)
    torch.testing.assert_close(
        decoder.predict(decoded_BND.mean(dim=1)), decoder.predict(decoded_BND).mean(dim=1), rtol=1e-12, atol=1e-12
    )


def test_its_reconstruction_is_maes(tiny: Callable[..., Any], batch_for: BatchFor) -> None:
    method = tiny(CMAE)
    views = method.make_views(batch_for(method))
    mae: MAE = tiny(MAE)
    mae.encoder.load_state_dict(method.encoder.state_dict())
    mae.decoder.load_state_dict(method.pixel_decoder.state_dict())
    assert torch.equal(mae.losses(views)["reconstruction"], method.losses(views)["reconstruction"])
    plain = tiny(CMAE, changes={"norm_pixels": False})
    assert not torch.equal(plain.losses(views)["reconstruction"], method.losses(views)["reconstruction"])


def test_no_gradient_flows_to_the_targets_view(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CMAE)
    drawn = method.make_views(batch_for(method))
    assert drawn.target is not None
    views = replace(drawn, target=drawn.target.requires_grad_())
    method.losses(views)["contrast"].backward()
    assert views.target is not None
    assert views.target.grad is None


def test_both_networks_keep_their_own_batch_statistics(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CMAE)
    assert method.target_projector.training
    method(batch_for(method))
    method.update_target(0.5)
    online, target = method.projector.layers[1], method.target_projector.layers[1]
    assert isinstance(online, RankBatchNorm)
    assert isinstance(target, RankBatchNorm)
    assert online.running_mean is not None
    assert target.running_mean is not None
    assert online.running_mean.abs().sum() > 0
    assert not torch.equal(online.running_mean, target.running_mean)


def test_without_a_target_view_the_online_view_is_the_target(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CMAE)
    views = replace(method.make_views(batch_for(method)), target=None)
    own = replace(views, target=views.online)
    assert torch.equal(method.losses(views)["contrast"], method.losses(own)["contrast"])


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0\.0$"):
        CMAEConfig(temperature=0.0)
    with pytest.raises(ValueError, match=r"^max_shift must be 0 or more, got -1$"):
        CMAEConfig(max_shift=-1)
