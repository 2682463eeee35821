"""SIM: geometry of two crops against pixels and the authors' records, its loss in numpy, and what stays fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch
from unmask.interop.golden import load_tensors, tensor_file
from unmask.masking import MaskConfig, masked_count
from unmask.methods.sim import SIM, SIMConfig, relative_position
from unmask.models.decoder import DecoderConfig
from unmask.models.relative_decoder import TokenBatchNorm
from unmask.views import flip

Tiny = Callable[..., SIM]
BatchFor = Callable[..., Batch]
GOLDEN = Path(__file__).parents[1] / "golden" / "sim.json"


def _crop_then_flip(flipped: Tensor, left: Tensor, width: Tensor, image: Tensor) -> Tensor:
    """Left of the box in the upright picture, from that in the picture which the authors have mirrored first."""
    return torch.where(flipped.bool(), image - left - width, left)


def test_relative_positions_are_the_authors() -> None:
    tensors = load_tensors(tensor_file(GOLDEN))
    for crops, recorded in zip(tensors["crops"].double(), tensors["relative_position"], strict=True):
        flip1, top1, left1, height1, width1, flip2, top2, left2, height2, width2, image = crops.unbind(dim=1)
        boxes_B26 = torch.stack(
            [
                torch.stack([top1, _crop_then_flip(flip1, left1, width1, image), height1, width1, image, image], dim=1),
                torch.stack([top2, _crop_then_flip(flip2, left2, width2, image), height2, width2, image, image], dim=1),
            ],
            dim=1,
        )
        found = relative_position(boxes_B26, torch.stack([flip1, flip2], dim=1).bool())
        torch.testing.assert_close(found, recorded, rtol=1e-12, atol=1e-12)


@given(left=st.integers(0, 6), width=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_mirroring_a_crop_is_cropping_the_mirrored_picture_at_the_mirrored_place(left: int, width: int) -> None:
    image = torch.arange(10.0).expand(1, 1, 3, 10)
    ours = flip(image[..., left : left + width], torch.tensor([True]))
    there = int(_crop_then_flip(torch.tensor(1), torch.tensor(left), torch.tensor(width), torch.tensor(10)))
    theirs = image.flip(-1)[..., there : there + width]
    assert torch.equal(ours, theirs)


@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(5, 50), st.integers(5, 50)),
        min_size=2,
        max_size=2,
    ),
    flips=st.tuples(st.booleans(), st.booleans()),
    point=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=60, deadline=None)
def test_relative_positions_find_each_point_of_the_second_crop_in_the_first(
    boxes: list[tuple[int, int, int, int]], flips: tuple[bool, bool], point: tuple[float, float]
) -> None:
    """A point of view 2 (shares down and right) goes to the picture and from there to view 1, mirrored or not."""
    image = 100
    boxes_B26 = torch.tensor([[[*box, image, image] for box in boxes]], dtype=torch.float64)
    down, right, high, wide, mirrored, mirrored_right = relative_position(boxes_B26, torch.tensor([flips]))[0].tolist()
    (top1, left1, height1, width1), (top2, left2, height2, width2) = boxes
    y, x = point
    picture_x = left2 + width2 * (1 - x if flips[1] else x)
    expected_x = (picture_x - left1) / width1
    expected_x = 1 - expected_x if flips[0] else expected_x
    assert down + high * y == pytest.approx((top2 + height2 * y - top1) / height1, abs=1e-9)
    assert (mirrored_right - wide * x if mirrored else right + wide * x) == pytest.approx(expected_x, abs=1e-9)


def test_views_carry_the_place_of_their_own_boxes_and_flips(tiny: Tiny, batch_for: BatchFor) -> None:
    """A ramp of brightness shows which crops were mirrored."""
    plain = ColourConfig()
    method = tiny(SIM, changes={"first_colour": plain, "second_colour": plain})
    batch = batch_for(method, 8)
    ramp = (8 * torch.arange(32)).to(torch.uint8).expand_as(batch.crops[0])
    views = method.make_views(replace(batch, crops=(ramp.contiguous(),)))
    assert views.target is not None
    flips_B2 = torch.stack([images[:, 0, 0, 0] > images[:, 0, 0, -1] for images in (views.online, views.target)], dim=1)
    assert len(flips_B2.unique(dim=0)) > 2
    assert torch.equal(views.relative_B6, relative_position(batch.boxes[0], flips_B2))


@torch.no_grad()
def test_the_losses_are_unigrads_in_numpy(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SIM, changes={"negative_weight": 0.5})
    views = method.make_views(batch_for(method))
    assert views.target is not None
    prediction = method.predict(views).double().reshape(-1, 32).numpy()
    target = method.target_features(views.target).double().reshape(-1, 32).numpy()
    target = (target - target.mean(axis=1, keepdims=True)) / np.sqrt(target.var(axis=1, keepdims=True) + 1e-5)
    losses = method.losses(views)
    positive = ((prediction - target) ** 2).sum(axis=1).mean() / 32
    correlation = np.mean([np.outer(row, row) for row in target], axis=0)
    negative = 0.5 * np.mean([row @ correlation @ row for row in prediction]) / 32
    assert losses["positive"].item() == pytest.approx(positive, rel=1e-4)
    assert losses["negative"].item() == pytest.approx(negative, rel=1e-4)


@torch.no_grad()
def test_predictions_come_from_visible_patches_and_the_place_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SIM)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    assert views.target is not None
    prediction = method.predict(views)
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    unseen = replace(views, online=torch.where(hidden_B1HW, 2.0, views.online), target=-views.target)
    assert torch.equal(method.predict(unseen), prediction)
    assert not torch.allclose(method.predict(replace(views, relative_B6=views.relative_B6 + 0.1)), prediction)


def test_the_patch_embedding_stays_unless_told_otherwise(tiny: Tiny, batch_for: BatchFor) -> None:
    for train in (False, True):
        method = tiny(SIM, changes={"train_patches": train})
        sum(method(batch_for(method)).values()).backward()
        proj = method.encoder.vit.patch_embed.proj
        assert proj.weight.requires_grad is proj.bias.requires_grad is train
        assert (proj.weight.grad is not None) is train


def test_the_encoder_has_no_final_norm_and_both_networks_their_own_batch_statistics(
    tiny: Tiny, batch_for: BatchFor
) -> None:
    method = tiny(SIM)
    assert isinstance(method.encoder.vit.norm, nn.Identity)
    method(batch_for(method))
    online, target = (
        next(part.bn for part in network.modules() if isinstance(part, TokenBatchNorm))
        for network in (method.projector, method.target_projector)
    )
    assert online.running_mean is not None
    assert target.running_mean is not None
    before = target.running_mean.clone()
    assert before.abs().sum() > 0
    assert not torch.equal(online.running_mean, before)
    method.update_target(0.0)
    assert torch.equal(target.running_mean, before)


def test_norms_can_be_layer_norms_and_a_fixed_one_can_end_the_predictor(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SIM, changes={"projector_norm": "layer", "predictor_norm": "layer", "online_norm": True})
    assert not any(isinstance(part, TokenBatchNorm) for part in method.modules())
    views = method.make_views(batch_for(method))
    rows = method.online_norm(method.predict(views))
    assert rows.mean(dim=-1).abs().max().item() < 1e-5
    sum(method.losses(views).values()).backward()
    assert all(parameter.grad is None for parameter in method.online_norm.parameters())


def test_defaults_are_the_authors() -> None:
    config = SIMConfig()
    assert masked_count(config.mask, (14, 14)) == 118
    assert (config.momentum.at(0), config.momentum.at(1)) == (0.995, 1.0)
    assert config.optimizer.peak(4096) == pytest.approx(1e-3)
    assert config.optimizer.clip == 1.0
    assert (config.decoder, config.projector_depth) == (DecoderConfig(width=768, depth=4, heads=16), 2)


def test_settings_that_cannot_be_are_refused() -> None:
    sentence = r"^SIM drops hidden patches, so every image must hide equally many; set mask.exact$"
    with pytest.raises(ValueError, match=sentence):
        SIMConfig(mask=MaskConfig(kind="blockwise", ratio=0.6))
    with pytest.raises(ValueError, match=r"^projector depth must be 0 or more, got -1$"):
        SIMConfig(projector_depth=-1)
