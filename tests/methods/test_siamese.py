"""SimCLR, MoCo v3, BYOL and SimSiam: two views, their losses in numpy, and what each does with its target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unmask.data.batch import Batch
from unmask.methods import METHODS
from unmask.methods.byol import BYOL
from unmask.methods.mocov3 import MoCoV3
from unmask.methods.siamese import image_feature
from unmask.methods.simclr import SimCLR, SimCLRConfig
from unmask.methods.simsiam import SimSiam, SimSiamConfig

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]
SIAMESE = ["simclr", "mocov3", "byol", "simsiam"]


def _unit(features_BE: Tensor) -> np.ndarray:
    values = features_BE.detach().double().numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _infonce(queries: np.ndarray, keys: np.ndarray, temperature: float) -> float:
    total = 0.0
    for index, query in enumerate(queries):
        logits = np.array([query @ key for key in keys]) / temperature
        total -= logits[index] - np.log(np.exp(logits).sum())
    return total / len(queries)


@pytest.mark.parametrize("name", SIAMESE)
def test_the_views_are_two_different_crops_of_the_same_images(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(METHODS[name])
    (crop,) = method.crops
    assert crop.count == 2
    batch = batch_for(method)
    views = method.make_views(batch)
    assert views.target is not None
    assert not torch.equal(views.online, views.target)
    # Only the second crop is altered: only the second view follows.
    changed = replace(batch, crops=(batch.crops[0].clone(),))
    changed.crops[0][:, 1] = 0
    other = method.make_views(changed)
    assert torch.equal(other.online, views.online)
    assert not torch.equal(other.target, views.target)


@pytest.mark.parametrize("name", SIAMESE)
def test_views_without_a_second_picture_are_refused(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(METHODS[name])
    views = replace(method.make_views(batch_for(method)), target=None)
    with pytest.raises(ValueError, match=r"^this method needs two views of each image$"):
        method.losses(views)


def test_mocov3_is_two_times_the_temperature_times_infonce_both_ways(tiny: Tiny, batch_for: BatchFor) -> None:
    for two_tau in (True, False):
        method = tiny(MoCoV3, changes={"temperature": 0.3, "two_tau": two_tau}).eval()
        views = method.make_views(batch_for(method, 6))
        both = (views.online, views.target)
        queries = [_unit(method.predictor(method.projector(image_feature(method.encoder, images)))) for images in both]
        keys = [_unit(method.target_projector(image_feature(method.target_encoder, images))) for images in both]
        factor = 0.6 if two_tau else 1.0
        losses = method.losses(views)
        assert losses["first_finds_second"].item() == pytest.approx(
            factor * _infonce(queries[0], keys[1], 0.3), rel=1e-5
        )
        assert losses["second_finds_first"].item() == pytest.approx(
            factor * _infonce(queries[1], keys[0], 0.3), rel=1e-5
        )


def test_mocov3s_patch_embedding_is_fixed_unless_it_is_asked_for(tiny: Tiny) -> None:
    frozen, free = (tiny(MoCoV3, changes={"freeze_patches": freeze}) for freeze in (True, False))
    assert not frozen.encoder.vit.patch_embed.proj.weight.requires_grad
    assert free.encoder.vit.patch_embed.proj.weight.requires_grad


def test_byols_losses_are_squared_distances_on_the_sphere(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BYOL).eval()
    views = method.make_views(batch_for(method, 6))
    predicted = _unit(method.predictor(method.projector(image_feature(method.encoder, views.online))))
    target = _unit(method.target_projector(image_feature(method.target_encoder, views.target)))
    expected = ((predicted - target) ** 2).sum(axis=1).mean()
    assert method.losses(views)["first_to_second"].item() == pytest.approx(expected, rel=1e-5)


def test_byols_target_takes_over_batch_statistics_and_adds_its_own(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BYOL).train()
    views = method.make_views(batch_for(method, 6))
    method.losses(views)
    norm, target = method.projector.layers[1], method.target_projector.layers[1]
    # Two passes of the online network, copied, then two of the target's own.
    assert (norm.num_batches_tracked.item(), target.num_batches_tracked.item()) == (2, 4)
    method.eval()
    before = target.running_mean.clone()
    method.losses(views)
    assert torch.equal(target.running_mean, before)


def test_simsiam_holds_the_target_fixed(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SimSiam).eval()
    views = method.make_views(batch_for(method, 6))
    projected = [method.projector(image_feature(method.encoder, images)) for images in (views.online, views.target)]
    losses = method.losses(views)
    predicted = _unit(method.predictor(projected[0]))
    expected = -(predicted * _unit(projected[1])).sum(axis=1).mean() / 2
    assert losses["first_to_second"].item() == pytest.approx(expected, rel=1e-5)
    # No gradient reaches the network through the second view of the first term.
    images = views.target.clone().requires_grad_()
    method.losses(replace(views, target=images))["first_to_second"].backward()
    assert images.grad is None or not images.grad.any()


def test_simsiams_predictor_keeps_its_rate(tiny: Tiny) -> None:
    method = tiny(SimSiam)
    constant = {name for name, value in method.named_parameters() if method.rule(name, value).constant_lr}
    assert constant == {name for name, _ in method.named_parameters() if name.startswith("predictor.")}


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^temperature must be above 0, got 0$"):
        SimCLRConfig(temperature=0)
    config = SimSiamConfig()
    with pytest.raises(ValueError, match=r"^the predictor's output \(7\) must be as wide as the projector's \(2048\)$"):
        replace(config, predictor=replace(config.predictor, out=7))


def test_simclrs_chance_level_is_that_of_all_other_views(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SimCLR)
    torch.nn.init.zeros_(method.projector.layers[-1].weight)
    torch.nn.init.ones_(method.projector.layers[-1].bias)
    loss = method.losses(method.make_views(batch_for(method, 5)))["contrast"]
    assert loss.item() == pytest.approx(np.log(9), rel=1e-5)
