"""CAE: what its regressor, alignment and decoder look at (golden cases prove the arithmetic)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unmask.data.batch import Batch
from unmask.masking import MaskConfig
from unmask.methods.cae import CAE, CAEConfig
from unmask.models.regressor import RegressorConfig

Tiny = Callable[..., CAE]
BatchFor = Callable[..., Batch]


def test_losses_are_weighted(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CAE, changes={"token_weight": 1.0, "align_weight": 1.0})
    views = method.make_views(batch_for(method))
    plain = method.losses(views)
    method.config = replace(method.config, token_weight=0.5, align_weight=3.0)
    weighted = method.losses(views)
    torch.testing.assert_close(weighted["tokens"], 0.5 * plain["tokens"])
    torch.testing.assert_close(weighted["alignment"], 3 * plain["alignment"])
    assert CAEConfig().align_weight == 2.0


def test_latents_to_align_with_are_the_encoders_of_the_hidden_patches_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CAE)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    predicted_BMD, target_BMD = method.latents(views)
    assert predicted_BMD.requires_grad
    assert not target_BMD.requires_grad
    torch.testing.assert_close(target_BMD, method.encoder(views.online, drop_BN=~views.mask_BN)[:, 1:])
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = method.latents(replace(views, online=torch.where(hidden_B1HW, 1.0, views.online)))
    assert torch.equal(other[0], predicted_BMD)
    assert not torch.equal(other[1], target_BMD)
    other = method.latents(replace(views, online=torch.where(hidden_B1HW, views.online, 1.0)))
    assert not torch.equal(other[0], predicted_BMD)
    assert torch.equal(other[1], target_BMD)


def test_the_codes_are_told_through_the_latents_to_the_encoder(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(CAE)
    method.losses(method.make_views(batch_for(method)))["tokens"].backward()
    assert method.encoder.vit.patch_embed.proj.weight.grad.abs().max() > 0
    assert method.regressor.mask_token.grad is not None
    assert method.regressor.mask_token.grad.abs().max() > 0


def test_a_regressor_of_another_width_has_a_bridge_that_both_sides_pass(tiny: Tiny, batch_for: BatchFor) -> None:
    config = RegressorConfig(width=24, regressor_heads=2, decoder_heads=4, regressor_depth=1, decoder_depth=1)
    method = tiny(CAE, changes={"regressor": config})
    views = method.make_views(batch_for(method))
    predicted_BMD, target_BMD = method.latents(views)
    assert predicted_BMD.shape == target_BMD.shape == (4, 8, 24)
    assert views.mask_BN is not None
    latents = method.encoder(views.online, drop_BN=~views.mask_BN)[:, 1:]
    torch.testing.assert_close(target_BMD, method.bridge(latents).detach())
    assert len(tiny(CAE).bridge) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"mask": MaskConfig(kind="blockwise", ratio=0.5)},
            "CAE drops patches, so every image must hide equally many: set the mask's exact",
        ),
        ({"align_weight": -1.0}, "align_weight must be 0 or more, got -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        CAEConfig(**changes)


def test_the_class_token_is_decayed_as_theirs(tiny: Tiny) -> None:
    method = tiny(CAE)
    for name in ("encoder.vit.cls_token", "regressor.mask_token"):
        assert method.rule(name, method.get_parameter(name)).decay
    name = "regressor.blocks.0.gamma_1"
    assert not method.rule(name, method.get_parameter(name)).decay
