"""Windows agree with masked attention over the whole grid, and the pyramid has ViTDet's layers."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmask.models.build import build_encoder, build_vit
from unmask.models.encoder_config import EncoderConfig
from unmask.models.simple_pyramid import LEVELS, SimplePyramid, global_blocks, windowed_block
from unmask.models.vit import VitEncoder

PLAIN = EncoderConfig(
    name="vit_tiny_patch16_224", image_height=40, image_width=56, patch_size=8, depth=4, width=24, heads=2
)
CONFIGS = {
    "learned": PLAIN,
    "registers": EncoderConfig(**vars(PLAIN) | {"name": "vit_small_patch14_reg4_dinov2"}),
    "no class token": EncoderConfig(**vars(PLAIN) | {"class_token": False, "position": "sincos"}),
    "shared table": EncoderConfig(**vars(PLAIN) | {"position": "relative"}),
    "own tables": EncoderConfig(**vars(PLAIN) | {"position": "relative_blocks"}),
    "rotary": EncoderConfig(**vars(PLAIN) | {"name": "eva02_tiny_patch14_224"}),
    "rotary, registers": EncoderConfig(
        **vars(PLAIN) | {"name": "vit_small_patch16_dinov3", "heads": None, "width": None}
    ),
}


def build(config: EncoderConfig, seed: int = 0) -> VitEncoder:
    """An encoder in float64 whose every parameter is random, tables of positions too."""
    torch.manual_seed(seed)
    encoder = build_vit(config, mask_token=False).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def masked_block(encoder: VitEncoder, index: int, patches_BND: Tensor, window_of_N: Tensor) -> Tensor:
    """timm's block over all tokens of the image, in which a mask hides prefix tokens and other windows from a patch."""
    vit, prefix = encoder.vit, encoder.prefix
    allowed_LL = torch.zeros(prefix + len(window_of_N), prefix + len(window_of_N), dtype=torch.bool)
    allowed_LL[prefix:, prefix:] = window_of_N[:, None] == window_of_N
    allowed_LL[:prefix] = True
    mask_LL = torch.zeros(allowed_LL.shape, dtype=torch.float64).masked_fill(~allowed_LL, -math.inf)
    tokens = torch.cat([torch.randn(len(patches_BND), prefix, encoder.width).double(), patches_BND], dim=1)
    block = cast(Any, vit.blocks[index])
    if encoder.config.position.startswith("relative"):
        shared = vit.rel_pos_bias() if vit.rel_pos_bias is not None else 0
        return block(tokens, shared_rel_pos_bias=shared + mask_LL)[:, prefix:]
    if encoder.config.name.startswith(("eva", "vit_small_patch16_dinov3")):
        return block(tokens, rope=vit.rope.get_embed(list(encoder.grid)), attn_mask=mask_LL)[:, prefix:]
    return block(tokens, attn_mask=mask_LL)[:, prefix:]


