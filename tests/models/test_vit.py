"""The three input modes against timm itself, and what an encoder refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import timm
import torch
from timm.models.beit import Beit
from torch import Tensor

from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig, timm_arguments
from unmask.models.positions import sincos_positions

Build = Callable[[EncoderConfig], Encoder]


def _timm_tokens(encoder: Encoder, images_BCHW: Tensor, hidden_BN: Tensor | None = None) -> Tensor:
    """timm's own tokens of all patches, where nothing attends to hidden patches."""
    vit = encoder.vit
    if hidden_BN is None:
        return cast(Tensor, vit.forward_features(images_BCHW))
    prefix_BP = hidden_BN.new_zeros(len(hidden_BN), encoder.prefix)
    hidden_B11L = torch.cat([prefix_BP, hidden_BN], dim=1)[:, None, None, :]
    adds_bias = isinstance(vit, Beit)
    if not adds_bias:
        return cast(Tensor, vit.forward_features(images_BCHW, attn_mask=~hidden_B11L))
    tokens = torch.cat([vit.cls_token.expand(len(images_BCHW), -1, -1), vit.patch_embed(images_BCHW)], dim=1)
    if vit.pos_embed is not None:
        tokens = tokens + vit.pos_embed
    bias = torch.zeros(hidden_B11L.shape).masked_fill(hidden_B11L, -torch.inf)
    if vit.rel_pos_bias is not None:
        bias = bias + vit.rel_pos_bias()
    for block in vit.blocks:
        tokens = block(tokens, shared_rel_pos_bias=bias)
    return cast(Tensor, vit.norm(tokens))


