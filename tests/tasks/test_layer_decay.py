"""Layer decay is timm's and BEiT's, freezing leaves just the last blocks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.tasks.layer_decay import LayerDecay, block_count, freeze_below, layers

VIT = EncoderConfig(
    name="vit_tiny_patch16_224", image_height=32, image_width=32, patch_size=8, depth=3, width=24, heads=2
)


class WithHead(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc_norm = nn.LayerNorm(encoder.width)
        self.head = nn.Linear(encoder.width, 5)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_rates_are_those_that_timm_gives_the_same_model(pool: str) -> None:
    encoder = build_encoder(VIT, mask_token=False)
    model = WithHead(encoder)
    rule = LayerDecay(encoder, 0.65)
    ours = {
        name.removeprefix("encoder.vit."): rule(name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    name, arguments = cast(Any, encoder.timm_model)
    theirs = timm.create_model(name, **arguments | {"num_classes": 5, "global_pool": pool, "fc_norm": pool == "avg"})
    skip = ("pos_embed", "cls_token", "reg_token")
    groups = param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=skip, layer_decay=0.65)
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    compared = 0
    for name, parameter in theirs.named_parameters():
        # Our fc_norm is new, like theirs; timm counts a final norm to the last block, as we do.
        group = by_parameter[id(parameter)]
        assert ours[name].lr_scale == pytest.approx(group["lr_scale"]), name
        assert ours[name].decay == (group["weight_decay"] > 0), name
        compared += 1
    assert compared > 30


@pytest.mark.parametrize(
    "config",
    [
        VIT,
        EncoderConfig(name="vit_tiny_patch16_224", position="relative", depth=3),
        EncoderConfig(name="convmae_base_patch16", width=48, heads=2, depth=3, stage_widths=(16, 32)),
        EncoderConfig(name="igpt_small", image_height=8, image_width=8, width=32, depth=3, heads=2),
    ],
    ids=lambda config: f"{config.name}-{config.position}",
)
def test_the_last_block_learns_at_one_decay_and_the_stem_slowest(config: EncoderConfig) -> None:
    encoder = build_encoder(config, mask_token=False)
    rule = LayerDecay(encoder, 0.5)
    names = {name: rule(name, parameter).lr_scale for name, parameter in encoder.network.named_parameters()}
    for block in range(3):
        scales = {scale for name, scale in names.items() if name.startswith(f"blocks.{block}.")}
        assert scales == {0.5 ** (3 - block)}
    others = {scale for name, scale in names.items() if not name.startswith(("blocks.", "norm."))}
    assert others == {0.5**4}
    assert rule("head.weight", torch.zeros(2, 2)).lr_scale == 1


def test_tables_of_relative_positions_are_decayed_as_in_beits_code() -> None:
    encoder = build_encoder(EncoderConfig(name="vit_tiny_patch16_224", position="relative", depth=2), mask_token=False)
    rule = LayerDecay(encoder, 1.0)
    decayed = {name for name, parameter in encoder.named_parameters() if rule(name, parameter).decay}
    assert any("relative_position_bias_table" in name for name in decayed)
    assert not any(name.endswith(("bias", "cls_token", "norm1.weight", "gamma_1")) for name in decayed)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 9])
def test_only_the_last_blocks_are_left_to_learn(blocks: int) -> None:
    encoder = build_encoder(VIT, mask_token=False)
    freeze_below(encoder, blocks)
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    expected = {
        name
        for name, _ in encoder.named_parameters()
        if any(f"blocks.{3 - 1 - back}." in name for back in range(min(blocks, 3)))
        or (blocks and name.startswith("vit.norm."))
    }
    assert learning == expected


def test_all_learn_without_a_number_and_nonsense_is_refused() -> None:
    encoder = build_encoder(VIT, mask_token=False)
    freeze_below(encoder, None)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    with pytest.raises(ValueError, match=r"^the number of blocks to tune must be 0 or more, got -1$"):
        freeze_below(encoder, -1)
    with pytest.raises(ValueError, match=r"^layer decay must lie in \(0, 1\], got 0$"):
        LayerDecay(encoder, 0)


def test_every_parameter_has_a_layer() -> None:
    for name in ("resnet18", "convnext_atto"):
        encoder = build_encoder(EncoderConfig(name=name, image_height=64, image_width=64), mask_token=False)
        assert set(layers(encoder)) == set(encoder.parameters())
        assert block_count(encoder) > encoder.depth
    assert block_count(build_encoder(VIT, mask_token=False)) == 3
