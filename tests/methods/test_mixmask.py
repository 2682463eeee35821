"""What is special to MixMask: masks, mixtures, shares, the queue, and losses against a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.data.batch import Batch
from unmask.data.sources import open_source
from unmask.methods.mixmask import MixedViews, MixMask, MixMaskConfig, blend, draw_mask, fill, paste, unmix
from unmask.models.build import build_encoder
from unmask.models.convolutional import ConvEncoder
from unmask.models.encoder_config import EncoderConfig
from unmask.optimisation import OptimizerConfig, build_optimizer

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]
CONVOLUTIONS = EncoderConfig(name="test_resnet", image_height=32, image_width=32)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(2, 9), st.floats(0.3, 0.9), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_blocks_that_stay_are_at_most_the_share_and_whole_cells(cells: int, share: float, seed: int) -> None:
    config = MixMaskConfig(mask_cells=cells, mask_share=share)
    kept_HW = draw_mask(config, (4 * cells, 3 * cells), _generator(seed))
    kept_SS = kept_HW[::4, ::3]
    assert torch.equal(kept_SS.repeat_interleave(4, 0).repeat_interleave(3, 1), kept_HW)
    assert 0 < int(kept_SS.sum()) <= max(1, int(share * cells**2))


def test_discrete_cells_stay_each_by_itself() -> None:
    config = MixMaskConfig(mask_kind="discrete", mask_share=0.25)
    kept = torch.stack([draw_mask(config, (8, 8), _generator(seed)) for seed in range(400)]).double()
    assert float(kept.mean()) == pytest.approx(0.75, abs=0.02)
    assert kept.mean(dim=0).sub(0.75).abs().max() < 0.1
    rare = MixMaskConfig(mask_kind="discrete", mask_cells=2, mask_share=0.9)
    for seed in range(20):
        assert 0 < int(draw_mask(rare, (2, 2), _generator(seed)).sum()) < 4


def test_filled_images_hold_their_partners_where_the_mask_does_not_keep_them() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    kept_HW = torch.tensor([[True, False], [False, True]])
    filled = fill(images, kept_HW, torch.tensor([2, 0, 1]))
    assert filled[0].tolist() == [[[0, 2], [2, 0]]]
    assert filled[2].tolist() == [[[2, 1], [1, 2]]]


def test_blends_and_boxes_are_of_the_mirrored_batch() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 3)
    assert blend(images, 0.25)[0].unique().tolist() == [1.5]
    pasted = paste(images, (1, 2, 0, 2))
    assert pasted[0].tolist() == [[[0, 0, 0], [2, 2, 0]]]
    assert pasted[1].tolist() == images[1].tolist()


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0]))
@settings(max_examples=40, deadline=None)
def test_unmixs_share_is_what_is_left_of_the_image(seed: int, chance: float) -> None:
    own, partner = torch.zeros(1, 8, 12), torch.ones(1, 8, 12)
    mixed, share = unmix(torch.stack([own, partner]), MixMaskConfig(unmix_global=chance), _generator(seed))
    assert 0 <= share <= 1
    assert float(1 - mixed[0].mean()) == pytest.approx(share, abs=1e-6)
    torch.testing.assert_close(mixed[0] + mixed[1], torch.ones(1, 8, 12))
    assert chance == 1.0 or set(mixed.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("mix", ["mixmask", "unmix", "both"])
def test_views_hold_the_mixtures_that_are_asked_for(tiny: Tiny, batch_for: BatchFor, mix: str) -> None:
    method = tiny(MixMask, changes={"mix": mix})
    views = method.make_views(batch_for(method, 6))
    assert isinstance(views, MixedViews)
    assert len(views.mixed) == len(views.partners) == len(views.shares) == (2 if mix == "both" else 1)
    mirrored = [5, 4, 3, 2, 1, 0]
    assert views.partners[0].tolist() == mirrored
    assert sorted(views.partners[-1].tolist()) == sorted(mirrored)
    if mix == "both":
        assert views.partners[-1].tolist() != mirrored
    if mix != "unmix":
        own = (views.mixed[-1] == views.online).all(dim=1)
        other = (views.mixed[-1] == views.online[views.partners[-1]]).all(dim=1)
        assert bool((own | other).all())
        # A permutation may leave an image where it is; all others have one mask.
        mixed = own[views.partners[-1] != torch.arange(6)]
        assert float(mixed[0].double().mean()) == pytest.approx(views.shares[-1])
        assert torch.equal(mixed, mixed[:1].expand_as(mixed))
    losses = method.losses(views)
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    assert set(losses) == {"contrast"} | {"mixmask": {"mask"}, "unmix": {"unmix"}, "both": {"unmix", "mask"}}[mix]


def _reference(query: Tensor, key: Tensor, queue_DQ: Tensor, temperature: float) -> float:
    """The cross-entropy of one table of logits, as MoCo's code writes it."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue_DQ], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long)).item()