def brute_windows(grid: tuple[int, int], window: int) -> Tensor:
    """The window of every patch: each side of the grid in the fewest parts of at most `window`, longer ones first."""
    sides = [
        torch.cat(
            [
                torch.full((len(part),), place)
                for place, part in enumerate(torch.arange(side).tensor_split(-(-side // window)))
            ]
        )
        for side in grid
    ]
    return (sides[0][:, None] * 1000 + sides[1]).flatten()


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_a_windowed_block_is_the_whole_block_with_a_mask(kind: str, window: int) -> None:
    encoder = build(CONFIGS[kind])
    patches_BND = torch.randn(2, 35, encoder.width, dtype=torch.float64)
    expected = masked_block(encoder, 1, patches_BND, brute_windows((5, 7), window))
    # timm's rotations are float32.
    tolerance = 1e-5 if "rotary" in kind else 1e-12
    torch.testing.assert_close(windowed_block(encoder, 1, patches_BND, window), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["learned", "shared table", "own tables", "rotary"])
@torch.no_grad()
def test_after_the_windows_the_encoder_is_as_before(kind: str) -> None:
    encoder = build(CONFIGS[kind])
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    tokens = encoder(images)
    windowed_block(encoder, 0, torch.randn(1, 35, 24, dtype=torch.float64), 3)
    after = encoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(encoder(images), tokens)


@torch.no_grad()
def test_one_window_as_large_as_the_grid_is_the_encoder_itself() -> None:
    encoder = build(CONFIGS["learned"])
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    (last,) = encoder.block_outputs(images, (3,))
    expected = last[:, 1:].transpose(1, 2).unflatten(2, (5, 7))
    for window, count in ((7, 1), (None, 1), (2, 4), (2, 9)):
        pyramid = SimplePyramid(encoder, window=window, global_count=count).double()
        assert torch.equal(pyramid.last_map(images), expected), (window, count)


@torch.no_grad()
def test_without_prefix_tokens_windows_of_the_whole_grid_are_global_attention() -> None:
    encoder = build(CONFIGS["no class token"])
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    patches = encoder.embed(images)
    for index in range(4):
        patches = windowed_block(encoder, index, patches, 7)
    (last,) = encoder.block_outputs(images, (3,))
    torch.testing.assert_close(patches, last, rtol=0, atol=1e-12)


def test_in_windowed_blocks_nothing_crosses_a_windows_border_and_in_a_global_block_all_does() -> None:
    encoder = build(CONFIGS["registers"])
    images = torch.randn(1, 3, 40, 56, dtype=torch.float64, requires_grad=True)
    patches = encoder.patches(encoder.embed(images))
    for index in range(3):
        patches = windowed_block(encoder, index, patches, 4)
    # Rows 0-2 and 3-4, columns 0-3 and 4-6: the patch at row 1, column 5 sees the pixels of its window alone.
    (gradient,) = torch.autograd.grad(patches[0, 1 * 7 + 5].square().sum(), images, retain_graph=True)
    seen = torch.zeros(40, 56, dtype=torch.bool)
    seen[:24, 32:] = True
    touched = gradient.abs().sum(dim=(0, 1)) > 0
    assert torch.equal(touched, seen)
    patches = windowed_block(encoder, 3, patches, 7)
    (gradient,) = torch.autograd.grad(patches[0, 1 * 7 + 5].square().sum(), images)
    assert bool((gradient.abs().sum(dim=(0, 1)) > 0).all())


@torch.no_grad()
def test_windows_and_global_blocks_take_turns_as_in_vitdet() -> None:
    encoder = build(EncoderConfig(**vars(CONFIGS["no class token"]) | {"depth": 8}))
    images = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    pyramid = SimplePyramid(encoder, window=4, global_count=4).double()
    patches = encoder.embed(images)
    whole, parts = torch.zeros(35), brute_windows((5, 7), 4)
    for index in range(8):
        patches = masked_block(encoder, index, patches, whole if index in (1, 3, 5, 7) else parts)
    expected = patches.transpose(1, 2).unflatten(2, (5, 7))
    torch.testing.assert_close(pyramid.last_map(images), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["learned", "own tables", "shared table", "rotary"])
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = build(EncoderConfig(**vars(CONFIGS[kind]) | {"checkpointing": checkpointing}))
        torch.manual_seed(1)
        pyramid = SimplePyramid(encoder, width=8, window=3, global_count=2).double()
        images = torch.randn(1, 3, 40, 56, dtype=torch.float64)
        sum(value.square().sum() for value in pyramid(images).values()).backward()
        gradients.append({name: value.grad for name, value in pyramid.named_parameters()})
    assert any("table" in name for name in gradients[0]) == ("table" in kind)
    for name, gradient in gradients[0].items():
        assert bool(gradient.any()) != name.endswith("cls_token"), name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-9)


def test_global_blocks_end_each_part_of_the_depth() -> None:
    assert global_blocks(12, 4) == {2, 5, 8, 11}  # detectron2's ViTDet-B
    assert global_blocks(24, 4) == {5, 11, 17, 23}  # ViTDet-L
    assert global_blocks(32, 4) == {7, 15, 23, 31}  # ViTDet-H


@settings(max_examples=50, deadline=None)
@given(depth=st.integers(1, 40), count=st.integers(1, 50))
def test_the_last_block_is_always_global_and_there_are_as_many_as_asked_for(depth: int, count: int) -> None:
    found = global_blocks(depth, count)
    assert len(found) == min(depth, count)
    assert max(found) == depth - 1
    assert min(found) >= 0


def detectron2_stages(width: int, out: int) -> list[int]:
    """Parameters of each stage, counted from detectron2's SimpleFeaturePyramid with norm "LN"."""

    def tail(channels: int) -> int:
        return channels * out + 2 * out + 9 * out * out + 2 * out

    up = width * (width // 2) * 4 + width // 2
    quarter = up + 2 * (width // 2) + (width // 2) * (width // 4) * 4 + width // 4
    return [quarter + tail(width // 4), up + tail(width // 2), tail(width), tail(width)]


def test_the_pyramid_has_vitdets_layers_and_strides() -> None:
    encoder = build_vit(
        EncoderConfig(**vars(PLAIN) | {"patch_size": 16, "image_height": 96, "image_width": 160}), mask_token=False
    )
    pyramid = SimplePyramid(encoder, width=32)
    counted = [sum(parameter.numel() for parameter in stage.parameters()) for stage in pyramid.stages]
    assert counted == detectron2_stages(24, 32)
    assert pyramid.strides == (4, 8, 16, 32, 64)
    assert pyramid.out_channels == 32
    maps = pyramid(torch.randn(2, 3, 96, 160))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        name: (2, 32, math.ceil(96 / stride), math.ceil(160 / stride))
        for name, stride in zip(LEVELS, pyramid.strides, strict=True)
    }
    assert torch.equal(maps["pool"], maps["3"][:, :, ::2, ::2])


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(name="resnet18", image_height=96, image_width=64),
        EncoderConfig(
            name="convmae_base_patch16",
            image_height=48,
            image_width=64,
            width=24,
            heads=2,
            depth=2,
            stage_widths=(8, 16),
        ),
        EncoderConfig(name="igpt_small", image_height=8, image_width=12, width=16, heads=2, depth=3),
    ],
    ids=lambda config: config.name,
)
@torch.no_grad()
def test_other_encoders_give_their_last_map(config: EncoderConfig) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(config, mask_token=False).eval()
    images = torch.randn(2, 3, config.image_height, config.image_width)
    pyramid = SimplePyramid(encoder, width=8, window=1)
    assert isinstance(pyramid.stages[2][0], nn.Conv2d)
    assert torch.equal(pyramid.last_map(images).flatten(2).transpose(1, 2), encoder(images))
    maps = pyramid(images)
    assert [value.shape[2] for value in maps.values()] == [
        math.ceil(config.image_height / stride) for stride in pyramid.strides
    ]


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    encoder = build_vit(PLAIN, mask_token=False)
    with pytest.raises(ValueError, match=r"^a window's side must be at least 1, got 0$"):
        SimplePyramid(encoder, window=0)
    with pytest.raises(ValueError, match=r"^the number of global blocks must be at least 1, got 0$"):
        SimplePyramid(encoder, global_count=0)
