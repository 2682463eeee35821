"""ConvMAE's encoder against a plain dense one, what a hidden patch can never reach, sizes, files and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.models.build import build_encoder, build_vit
from unmask.models.encoder_config import EncoderConfig
from unmask.models.hybrid import HYBRIDS, HybridEncoder, hybrid_sizes
from unmask.models.positions import sincos_positions
from unmask.models.pretrained import HEADER, encoder_file, open_encoder, read_encoder

TINY = EncoderConfig(
    name="convmae_base_patch16",
    image_height=32,
    image_width=40,
    patch_size=8,
    width=24,
    depth=2,
    heads=3,
    stage_widths=(8, 12),
    stage_depths=(1, 2),
    stage_mlp_ratios=(2.0, 3.0),
)
GRID = (4, 5)


def _build(config: EncoderConfig = TINY) -> HybridEncoder:
    """An encoder in float64 and eval mode, with noise on all trainable values."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        encoder = build_encoder(config, mask_token=False).eval().double()
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    assert isinstance(encoder, HybridEncoder)
    return encoder


@pytest.fixture
def pictures(images: Tensor) -> Tensor:
    """Three images [3, 3, 32, 40] in float64."""
    return images.double()


def _pointwise(layer: nn.Linear, x_BDHW: Tensor) -> Tensor:
    return F.conv2d(x_BDHW, layer.weight[:, :, None, None], layer.bias)


def _strided(layer: nn.Linear, x_BDHW: Tensor, stride: int) -> Tensor:
    weight = layer.weight.unflatten(1, (stride, stride, -1)).permute(0, 3, 1, 2)
    return F.conv2d(x_BDHW, weight, layer.bias, stride=stride)