@torch.no_grad()
def test_losses_are_cross_entropies_by_shares_with_the_old_queue(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MixMask, changes={"mix": "both", "temperature": 0.3})
    views = method.make_views(batch_for(method, 5))
    queue_DQ = method.queue.keys_DQ.clone()
    losses = method.losses(views)

    def query(images: Tensor) -> Tensor:
        found: Tensor = method.projector(method.encoder(images)[:, 0])
        return found

    keys = method.target_projector(method.target_encoder(views.target)[:, 0])
    assert losses["contrast"].item() == pytest.approx(_reference(query(views.online), keys, queue_DQ, 0.3), rel=1e-5)
    for position, name in enumerate(("unmix", "mask")):
        mixed, partner, share = query(views.mixed[position]), views.partners[position], views.shares[position]
        own = _reference(mixed, keys, queue_DQ, 0.3)
        # Their way: mixtures back in the order of their partners, then each with its own key.
        others = _reference(mixed[partner.argsort()], keys, queue_DQ, 0.3)
        assert losses[name].item() == pytest.approx(share * own + (1 - share) * others, rel=1e-5)
    # What is new is in the queue now, where the oldest keys were.
    torch.testing.assert_close(method.queue.keys_DQ[:, :5], F.normalize(keys, dim=1).T, rtol=1e-5, atol=1e-6)
    assert torch.equal(method.queue.keys_DQ[:, 5:], queue_DQ[:, 5:])


@torch.no_grad()
def test_looking_without_training_leaves_the_queue_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MixMask).eval()
    before = method.queue.keys_DQ.clone()
    method(batch_for(method))
    assert torch.equal(method.queue.keys_DQ, before)
    assert int(method.queue.position) == 0


def test_a_queue_shorter_than_the_batch_works(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MixMask, changes={"queue": 3})
    losses = method(batch_for(method, 8))
    sum(losses.values()).backward()
    assert int(method.queue.position) == 8 % 3


@pytest.mark.parametrize("encoder", [CONVOLUTIONS, None])
def test_losses_against_a_filled_queue_fall(tiny: Tiny, batch_for: BatchFor, encoder: EncoderConfig | None) -> None:
    """Against keys of other images, which are hard, unlike the random directions that a queue starts with."""
    changes: dict[str, Any] = {"queue": 24, "optimizer": OptimizerConfig(weight_decay=1e-4)}
    method = tiny(MixMask, changes=changes | ({} if encoder is None else {"encoder": encoder}))
    optimizer = build_optimizer(method, method.rule, method.config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    with torch.no_grad():
        for seed in range(3):
            noise = torch.rand(8, 1, 1, 1, generator=_generator(seed)) * torch.randn(
                8, 3, 32, 32, generator=_generator(seed)
            )
            method.losses(MixedViews(online=noise, target=noise, mixed=(noise,), partners=(_mirror(8),), shares=(1.0,)))
    views = method.make_views(batch_for(method, 8))
    queue = method.queue.keys_DQ.clone()
    history = []
    for _ in range(12):
        losses = method.losses(views)
        method.queue.keys_DQ.copy_(queue)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(history[-1][name] < 0.7 * first for name, first in history[0].items()), (history[0], history[-1])


def _mirror(samples: int) -> Tensor:
    return torch.arange(samples).flip(0)


def test_any_encoder_will_do_and_ones_own(tiny: Tiny, batch_for: BatchFor) -> None:
    assert MixMaskConfig().encoder.name == "resnet50"
    convolutional = tiny(MixMask, changes={"encoder": CONVOLUTIONS})
    assert isinstance(convolutional.encoder, ConvEncoder)
    assert all(math.isfinite(loss.item()) for loss in convolutional(batch_for(convolutional)).values())
    config = replace(tiny(MixMask).config, encoder=CONVOLUTIONS)
    mine = build_encoder(replace(CONVOLUTIONS, name="test_convnext"), mask_token=False)
    assert MixMask(config, encoder=mine).exported() is mine


def test_a_queue_shrinks_with_the_data_unless_it_is_set() -> None:
    source = open_source("builtin:emoji")
    assert len(source) == 2688
    assert MixMaskConfig().for_source(source).queue == 256
    assert MixMaskConfig().for_source(source.subset(range(20))).queue == 2
    assert MixMaskConfig(queue=4096).for_source(source).queue == 4096


def test_two_views_are_needed(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(MixMask)
    with pytest.raises(ValueError, match=r"^this method needs two views of each image$"):
        method.losses(replace(method.make_views(batch_for(method)), target=None))


def test_settings_that_cannot_be_are_refused() -> None:
    for sentence, changes in {
        "temperature must be above 0, got 0": {"temperature": 0.0},
        "a queue must hold at least 1 key, got 0": {"queue": 0},
        "mask_share must lie strictly between 0 and 1, got 1": {"mask_share": 1.0},
        "a mask of 1x1 cells cannot keep 0.5 of them": {"mask_cells": 1},
        "a mask of 2x2 cells cannot keep 0.2 of them": {"mask_cells": 2, "mask_share": 0.2},
        "unmix_beta must be above 0, got 0": {"unmix_beta": 0.0},
        "unmix_global must lie in": {"unmix_global": 1.5},
    }.items():
        with pytest.raises(ValueError, match=f"^{sentence}"):
            MixMaskConfig(**changes)  # type: ignore[arg-type]
