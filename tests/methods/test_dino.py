"""DINO: crops, centre, pairs of views, and what is frozen when; the numbers themselves are in the golden case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch
from unmask.methods.dino import DINO, DINOConfig
from unmask.methods.multi_crop import MultiCropConfig, local_size
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.prototypes import PrototypeHeadConfig
from unmask.optimisation import build_optimizer, finish_gradients
from unmask.schedule import Schedule

Tiny = Callable[..., DINO]
BatchFor = Callable[..., Batch]
PLAIN = {"head": PrototypeHeadConfig(hidden=64, bottleneck=32, out=16)}


def test_defaults_are_the_recipes() -> None:
    config = DINOConfig()
    assert (config.head.hidden, config.head.bottleneck, config.head.out, config.head.norm) == (2048, 256, 65536, "none")
    assert (config.temperature, config.centre_momentum) == (0.1, 0.9)
    assert [round(config.target_temperature.at(epoch / 300), 6) for epoch in (0, 15, 30, 299)] == [
        0.04,
        0.055,
        0.07,
        0.07,
    ]
    assert [config.momentum.at(progress) for progress in (0, 1)] == [pytest.approx(0.996), 1.0]
    assert config.encoder.position_resize == "offset"
    optimizer = config.optimizer
    assert [optimizer.weight_decay_at(progress) for progress in (0, 1)] == pytest.approx([0.04, 0.4])
    assert (optimizer.clip, optimizer.clip_each, optimizer.betas) == (3.0, True, (0.9, 0.999))


@pytest.mark.parametrize(
    ("height", "width", "patch", "expected"),
    [
        (224, 224, 16, (96, 96)),
        (32, 32, 4, (12, 12)),
        (64, 32, 8, (24, 16)),
        (96, 96, 8, (40, 40)),
        (16, 16, 16, (16, 16)),
    ],
)
def test_small_crops_follow_the_size_of_images(height: int, width: int, patch: int, expected: tuple[int, int]) -> None:
    """96 of 224 pixels, in whole patches; never none."""
    config = EncoderConfig(
        image_height=height, image_width=width, patch_size=patch, width=48, depth=1, heads=3, position="learned"
    )
    assert local_size(build_encoder(config, mask_token=False), MultiCropConfig(encoder=config)) == expected


def test_crops_are_two_large_and_the_small_ones(tiny: Tiny) -> None:
    large, small = tiny(DINO, changes={"local_crops": 5}).crops
    assert (large.count, large.height, large.scale) == (2, 32, (0.4, 1.0))
    assert (small.count, small.height, small.scale) == (5, 16, (0.05, 0.4))
    assert len(tiny(DINO, changes={"local_crops": 0}).crops) == 1


def test_views_are_crops_in_their_order(tiny: Tiny, batch_for: BatchFor) -> None:
    """With colour off, every view is its own crop, mirrored or not."""
    off = ColourConfig()
    method = tiny(DINO, changes={"online_colour": off, "target_colour": off, "local_colour": off, "local_crops": 3})
    batch = batch_for(method, 2)
    views = method.make_views(batch)
    assert views.target is not None
    assert views.local is not None
    assert views.local.shape == (3, 2, 3, 16, 16)

    def is_crop(view: Tensor, crop: Tensor) -> bool:
        plain = (crop / 255 - 0.5) / 0.25
        return torch.allclose(view, plain, atol=1e-5) != torch.allclose(view, plain.flip(-1), atol=1e-5)

    for sample in range(2):
        assert is_crop(views.online[sample], batch.crops[0][sample, 0])
        assert is_crop(views.target[sample], batch.crops[0][sample, 1])
        assert all(is_crop(views.local[crop, sample], batch.crops[1][sample, crop]) for crop in range(3))


@torch.no_grad()
def _loss_by_hand(method: DINO, batch: Batch) -> float:
    """Equation 3, pair by pair and crop by crop."""
    views = method.make_views(batch)
    assert views.target is not None
    large = [views.online, views.target]
    small = [] if views.local is None else list(views.local)
    online = [method.head(method.encoder(crop)[:, 0]) for crop in [*large, *small]]
    target = [method.target_head(method.target_encoder(crop)[:, 0]) for crop in large]
    terms = [
        -(((t - method.centre) / 0.05).softmax(-1) * (s / 0.1).log_softmax(-1)).sum(-1).mean()
        for q, t in enumerate(target)
        for v, s in enumerate(online)
        if v != q
    ]
    return float(torch.stack(terms).mean())


@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_loss_is_the_papers(tiny: Tiny, batch_for: BatchFor, local_crops: int) -> None:
    changes = PLAIN | {"local_crops": local_crops, "target_temperature": Schedule(start=0.05)}
    method = tiny(DINO, changes=changes).eval()
    torch.nn.init.normal_(method.centre, std=0.1)
    batch = batch_for(method)
    assert method(batch)["assignment"].item() == pytest.approx(_loss_by_hand(method, batch), rel=1e-4)


def test_the_centre_follows_the_target_in_training_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(DINO, changes=PLAIN)
    views = method.make_views(batch_for(method))
    _, target_QBK = method.logits(views)
    method.eval().losses(views)
    assert not method.centre.any()
    method.train().losses(views)
    torch.testing.assert_close(method.centre, 0.1 * target_QBK.mean(dim=(0, 1)))
    assert "centre" in method.state_dict()


def test_the_targets_temperature_follows_its_schedule(tiny: Tiny, batch_for: BatchFor) -> None:
    hot = Schedule(kind="linear", start=1e3, end=0.04, until=0.5)
    method = tiny(DINO, changes={"target_temperature": hot}).eval()
    views = method.make_views(batch_for(method))
    # A target without preferences: the loss is the mean over prototypes.
    online_VBK, _ = method.logits(views)
    log_VB = (online_VBK / 0.1).log_softmax(dim=-1).mean(dim=-1)
    mean = -(2 * log_VB.sum(dim=0) - log_VB[0] - log_VB[1]).mean() / (2 * (len(log_VB) - 1))
    assert method.losses(views, 0.0)["assignment"].item() == pytest.approx(mean.item(), rel=1e-3)
    assert method.losses(views, 0.5)["assignment"].item() == method.losses(views, 0.9)["assignment"].item()


def test_prototypes_are_left_alone_at_first(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(DINO, changes=PLAIN | {"freeze_last": 0.25})
    optimizer = build_optimizer(method, method.rule, method.config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    names = ("head.last.weight_v", "head.mlp.layers.0.weight")
    for progress, moves in ((0.0, False), (0.24, False), (0.25, True)):
        before = [method.get_parameter(name).clone() for name in names]
        optimizer.zero_grad()
        method(batch_for(method), progress)["assignment"].backward()
        finish_gradients(optimizer, method.config.optimizer, progress)
        optimizer.step()
        assert torch.equal(method.get_parameter(names[0]), before[0]) is not moves
        assert not torch.equal(method.get_parameter(names[1]), before[1])


def test_positions_learn_from_small_crops_too(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(DINO, changes=PLAIN)
    views = method.make_views(batch_for(method))
    assert views.local is not None
    method.encoder(views.local.flatten(0, 1)).square().sum().backward()
    gradient = method.get_parameter("encoder.vit.pos_embed").grad
    assert gradient is not None
    assert gradient.abs().sum(dim=-1).gt(0).all()


def test_the_target_has_no_stochastic_depth(tiny: Tiny, batch_for: BatchFor) -> None:
    encoder = replace(tiny(DINO).config.encoder, drop_path=0.5)
    method = tiny(DINO, changes=PLAIN | {"encoder": encoder}).train()
    views = method.make_views(batch_for(method))
    torch.manual_seed(0)
    first_online, first_target = method.logits(views)
    second_online, second_target = method.logits(views)
    assert torch.equal(first_target, second_target)
    assert not torch.equal(first_online, second_online)


def test_what_is_exported_is_chosen(tiny: Tiny) -> None:
    method = tiny(DINO, changes={"export": "online"})
    assert method.exported() is method.encoder


def test_batches_of_other_crops_are_refused(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(DINO, changes={"local_crops": 3})
    batch = batch_for(method)
    with pytest.raises(
        ValueError,
        match=r"^this method takes 2 crops of each image, large and 3 small ones; got groups of \[2\]$",
    ):
        method(replace(batch, crops=batch.crops[:1]))
    other = replace(batch, crops=(batch.crops[0], batch.crops[1][..., :8, :8]))
    with pytest.raises(ValueError, match=r"^this method was built for small crops of 16x16 pixels, got 8x8$"):
        method(other)
    views = method.make_views(batch)
    with pytest.raises(ValueError, match=r"^this method needs two views of each image$"):
        method.losses(replace(views, target=None))


@pytest.mark.parametrize("position", ["relative", "none"])
def test_encoders_of_one_size_take_no_small_crops(tiny: Tiny, batch_for: BatchFor, position: Any) -> None:
    config = tiny(DINO).config
    encoder = replace(config.encoder, name="beit_base_patch16_224", position=position)
    with pytest.raises(
        ValueError,
        match=rf"^encoder 'beit_base_patch16_224' with position '{position}' cannot see crops of two sizes; "
        r"set local_crops to 0, or take a vit_\* encoder with learned positions$",
    ):
        tiny(DINO, changes={"encoder": encoder})
    method = tiny(DINO, changes={"encoder": encoder, "local_crops": 0})
    assert math.isfinite(method(batch_for(method))["assignment"].item())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": 0.0}, r"^temperature must be above 0, got 0\.0$"),
        ({"centre_momentum": 1.5}, r"^the centre's momentum must lie in \[0, 1\], got 1\.5$"),
        ({"freeze_last": -0.1}, r"^freeze_last must be a share of the run, in \[0, 1\], got -0\.1$"),
        ({"local_crops": -1}, r"^the number of local crops must be 0 or more, got -1$"),
        ({"local_side": 0.0}, r"^the side of local crops must lie in \(0, 1\] of the image's, got 0\.0$"),
        ({"local_crop_scale": (0.5, 0.2)}, r"^local crop scale must be a range within \(0, 1\], got 0\.5 to 0\.2$"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DINOConfig(**changes)
