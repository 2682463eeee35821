"""iBOT: masks of their own for each crop, prototypes shared or not; the numbers themselves are in the golden cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unmask.data.batch import Batch
from unmask.masking import VaryingMaskConfig
from unmask.methods.ibot import IBOT, IBOTConfig, IBOTViews
from unmask.models.prototypes import PrototypeHeadConfig
from unmask.schedule import Schedule

Tiny = Callable[..., IBOT]
BatchFor = Callable[..., Batch]
HEAD = PrototypeHeadConfig(hidden=64, bottleneck=32, out=16)
PLAIN: dict[str, Any] = {
    "head": HEAD,
    "target_temperature": Schedule(start=0.05),
    "patch_target_temperature": Schedule(start=0.08),
}


def test_defaults_are_the_readmes() -> None:
    config = IBOTConfig()
    assert (config.head.out, config.patch_out, config.share_target) == (8192, None, False)
    assert (config.mask.kind, config.mask.ratios, config.mask.spreads) == ("blockwise", (0.0, 0.3), (0.0, 0.2))
    assert (config.local_crops, config.crop_scale, config.local_crop_scale) == (10, (0.25, 1.0), (0.05, 0.25))
    assert (config.weight, config.patch_weight) == (1.0, 1.0)
    assert (config.patch_target_temperature.at(0), config.patch_target_temperature.at(30 / 800)) == (0.04, 0.07)


def test_both_large_crops_have_masks_of_their_own(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(IBOT, patch=4)
    views = method.make_views(batch_for(method, 32))
    assert views.mask_BN is not None
    assert views.target_mask_BN is not None
    assert views.mask_BN.shape == views.target_mask_BN.shape == (32, 64)
    assert not torch.equal(views.mask_BN, views.target_mask_BN)
    counts = torch.cat([views.mask_BN, views.target_mask_BN]).sum(dim=1)
    assert 0.3 < (counts == 0).float().mean() < 0.7
    assert counts.max() <= 32


@torch.no_grad()
def _losses_by_hand(method: IBOT, views: IBOTViews) -> tuple[float, float]:
    """Crop by crop and patch by patch, with the head on every token, as the authors do."""
    assert views.target is not None
    assert views.mask_BN is not None
    assert views.target_mask_BN is not None
    masks = (views.mask_BN, views.target_mask_BN)
    large = (views.online, views.target)
    patch_last = method.head.last if method.patch_last is None else method.patch_last
    target_last = method.target_head.last if method.target_patch_last is None else method.target_patch_last
    online = [
        method.head.features(method.encoder(crop, replace_BN=mask)) for crop, mask in zip(large, masks, strict=True)
    ]
    small = [] if views.local is None else [method.head.features(method.encoder(crop)) for crop in views.local]
    target = [method.target_head.features(method.target_encoder(crop)) for crop in large]
    terms = [
        -(
            ((method.target_head.last(t[:, 0]) - method.centre) / 0.05).softmax(-1)
            * (method.head.last(s[:, 0]) / 0.1).log_softmax(-1)
        ).sum(-1)
        for q, t in enumerate(target)
        for v, s in enumerate([*online, *small])
        if v != q
    ]
    patches = []
    for s, t, mask in zip(online, target, masks, strict=True):
        assigned = ((target_last(t[:, 1:]) - method.patch_centre) / 0.08).softmax(-1)
        entropy_BN = -(assigned * (patch_last(s[:, 1:]) / 0.1).log_softmax(-1)).sum(-1)
        patches.append((entropy_BN * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
    return float(torch.stack(terms).mean()), float(torch.stack(patches).mean())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local_crops": 0},
        {"patch_out": 24},
        {"patch_out": 16, "share_target": True},
        {"head": replace(HEAD, norm="layer")},
        {"mask": VaryingMaskConfig(kind="random", ratios=(0.4,), spreads=(0.1,))},
    ],
    ids=["shared", "no small crops", "separate", "target shared", "layer norm", "random masks"],
)
def test_the_losses_are_the_authors(tiny: Tiny, batch_for: BatchFor, changes: dict[str, Any]) -> None:
    method = tiny(IBOT, changes=PLAIN | changes).eval()
    for buffer in (method.centre, method.patch_centre):
        torch.nn.init.normal_(buffer, std=0.1)
    views = method.make_views(batch_for(method, 8))
    whole, patches = _losses_by_hand(method, views)
    losses = method.losses(views)
    assert losses["assignment"].item() == pytest.approx(whole, rel=1e-4)
    assert losses["patch_assignment"].item() == pytest.approx(patches, rel=1e-4)


def test_batch_norm_in_the_head_sees_every_token(tiny: Tiny, batch_for: BatchFor) -> None:
    """Then also those that the loss does not use: large crops together, small ones together."""
    method = tiny(IBOT, changes=PLAIN | {"head": replace(HEAD, norm="batch")}).train()
    views = method.make_views(batch_for(method))
    assert views.target is not None
    assert views.mask_BN is not None
    assert views.target_mask_BN is not None
    norm = method.head.mlp.layers[1]
    seen: list[int] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    method.losses(views)
    handle.remove()
    assert seen == [8 * 17, 2 * 4 * 5]


def test_both_centres_follow_all_patches_in_training_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(IBOT, changes=PLAIN | {"patch_out": 24})
    views = method.make_views(batch_for(method))
    assert views.target is not None
    features = method.target_head.features(method.target_encoder(torch.cat([views.online, views.target])))
    method.eval().losses(views)
    assert not method.centre.any()
    assert not method.patch_centre.any()
    method.train().losses(views)
    assert method.target_patch_last is not None
    torch.testing.assert_close(method.centre, 0.1 * method.target_head.last(features[:, 0]).mean(dim=0))
    expected = 0.1 * method.target_patch_last(features[:, 1:]).mean(dim=(0, 1))
    torch.testing.assert_close(method.patch_centre, expected, atol=1e-6, rtol=1e-4)


def test_without_any_hidden_patch_the_patch_loss_is_zero(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(IBOT, changes=PLAIN)
    views = method.make_views(batch_for(method))
    nothing = torch.zeros(4, 16, dtype=torch.bool)
    losses = method.losses(replace(views, mask_BN=nothing, target_mask_BN=nothing))
    assert losses["patch_assignment"].item() == 0
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(value.grad is not None and value.grad.isfinite().all() for value in method.head.parameters())


def test_weights_scale_the_losses(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(IBOT, changes=PLAIN).eval()
    views = method.make_views(batch_for(method))
    plain = method.losses(views)
    method.config = replace(method.config, weight=0.5, patch_weight=3.0)
    weighted = method.losses(views)
    torch.testing.assert_close(weighted["assignment"], 0.5 * plain["assignment"])
    torch.testing.assert_close(weighted["patch_assignment"], 3 * plain["patch_assignment"])


def test_prototypes_of_patches_are_frozen_at_first_and_followed(tiny: Tiny) -> None:
    method = tiny(IBOT, changes=PLAIN | {"patch_out": 24, "freeze_last": 0.5, "momentum": Schedule(start=0.75)})
    frozen = {name for name, value in method.named_parameters() if method.rule(name, value).frozen_until}
    assert frozen == {"head.last.weight_g", "head.last.weight_v", "patch_last.weight_g", "patch_last.weight_v"}
    assert all(method.rule(name, method.get_parameter(name)).frozen_until == 0.5 for name in frozen)
    assert method.patch_last is not None
    assert method.target_patch_last is not None
    before = method.target_patch_last.weight_v.clone()
    torch.nn.init.normal_(method.patch_last.weight_v)
    method.update_target(0.0)
    expected = 0.75 * before + 0.25 * method.patch_last.weight_v
    torch.testing.assert_close(method.target_patch_last.weight_v.data, expected.data)


def test_a_target_may_use_one_set_of_prototypes_for_all(tiny: Tiny) -> None:
    method = tiny(IBOT, changes=PLAIN | {"patch_out": 16, "share_target": True})
    assert method.patch_last is not None
    assert method.target_patch_last is None


def test_settings_that_cannot_be_are_refused(tiny: Tiny) -> None:
    with pytest.raises(
        ValueError, match=r"^a target with one set of prototypes needs patch_out equal to head\.out, got 24 and 8192$"
    ):
        IBOTConfig(patch_out=24, share_target=True)
    with pytest.raises(ValueError, match=r"^the patch centre's momentum must lie in \[0, 1\], got 2$"):
        IBOTConfig(patch_centre_momentum=2)
    encoder = replace(tiny(IBOT).config.encoder, class_token=False)
    with pytest.raises(ValueError, match=r"^iBOT needs an encoder with a class token, and '[\w.]+' has none$"):
        tiny(IBOT, changes={"encoder": encoder})


def test_hidden_pixels_change_the_targets_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    """The online network never sees what lies under its masks."""
    method = tiny(IBOT, changes=PLAIN | {"local_crops": 0}).eval()
    views = method.make_views(batch_for(method, 8))
    assert views.mask_BN is not None
    hidden_B1HW = views.mask_BN.view(8, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert hidden_B1HW.any()
    changed = torch.where(hidden_B1HW, 9.0, views.online)
    same = method.encoder(views.online, replace_BN=views.mask_BN)
    torch.testing.assert_close(method.encoder(changed, replace_BN=views.mask_BN), same)
    loss = method.losses(views)["patch_assignment"]
    assert not torch.equal(method.losses(replace(views, online=changed))["patch_assignment"], loss)
    assert math.isfinite(loss.item())
