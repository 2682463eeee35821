"""The four maps are those that BEiT's code makes of the same blocks, for every kind of encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unmask.models.block_pyramid import BlockPyramid, pyramid_blocks
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.vit import VitEncoder

Build = Callable[[EncoderConfig], Encoder]
OTHERS = [
    EncoderConfig(name="convmae_tiny_patch16", image_height=32, image_width=48, depth=2),
    EncoderConfig(name="resnet18", image_height=64, image_width=96),
    EncoderConfig(name="convnext_atto", image_height=64, image_width=96),
    EncoderConfig(name="igpt_tiny", image_height=16, image_width=24, patch_size=8, width=48, depth=3, heads=3),
]


def test_blocks_are_beits_for_base_and_large() -> None:
    assert pyramid_blocks(12) == (3, 5, 7, 11)
    assert pyramid_blocks(24) == (7, 11, 15, 23)


@pytest.mark.parametrize("depth", range(1, 49))
def test_blocks_of_any_depth_are_the_nearest_ones_and_end_with_the_last(depth: int) -> None:
    blocks = pyramid_blocks(depth)
    assert list(blocks) == sorted(blocks)
    assert blocks[0] >= 0
    assert blocks[-1] == depth - 1
    for block, share in zip(blocks, (1 / 3, 1 / 2, 2 / 3, 1), strict=True):
        assert abs(block + 1 - depth * share) <= max(0.5, 1 - depth * share)


def beits_maps(pyramid: BlockPyramid, images: Tensor) -> list[Tensor]:
    """What `forward_features` of BEiT's segmentation backbone computes, with the pyramid's weights."""
    encoder = pyramid.encoder
    assert isinstance(encoder, VitEncoder)
    batch, (rows, columns) = len(images), encoder.grid
    maps = []
    for operation, tokens in zip(
        (pyramid.fourfold, pyramid.twofold, nn.Identity(), nn.MaxPool2d(2, 2)),
        encoder.block_outputs(images, pyramid_blocks(encoder.depth)),
        strict=True,
    ):
        map_BDrc = tokens[:, encoder.prefix :].permute(0, 2, 1).reshape(batch, -1, rows, columns)
        maps.append(operation(map_BDrc.contiguous()))
    return maps


@torch.no_grad()
def test_maps_of_every_vit_are_beits(build: Build, family: EncoderConfig, images: Tensor) -> None:
    pyramid = BlockPyramid(build(replace(family, image_height=32, image_width=48)), frozen=False).eval()
    images = torch.nn.functional.interpolate(images, size=(32, 48))
    maps = pyramid(images)
    assert pyramid.widths == (48, 48, 48, 48)
    assert [tuple(found.shape[2:]) for found in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for found, expected in zip(maps, beits_maps(pyramid, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_upward_layers_are_beits() -> None:
    pyramid = BlockPyramid(build_encoder(EncoderConfig(width=24, depth=1, heads=2), mask_token=False), frozen=False)
    kinds = [type(layer) for layer in pyramid.fourfold]
    assert kinds == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.GELU, nn.ConvTranspose2d]
    for layer in (pyramid.fourfold[0], pyramid.fourfold[3], pyramid.twofold):
        assert isinstance(layer, nn.ConvTranspose2d)
        assert (layer.kernel_size, layer.stride, layer.in_channels, layer.out_channels) == ((2, 2), (2, 2), 24, 24)


@torch.no_grad()
@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config.name)
def test_other_encoders_give_their_last_patches_four_times(config: EncoderConfig) -> None:
    encoder = build_encoder(config, mask_token=False)
    pyramid = BlockPyramid(encoder, frozen=False).eval()
    images = torch.randn(2, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    maps = pyramid(images)
    rows, columns = encoder.grid
    sizes = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), (-(-rows // 2), -(-columns // 2))]
    assert [tuple(found.shape) for found in maps] == [(2, encoder.width, *size) for size in sizes]
    last = encoder.patches(encoder(images)).transpose(1, 2).reshape(2, -1, rows, columns)
    torch.testing.assert_close(maps[2], last)
    torch.testing.assert_close(maps[1], pyramid.twofold(last))


@torch.no_grad()
def test_an_odd_map_loses_no_row_and_other_sizes_follow_where_positions_do(build: Build, tiny: EncoderConfig) -> None:
    pyramid = BlockPyramid(build(tiny), frozen=False).eval()
    maps = pyramid(torch.randn(1, 3, 24, 56))
    assert [tuple(found.shape[2:]) for found in maps] == [(12, 28), (6, 14), (3, 7), (2, 4)]
    with pytest.raises(ValueError, match="30x40 is not divisible by the patch size 8x8"):
        pyramid(torch.randn(1, 3, 30, 40))
    relative = BlockPyramid(build(replace(tiny, position="relative")), frozen=False).eval()
    with pytest.raises(ValueError, match="relative positions were built for 4x5 patches, got 3x7"):
        relative(torch.randn(1, 3, 24, 56))


def test_all_but_the_final_norm_learns(tiny: EncoderConfig) -> None:
    encoder = build_encoder(replace(tiny, depth=4), mask_token=False)
    pyramid = BlockPyramid(encoder, frozen=False).train()
    sum(found.square().mean() for found in pyramid(torch.randn(2, 3, 32, 40))).backward()
    without = {name for name, parameter in pyramid.named_parameters() if parameter.grad is None}
    assert without == {"encoder.vit.norm.weight", "encoder.vit.norm.bias"}
    assert not any(parameter.requires_grad for name, parameter in pyramid.named_parameters() if name in without)


def test_a_frozen_encoder_takes_no_gradient_and_stays_in_eval_mode(tiny: EncoderConfig) -> None:
    encoder = build_encoder(replace(tiny, drop_path=0.9), mask_token=False)
    whole = nn.Sequential(BlockPyramid(encoder, frozen=True)).train()
    pyramid = whole[0]
    assert isinstance(pyramid, BlockPyramid)
    assert pyramid.training
    assert pyramid.fourfold.training
    assert not any(part.training for part in encoder.modules())
    images = torch.randn(2, 3, 32, 40)
    first, second = pyramid(images), pyramid(images)
    assert torch.equal(first[2], second[2])
    assert not first[2].requires_grad
    sum(found.square().mean() for found in first).backward()
    learning = {name for name, parameter in pyramid.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in pyramid.named_parameters() if not name.startswith("encoder.")}
