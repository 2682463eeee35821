"""MSN: one mask for a batch, anchors by size, balanced targets, stretched schedules; the rest is in the golden case."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from unmask.data.batch import Batch
from unmask.masking import MaskConfig, masked_count
from unmask.methods.msn import MSN, MSNConfig
from unmask.objectives.clustering import sinkhorn
from unmask.optimisation import build_optimizer, finish_gradients

Tiny = Callable[..., MSN]
BatchFor = Callable[..., Batch]


def test_defaults_are_the_authors() -> None:
    config = MSNConfig()
    assert masked_count(config.mask, (14, 14)) == 196 - 166
    assert (config.local_crops, config.crop_scale, config.local_crop_scale) == (10, (0.3, 1.0), (0.05, 0.3))
    assert (config.prototypes, config.temperature, config.sharpening.at(0.7)) == (1024, 0.1, 0.25)
    assert (config.me_max_weight, config.entropy_weight, config.sinkhorn_iterations) == (1.0, 0.0, 3)
    assert (config.head.layers, config.head.hidden, config.head.out, config.head.last_norm) == (3, 2048, 256, False)


def test_schedules_are_broken_off(tiny: Tiny) -> None:
    """Those of a run 1.25 times as long; in numbers of the golden case (8 steps, 2 of warm-up, counted from 1)."""
    config = MSNConfig()
    assert [config.momentum.at(step / 8) for step in range(4)] == pytest.approx([0.996, 0.9964, 0.9968, 0.9972])
    optimizer = replace(config.optimizer, lr_batch=None, warmup_epochs=0.16)
    # The run has one epoch; a warm-up may take a fifth of it at most, so the two steps are of 12.5.
    rates = [optimizer.at(step / 12.5, batch_size=6, epochs=1) for step in (0, 1, 2)]
    assert rates == pytest.approx([2e-4, 6e-4, 1e-3])
    decays = [config.optimizer.weight_decay_at(step / 8) for step in (1, 2, 3, 4)]
    assert decays == pytest.approx([0.04880982706687231, 0.07437694101250947, 0.11419865458735484, 0.16437694101250946])
    # After the warm-up the cosine is that of 1.25 runs, less the warm-up.
    later = 1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (0.6 - 0.16) / (1.25 - 0.16)))
    assert optimizer.at(0.6, batch_size=6, epochs=1) == pytest.approx(later)
    assert optimizer.at(1.0, batch_size=6, epochs=1) > 1e-4


def test_a_batch_has_one_mask(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MSN, changes={"mask": MaskConfig(kind="random", ratio=0.3)})
    views = method.make_views(batch_for(method, 6))
    assert views.mask_BN is not None
    assert views.mask_BN.shape == (6, 16)
    assert torch.equal(views.mask_BN, views.mask_BN[:1].expand(6, -1))
    assert views.mask_BN[0].sum() == 5


@pytest.mark.parametrize(("masked", "local"), [(1, 3), (2, 2), (1, 0)])
def test_the_losses_are_the_papers(tiny: Tiny, batch_for: BatchFor, masked: int, local: int) -> None:
    """Crop by crop; in eval mode batch norm does not see which crops go together."""
    changes = {"masked_crops": masked, "local_crops": local, "entropy_weight": 0.5, "me_max_weight": 2.0}
    method = tiny(MSN, changes=changes).eval()
    views = method.make_views(batch_for(method))
    assert views.target is not None
    assert views.mask_BN is not None
    assert (views.more is None) is (masked == 1)
    large = [views.online] if views.more is None else [views.online, *views.more]
    tokens = [method.encoder(crop, drop_BN=views.mask_BN) for crop in large]
    tokens += [] if views.local is None else [method.encoder(crop) for crop in views.local]
    directions = F.normalize(method.prototypes.weight, dim=-1)

    def assigned(token_BD: torch.Tensor, temperature: float, head: torch.nn.Module) -> torch.Tensor:
        return (F.normalize(head(token_BD), dim=-1) @ directions.T / temperature).softmax(dim=-1)

    online = torch.cat([assigned(token[:, 0], 0.1, method.head) for token in tokens])
    sharp = assigned(method.target_encoder(views.target)[:, 0], 0.1, method.target_head) ** 4
    target = sinkhorn(sharp / sharp.sum(dim=-1, keepdim=True), 3).repeat(masked + local, 1)
    mean = online.mean(dim=0)
    losses = method.losses(views)
    torch.testing.assert_close(losses["assignment"], -(target * online.log()).sum(dim=-1).mean())
    torch.testing.assert_close(losses["me_max"], 2 * (math.log(64) + (mean * mean.log()).sum()), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(losses["entropy"], -0.5 * (online * online.log()).sum(dim=-1).mean())


def test_sinkhorn_can_be_left_out(tiny: Tiny, batch_for: BatchFor) -> None:
    method, plain = tiny(MSN).eval(), tiny(MSN, changes={"sinkhorn_iterations": 0}).eval()
    views = method.make_views(batch_for(method, 16))
    balanced, sharpened = method.targets(views, 0.0), plain.targets(views, 0.0)
    assert balanced.sum(dim=0).std() < sharpened.sum(dim=0).std()
    torch.testing.assert_close(sharpened.sum(dim=1), torch.ones(16))
    assert "entropy" not in method.losses(views)


def test_anchors_of_one_size_meet_in_batch_norm(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MSN, changes={"masked_crops": 2, "local_crops": 3}).train()
    views = method.make_views(batch_for(method))
    seen: dict[str, list[int]] = {"head": [], "target_head": []}
    for name, sizes in seen.items():
        norm = method.get_submodule(f"{name}.layers.1")
        norm.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(inputs[0])))
    method.losses(views)
    assert seen == {"head": [8, 12], "target_head": [4]}


def test_targets_take_no_gradient_and_prototypes_learn_from_anchors(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MSN)
    views = method.make_views(batch_for(method))
    assert not method.targets(views, 0.0).requires_grad
    method.losses(views)["assignment"].backward()
    assert method.prototypes.weight.grad is not None
    assert method.prototypes.weight.grad.any()


def test_prototypes_are_neither_decayed_nor_clipped(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MSN)
    rule = method.rule("prototypes.weight", method.prototypes.weight)
    assert (rule.decay, rule.clip) == (False, False)
    settings = replace(method.config.optimizer, clip=1e-3)
    optimizer = build_optimizer(method, method.rule, settings)
    torch.stack(list(method(batch_for(method)).values())).sum().backward()
    assert method.prototypes.weight.grad is not None
    before = method.prototypes.weight.grad.clone()
    finish_gradients(optimizer, settings, 0.0)
    assert torch.equal(method.prototypes.weight.grad, before)
    others = [value.grad for name, value in method.named_parameters() if value.grad is not None and "proto" not in name]
    assert torch.nn.utils.get_total_norm(others).item() == pytest.approx(1e-3, rel=1e-3)


def test_images_that_are_not_square_have_small_crops(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MSN, height=32, width=64)
    views = method.make_views(batch_for(method))
    assert views.local is not None
    assert views.local.shape[-2:] == (16, 24)
    assert math.isfinite(method.losses(views)["assignment"].item())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"temperature": -1.0}, r"^temperature must be above 0, got -1\.0$"),
        ({"masked_crops": 0}, r"^there must be at least 1 masked crop, got 0$"),
        ({"sinkhorn_iterations": -1}, r"^sinkhorn_iterations must be 0 or more, got -1$"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MSNConfig(**changes)
