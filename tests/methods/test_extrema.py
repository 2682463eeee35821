"""ExtreMA: several masks of one picture against a loop over them, its target, and its views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch
from unmask.methods.extrema import ExtreMA, ExtreMAConfig
from unmask.models.encoder_config import EncoderConfig
from unmask.schedule import Schedule

Tiny = Callable[..., ExtreMA]
BatchFor = Callable[..., Batch]


@torch.no_grad()
def test_the_loss_is_the_mean_over_masks_of_each_masks_own(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ExtreMA).double()
    views = method.make_views(batch_for(method))
    assert views.target is not None
    views = replace(views, online=views.online.double(), target=views.target.double())
    assert views.masks_BKN.shape == (4, 5, 16)
    target = method.target_projector(method.class_feature(views.target)).numpy()
    losses = []
    for mask_BN in views.masks_BKN.unbind(dim=1):
        (tokens,) = method.encoder.block_outputs(views.online, (1,), drop_BN=mask_BN)
        feature = method.encoder.norm(method.class_attention(tokens))[:, 0]
        prediction = method.predictor(method.projector(feature)).numpy()
        for p, t in zip(prediction, target, strict=True):
            losses.append(2 - 2 * (p @ t) / np.linalg.norm(p) / np.linalg.norm(t))
    assert method.losses(views)["cosine"].item() == pytest.approx(np.mean(losses), rel=1e-10)


@torch.no_grad()
def test_pictures_are_embedded_once_for_all_masks(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ExtreMA)
    seen: list[torch.Size] = []
    method.encoder.vit.patch_embed.proj.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    method(batch_for(method))
    assert seen == [torch.Size([4, 3, 32, 32])]


def test_views_share_their_geometry_and_differ_in_colour(tiny: Tiny, batch_for: BatchFor) -> None:
    coloured = tiny(ExtreMA)
    views = coloured.make_views(batch_for(coloured, 16))
    assert views.target is not None
    assert not torch.equal(views.online, views.target)
    plain = tiny(ExtreMA, changes={"colour": ColourConfig()})
    views = plain.make_views(batch_for(plain, 16))
    assert views.target is not None
    assert torch.equal(views.online, views.target)
    assert views.online.data_ptr() != views.target.data_ptr()


@torch.no_grad()
def test_the_online_network_sees_its_visible_patches_only(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ExtreMA, changes={"masks": 2})
    views = method.make_views(batch_for(method))
    hidden_BN = views.masks_BKN.all(dim=1)
    hidden_B1HW = hidden_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(views, online=torch.where(hidden_B1HW, 2.0, views.online))
    assert torch.equal(method.losses(changed)["cosine"], method.losses(views)["cosine"])


def test_only_the_online_network_has_stochastic_depth(tiny: Tiny, batch_for: BatchFor) -> None:
    encoder = replace(tiny(ExtreMA).config.encoder, drop_path=0.5)
    method = tiny(ExtreMA, changes={"encoder": encoder}).train()
    views = method.make_views(batch_for(method, 8))
    assert views.target is not None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(method.class_feature(views.target), method.class_feature(views.target))
        assert not torch.equal(method.encoder(views.online), method.encoder(views.online))


@torch.no_grad()
def test_the_class_feature_is_the_targets(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ExtreMA, changes={"momentum": Schedule(start=0.0)})
    images = method.make_views(batch_for(method)).online
    before = method.class_feature(images)
    assert before.shape == (4, 48)
    method.class_attention.class_token += 1
    assert torch.equal(method.class_feature(images), before)
    method.update_target(0.0)
    assert not torch.allclose(method.class_feature(images), before)


def test_the_trunk_has_no_class_token() -> None:
    assert ExtreMAConfig().encoder.class_token is False
    encoder = EncoderConfig(name="vit_tiny_patch16_224", image_height=32, image_width=32, class_token=False)
    method = ExtreMA(ExtreMAConfig(encoder=replace(ExtreMAConfig().encoder, name=encoder.name)))
    assert (method.exported().prefix, method.exported().has_class_token) == (0, False)
    assert "encoder.vit.cls_token" not in method.state_dict()


def test_defaults_are_the_authors() -> None:
    config = ExtreMAConfig()
    assert (config.masks, config.mask_ratio, config.class_blocks, config.class_layer_scale) == (5, 0.8, 2, 0.1)
    assert config.optimizer.peak(2048) == pytest.approx(1.2e-3)
    assert (config.optimizer.weight_decay, config.encoder.drop_path) == (0.1, 0.1)


def test_settings_that_cannot_be_are_refused(tiny: Tiny, batch_for: BatchFor) -> None:
    with pytest.raises(ValueError, match=r"^masks must be at least 1, got 0$"):
        ExtreMAConfig(masks=0)
    with pytest.raises(ValueError, match=r"^mask ratio must lie strictly between 0 and 1, got 1\.0$"):
        ExtreMAConfig(mask_ratio=1.0)
    method = tiny(ExtreMA, changes={"masks": 9})
    with pytest.raises(ValueError, match=r"^9 masks that each show 3 patches do not fit into 16 patches"):
        method.make_views(batch_for(method))