def _normed(norm: nn.LayerNorm, x_BDHW: Tensor) -> Tensor:
    return norm(x_BDHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _dense(encoder: HybridEncoder, images: Tensor, hidden_BN: Tensor | None) -> Tensor:
    """The paper's way: convolutions over whole maps, with the up-sampled mask, and visible tokens in the end."""
    hybrid: Any = encoder.hybrid
    hidden = torch.zeros(len(images), 20, dtype=torch.bool) if hidden_BN is None else hidden_BN
    keep_B1HW = (~hidden).view(-1, 1, *GRID).double()

    def embed(layer: Any, x: Tensor) -> Tensor:
        return F.gelu(_normed(layer.norm, _strided(layer.proj, x, layer.stride)))

    x, added = images, []
    for stage, side in zip(hybrid.stages, (4, 2), strict=True):
        x = embed(stage.embed, x)
        mask = keep_B1HW.repeat_interleave(side, 2).repeat_interleave(side, 3)
        for block in stage.blocks:
            inner = _pointwise(block.conv1, _normed(block.norm1, x)) * mask
            inner = F.conv2d(inner, block.attn.weight, block.attn.bias, padding=2, groups=inner.shape[1])
            x = x + _pointwise(block.conv2, inner)
            x = x + _pointwise(block.mlp[2], F.gelu(_pointwise(block.mlp[0], _normed(block.norm2, x))))
        added.append(_strided(stage.fuse, x, side).flatten(2).transpose(1, 2))
    tokens = hybrid.proj(embed(hybrid.embed, x).flatten(2).transpose(1, 2)) + hybrid.pos_embed

    def visible(values_BND: Tensor) -> Tensor:
        return values_BND[~hidden].unflatten(0, (len(images), -1))

    tokens = visible(tokens)
    for block in hybrid.blocks:
        tokens = block(tokens)
    out: Tensor = hybrid.norm(tokens + visible(added[0]) + visible(added[1]))
    return out


@torch.no_grad()
def test_whole_images_and_visible_patches_are_as_in_a_dense_network(pictures: Tensor, mask: Tensor) -> None:
    encoder = _build()
    whole, visible = encoder(pictures), encoder(pictures, drop_BN=mask)
    assert (whole.shape, visible.shape) == ((3, 20, 24), (3, 12, 24))
    torch.testing.assert_close(whole, _dense(encoder, pictures, None), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(visible, _dense(encoder, pictures, mask), rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_a_dense_network(pictures: Tensor, mask: Tensor) -> None:
    encoder = _build()
    weights = torch.randn(3, 12, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad((encoder(pictures, drop_BN=mask) * weights).sum(), trainable)
    dense = torch.autograd.grad((_dense(encoder, pictures, mask) * weights).sum(), trainable)
    for mine, theirs in zip(ours, dense, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_hidden_pixels_change_nothing_and_visible_ones_do(pictures: Tensor, mask: Tensor) -> None:
    encoder = _build()
    hidden_B1HW = mask.view(3, 1, *GRID).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(hidden_B1HW, torch.randn_like(pictures), pictures)
    assert torch.equal(encoder(other, drop_BN=mask), encoder(pictures, drop_BN=mask))
    assert not torch.allclose(encoder(other), encoder(pictures))


@torch.no_grad()
def test_several_masks_of_an_image_are_as_several_images(pictures: Tensor, mask: Tensor) -> None:
    encoder = _build()
    masks = torch.cat([mask, mask.flip(1)])
    together = encoder(pictures, drop_BN=masks)
    apart = torch.cat([encoder(pictures, drop_BN=mask), encoder(pictures, drop_BN=mask.flip(1))])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_images_of_another_size_get_positions_of_their_own(pictures: Tensor) -> None:
    encoder = _build()
    wide = torch.cat([pictures, pictures.flip(3)], dim=3)
    before = encoder(wide)
    encoder.set_image_size(32, 80)
    assert (encoder.grid, encoder.image_size) == ((4, 10), (32, 80))
    assert not encoder.hybrid.pos_embed.requires_grad
    torch.testing.assert_close(encoder(wide), before, rtol=1e-12, atol=1e-12)
    expected = sincos_positions((4, 10), 24, prefix=0).double()
    torch.testing.assert_close(encoder.hybrid.pos_embed.data, expected, rtol=0, atol=0)


@torch.no_grad()
def test_attention_of_the_last_block_is_a_share(pictures: Tensor) -> None:
    attention_BhN = _build().attention(pictures)
    assert attention_BhN.shape == (3, 3, 20)
    torch.testing.assert_close(attention_BhN.sum(dim=-1), torch.ones(3, 3, dtype=torch.float64))


@torch.no_grad()
def test_without_a_final_norm_tokens_are_the_bare_sum(pictures: Tensor) -> None:
    encoder, bare = _build(), _build(replace(TINY, final_norm=False))
    assert isinstance(bare.hybrid.norm, nn.Identity)
    bare.load_state_dict(encoder.state_dict(), strict=False)
    torch.testing.assert_close(encoder.hybrid.norm(bare(pictures)), encoder(pictures), rtol=1e-12, atol=1e-12)


def test_recomputed_activations_give_the_same_gradients(pictures: Tensor, mask: Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = _build(replace(TINY, checkpointing=checkpointing))
        encoder(pictures, drop_BN=mask).square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters() if parameter.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.equal(plain, recomputed)


def test_stochastic_depth_drops_whole_images_and_rises_with_depth(pictures: Tensor) -> None:
    encoder = _build(replace(TINY, drop_path=0.4)).train()
    rates = [module.drop_prob for name, module in encoder.named_modules() if name.endswith(("drop_path", "drop_path1"))]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]), atol=1e-6, rtol=0)
    torch.manual_seed(0)
    assert not torch.allclose(encoder(pictures), encoder(pictures))


@pytest.mark.parametrize("name", list(HYBRIDS))
def test_sizes_are_those_of_the_name(name: str) -> None:
    sizes = hybrid_sizes(EncoderConfig(name=name))
    assert sizes == HYBRIDS[name]
    assert sizes.widths[2] // sizes.heads == 64
    with torch.device("meta"):
        encoder = HybridEncoder(EncoderConfig(name=name), mask_token=False)
    assert (encoder.grid, encoder.patch, encoder.prefix, encoder.depth) == ((14, 14), (16, 16), 0, sizes.depths[2])
    assert not encoder.has_class_token


def test_stages_follow_a_width_that_is_set() -> None:
    sizes = hybrid_sizes(EncoderConfig(name="convmae_base_patch16", width=96, mlp_ratio=2.0, depth=3, heads=6))
    assert (sizes.widths, sizes.depths, sizes.mlp_ratios) == ((32, 48, 96), (2, 2, 3), (2.0, 2.0, 2.0))
    assert hybrid_sizes(TINY).widths == (8, 12, 24)


def test_initial_values_are_the_authors() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(
        EncoderConfig(name="convmae_tiny_patch16", image_height=32, image_width=32), mask_token=False
    )
    assert isinstance(encoder, HybridEncoder)
    hybrid: Any = encoder.hybrid
    for linear in (hybrid.proj, hybrid.blocks[0].mlp.fc1, hybrid.embed.proj):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
    # A convolution as torch makes it.
    bound = hybrid.stages[0].blocks[0].conv1.in_features ** -0.5
    assert 0.95 * bound < hybrid.stages[0].blocks[0].conv1.weight.abs().max() <= bound


@torch.no_grad()
def test_the_file_says_that_timm_cannot_read_it_and_we_can(pictures: Tensor, tmp_path: Path) -> None:
    encoder = _build().float()
    path = tmp_path / "encoder.safetensors"
    tensors, metadata = encoder_file(encoder, mean=(0.5,) * 3, std=(0.2,) * 3, facts={"method": "convmae"})
    save_file(tensors, path, metadata=metadata)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    assert header["timm_name"] is None
    assert header["read_with"] == "unmask.open_encoder; timm has no such network"
    read = read_encoder(path)
    assert read.encoder.config == encoder.config
    assert torch.equal(read.encoder.eval()(pictures.float()), encoder(pictures.float()))
    with pytest.raises(ValueError, match=r"^timm has no weights for 'convmae_base_patch16'$"):
        open_encoder("timm:convmae_base_patch16")


def test_what_a_hybrid_cannot_be_is_refused(pictures: Tensor, mask: Tensor) -> None:
    def refused(sentence: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            build_encoder(replace(TINY, **changes), mask_token=False)

    refused("^there is no encoder named 'convmae_bas'; ConvMAE's are convmae_tiny_patch16, ", name="convmae_bas")
    refused(r"^'convmae_base_patch16' has no position 'learned' \(its own are sin-cos\)$", position="learned")
    refused("^'convmae_base_patch16' has no class token$", class_token=True)
    refused("^'convmae_base_patch16' has no layer scale$", layer_scale=0.1)
    refused("^the patch size of 'convmae_base_patch16' must be a multiple of 4, got 6$", patch_size=6)
    refused("^encoder width 24 is not divisible by its 5 heads$", heads=5)
    refused("must be divisible by 4 for its sin-cos positions, got 30$", width=30)
    refused("^image height 36 is not divisible by the patch size 8$", image_height=36)
    refused("^encoder stage depth must be at least 1, got 0$", stage_depths=(1, 0))
    with pytest.raises(ValueError, match=r"leaves hidden patches out and knows no mask token; choose a ViT for this"):
        build_encoder(TINY, mask_token=True)
    with pytest.raises(ValueError, match=r"^this method needs a ViT, not 'convmae_base_patch16'$"):
        build_vit(TINY, mask_token=False)
    encoder = _build()
    with pytest.raises(
        ValueError, match=r"^'convmae_base_patch16' knows no mask token; it can only leave hidden patches"
    ):
        encoder(pictures, replace_BN=mask)
    with pytest.raises(ValueError, match=r"^the encoder takes 3 channels, got images of 1$"):
        encoder(pictures[:, :1])
    with pytest.raises(ValueError, match=r"^image size 32x36 is not divisible by the patch size 8x8$"):
        encoder(pictures[..., :36])
    with pytest.raises(ValueError, match=r"^image width 36 is not divisible by the patch size 8$"):
        encoder.set_image_size(32, 36)
    with pytest.raises(
        ValueError, match=r"^'vit_tiny_patch16_224' has no stages of convolutions to set; those belong to"
    ):
        build_encoder(EncoderConfig(name="vit_tiny_patch16_224", stage_widths=(8, 8)), mask_token=False)