@torch.no_grad()
def test_all_patches_give_timms_own_tokens(build: Build, family: EncoderConfig, images: Tensor) -> None:
    encoder = build(family)
    tokens_BLD = encoder(images)
    assert tokens_BLD.shape == (3, encoder.prefix + 20, 48)
    torch.testing.assert_close(tokens_BLD, _timm_tokens(encoder, images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pooling_by_mean_is_timms_own_output(build: Build, family: EncoderConfig, images: Tensor) -> None:
    encoder = build(family)
    torch.testing.assert_close(encoder.pool(encoder(images)), encoder.vit(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dropping_patches_is_attending_to_visible_ones_alone(
    build: Build, family: EncoderConfig, images: Tensor, mask: Tensor
) -> None:
    encoder = build(family)
    if family.name.startswith("beit") and family.position == "native":
        sentence = "^patches cannot be dropped where every block has its own relative positions$"
        with pytest.raises(ValueError, match=sentence):
            encoder(images, drop_BN=mask)
        return
    reference_BLD = _timm_tokens(encoder, images, mask)
    patches = encoder.patches(reference_BLD)[~mask].unflatten(0, (3, 12))
    expected = torch.cat([reference_BLD[:, : encoder.prefix], patches], dim=1)
    torch.testing.assert_close(encoder(images, drop_BN=mask), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_replaced_patches_show_nothing_of_the_image(
    build: Build, family: EncoderConfig, images: Tensor, mask: Tensor
) -> None:
    encoder = build(family)
    hidden_B1HW = mask.view(3, 1, 4, 5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(hidden_B1HW, images.flip(0) * 3 + 1, images)
    tokens_BLD = encoder(images, replace_BN=mask)
    assert tokens_BLD.shape == (3, encoder.prefix + 20, 48)
    torch.testing.assert_close(encoder(other, replace_BN=mask), tokens_BLD, rtol=0, atol=0)
    assert not torch.allclose(encoder(other), encoder(images), atol=1e-2)


@torch.no_grad()
def test_replacing_none_is_the_whole_image_and_all_is_the_mask_token_alone(
    build: Build, family: EncoderConfig, images: Tensor
) -> None:
    encoder = build(family)
    none = torch.zeros(3, 20, dtype=torch.bool)
    torch.testing.assert_close(encoder(images, replace_BN=none), encoder(images), rtol=0, atol=0)
    blind = encoder(images, replace_BN=~none)
    torch.testing.assert_close(blind[0], blind[1], rtol=1e-5, atol=1e-5)
    assert encoder.mask_token is not None
    encoder.mask_token.mul_(-3)
    assert not torch.allclose(encoder(images, replace_BN=~none), blind, atol=1e-2)


@torch.no_grad()
def test_mask_tokens_get_the_position_of_what_they_hide(build: Build, tiny: EncoderConfig, images: Tensor) -> None:
    encoder = build(tiny)
    blind = encoder.patches(encoder(images[:1], replace_BN=torch.ones(1, 20, dtype=torch.bool)))
    assert torch.cdist(blind, blind).squeeze(0).fill_diagonal_(1).min() > 1e-2


def test_mask_tokens_take_a_gradient_only_where_they_stand(build: Build, tiny: EncoderConfig, images: Tensor) -> None:
    encoder = build(tiny)
    none = torch.zeros(3, 20, dtype=torch.bool)
    projection = encoder.vit.patch_embed.proj.weight
    for mask_BN, to_token, to_patches in ((none, False, True), (~none, True, False)):
        encoder.zero_grad(set_to_none=True)
        encoder.patches(encoder(images, replace_BN=mask_BN)).cos().sum().backward()
        assert encoder.mask_token is not None
        assert encoder.mask_token.grad is not None
        assert bool(encoder.mask_token.grad.any()) is to_token
        assert bool(projection.grad.any()) is to_patches


@torch.no_grad()
def test_learnt_positions_follow_images_of_another_size(build: Build, tiny: EncoderConfig) -> None:
    encoder = build(tiny)
    images = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(3))
    name, arguments = timm_arguments(tiny)
    flexible: Any = timm.create_model(name, **arguments, dynamic_img_size=True).eval()
    flexible.load_state_dict(encoder.vit.state_dict())
    torch.testing.assert_close(encoder(images), flexible.forward_features(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_any_encoder_can_be_set_to_another_image_size(build: Build, family: EncoderConfig) -> None:
    encoder = build(family)
    encoder.set_image_size(48, 32)
    images = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(3))
    assert (encoder.image_size, encoder.grid) == ((48, 32), (6, 4))
    assert (encoder.config.image_height, encoder.config.image_width) == (48, 32)
    torch.testing.assert_close(encoder(images), _timm_tokens(encoder, images), rtol=1e-5, atol=1e-5)
    # The encoder that its configuration describes has the same shapes: it can be saved and built again.
    build_encoder(encoder.config, mask_token=True).load_state_dict(encoder.state_dict())


def test_sincos_positions_are_computed_anew_for_another_size(build: Build, tiny: EncoderConfig) -> None:
    encoder = build(replace(tiny, position="sincos"))
    encoder.set_image_size(64, 16)
    torch.testing.assert_close(encoder.vit.pos_embed, sincos_positions((8, 2), 48), rtol=0, atol=0, check_dtype=False)
    assert not encoder.vit.pos_embed.requires_grad


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_relative_positions_refuse_another_size_until_it_is_set(build: Build, tiny: EncoderConfig, name: str) -> None:
    position = "relative" if name.startswith("vit_tiny") else "native"
    encoder = build(replace(tiny, name=name, position=cast(Any, position)))
    sentence = "^relative positions were built for 4x5 patches, got 6x4; call set_image_size first$"
    with pytest.raises(ValueError, match=sentence):
        encoder(torch.zeros(1, 3, 48, 32))


@torch.no_grad()
def test_attention_is_a_share_for_each_head_and_patch(build: Build, family: EncoderConfig, images: Tensor) -> None:
    encoder = build(family)
    attention_BhN = encoder.attention(images)
    assert attention_BhN.shape == (3, 3, 20)
    assert (attention_BhN >= 0).all()
    total_Bh = attention_BhN.sum(dim=2)
    assert (total_Bh <= 1 + 1e-5).all()
    if encoder.prefix == 0:
        torch.testing.assert_close(total_Bh, torch.ones(3, 3))
    assert attention_BhN.std() > 1e-4


@torch.no_grad()
def test_attention_of_the_class_token_explains_its_output(build: Build, tiny: EncoderConfig, images: Tensor) -> None:
    """With values known, the recorded weights give the last block's attention output."""
    encoder = build(replace(tiny, depth=1))
    block = encoder.vit.blocks[0]
    attn = block.attn
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    handles = [
        attn.register_forward_hook(lambda _, given, __: inputs.append(given[0])),
        attn.proj.register_forward_hook(lambda _, given, __: outputs.append(given[0])),
    ]
    attention_BhN = encoder.attention(images)
    for handle in handles:
        handle.remove()
    values_BLhd = attn.qkv(inputs[0])[..., 96:].unflatten(-1, (3, 16))
    mine_Bh1 = 1 - attention_BhN.sum(dim=2, keepdim=True)
    weights_BhL = torch.cat([mine_Bh1, attention_BhN], dim=2)
    expected = torch.einsum("bhl,blhd->bhd", weights_BhL, values_BLhd).flatten(1)
    torch.testing.assert_close(outputs[0][:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["native", "relative"])
@pytest.mark.parametrize("mode", ["full", "drop_BN", "replace_BN"])
def test_recomputing_activations_gives_the_same_gradients(
    build: Build, tiny: EncoderConfig, images: Tensor, mask: Tensor, position: Any, mode: str
) -> None:
    config = replace(tiny, position=position, drop_path=0.5)
    modes: dict[str, Tensor] = {} if mode == "full" else {mode: mask}
    gradients = []
    for checkpointing in (False, True):
        encoder = build(replace(config, checkpointing=checkpointing)).train()
        torch.manual_seed(0)
        encoder(images, **modes).pow(2).mean().backward()
        gradients.append({name: value.grad for name, value in encoder.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(build: Build, tiny: EncoderConfig, channels: int) -> None:
    encoder = build(replace(tiny, channels=channels))
    assert encoder(torch.zeros(2, channels, 32, 40)).shape == (2, 21, 48)


@torch.no_grad()
def test_pooling_by_class_token(build: Build, tiny: EncoderConfig, images: Tensor) -> None:
    encoder = build(tiny)
    tokens_BLD = encoder(images)
    torch.testing.assert_close(encoder.pool(tokens_BLD, "class"), tokens_BLD[:, 0], rtol=0, atol=0)
    without = build(replace(tiny, name="vit_base_patch16_gap_224"))
    with pytest.raises(ValueError, match=r"^this encoder has no class token; pool by mean$"):
        without.pool(without(images), "class")


def test_unequal_masks_cannot_be_dropped(build: Build, tiny: EncoderConfig, images: Tensor, mask: Tensor) -> None:
    unequal = mask.clone()
    unequal[0] = False
    with pytest.raises(ValueError, match=r"^all samples of a batch must hide equally many patches to drop them, got 0"):
        build(tiny)(images, drop_BN=unequal)


def test_stochastic_depth_grows_with_depth_and_rests_in_eval_mode(build: Build, tiny: EncoderConfig) -> None:
    encoder = build_encoder(replace(tiny, depth=3, drop_path=0.4), mask_token=False)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.vit.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    images = torch.randn(8, 3, 32, 40)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_gap_224", "beit"])
def test_several_masks_of_an_image_are_as_many_images_with_one(
    build: Build, tiny: EncoderConfig, images: Tensor, name: str
) -> None:
    encoder = build(replace(tiny, position="relative") if name == "beit" else replace(tiny, name=name))
    hidden_KBN = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(5)).argsort(dim=2) < 14
    together = encoder(images, drop_BN=hidden_KBN.flatten(0, 1))
    torch.testing.assert_close(together, torch.cat([encoder(images, drop_BN=hidden_BN) for hidden_BN in hidden_KBN]))
