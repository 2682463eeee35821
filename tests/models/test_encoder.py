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

from unmask.models.encoder import Encoder, EncoderConfig, timm_arguments
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
    Encoder(encoder.config, mask_token=True).load_state_dict(encoder.state_dict())


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


def test_sizes_follow_the_configuration(tiny: EncoderConfig) -> None:
    encoder = Encoder(replace(tiny, depth=3, mlp_ratio=2.0), mask_token=False)
    assert (encoder.width, encoder.depth, encoder.prefix, encoder.patch, encoder.grid) == (48, 3, 1, (8, 8), (4, 5))
    assert encoder.vit.blocks[0].mlp.fc1.out_features == 96
    assert encoder.mask_token is None


def _layer_scales(encoder: Encoder) -> set[float]:
    return {value for name, parameter in encoder.named_parameters() if "gamma" in name for value in parameter.tolist()}


@pytest.mark.parametrize(
    ("name", "position", "own"),
    [
        ("vit_tiny_patch16_224", "native", None),
        ("vit_tiny_patch16_224", "relative", None),
        ("deit3_small_patch16_224", "native", 1e-6),
        ("deit3_small_patch16_224", "relative", 1e-6),
        ("beit_base_patch16_224", "native", 0.1),
        ("beit_base_patch16_224", "relative", 0.1),
    ],
)
def test_layer_scale_is_the_names_own_unless_given_and_zero_switches_it_off(
    tiny: EncoderConfig, name: str, position: Any, own: float | None
) -> None:
    config = replace(tiny, name=name, position=position)

    def scales(layer_scale: float | None) -> set[float]:
        return _layer_scales(Encoder(replace(config, layer_scale=layer_scale), mask_token=False))

    assert scales(None) == (set() if own is None else {torch.tensor(own).item()})
    assert scales(0.25) == {0.25}
    assert scales(0.0) == set()


def test_beit_of_the_same_size_stands_in_for_a_vit_with_relative_positions() -> None:
    name, arguments = timm_arguments(EncoderConfig(name="vit_small_patch16_224", position="relative", layer_scale=0.1))
    assert name == "beit_base_patch16_224"
    sizes = {key: arguments[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio", "init_values")}
    assert sizes == {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0, "init_values": 0.1}


def test_relative_positions_start_at_zero_and_residuals_are_damped_with_depth(tiny: EncoderConfig) -> None:
    encoder = Encoder(replace(tiny, position="relative", depth=8), mask_token=False)
    assert encoder.vit.rel_pos_bias.relative_position_bias_table.abs().max() == 0
    first, last = (encoder.vit.blocks[index].attn.proj.weight.std().item() for index in (0, 7))
    assert first / last == pytest.approx(8**0.5, rel=0.1)


def test_xavier_initial_values_are_those_of_maes_authors(tiny: EncoderConfig) -> None:
    encoder = Encoder(replace(tiny, position="sincos", init="xavier"), mask_token=False)
    block = encoder.vit.blocks[1]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, encoder.vit.patch_embed.proj.weight.flatten(1)):
        bound = (6 / (weight.shape[0] + weight.shape[1])) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert block.attn.qkv.bias.abs().max() == 0
    assert encoder.vit.cls_token.std().item() == pytest.approx(0.02, rel=0.5)


def test_sincos_positions_are_fixed(tiny: EncoderConfig) -> None:
    encoder = Encoder(replace(tiny, position="sincos"), mask_token=False)
    assert not encoder.vit.pos_embed.requires_grad
    torch.testing.assert_close(encoder.vit.pos_embed.data, sincos_positions((4, 5), 48), rtol=0, atol=0)


@torch.no_grad()
def test_pooling_by_class_token(build: Build, tiny: EncoderConfig, images: Tensor) -> None:
    encoder = build(tiny)
    tokens_BLD = encoder(images)
    torch.testing.assert_close(encoder.pool(tokens_BLD, "class"), tokens_BLD[:, 0], rtol=0, atol=0)
    without = build(replace(tiny, name="vit_base_patch16_gap_224"))
    with pytest.raises(ValueError, match=r"^this encoder has no class token; pool by mean$"):
        without.pool(without(images), "class")


def _refused(sentence: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=sentence):
        Encoder(replace(EncoderConfig(image_height=32, image_width=32, patch_size=8), **changes), mask_token=False)


def test_names_that_are_no_plain_vit_are_refused() -> None:
    _refused("^'resnet18' is not a plain ViT; use one of vit_\\*, deit\\*, beit\\*, eva02_\\*", name="resnet18")
    for name in (
        "vit_small_r26_s32_224",  # convolutions before the patches
        "deit_tiny_distilled_patch16_224",  # a second class token of its own kind
        "vit_small_patch16_18x2_224",  # blocks side by side
        "vit_base_patch16_xp_224",
        "vit_dpwee_patch16_reg1_gap_256",
        "vit_relpos_small_patch16_224",
        "swin_tiny_patch4_window7_224",
    ):
        _refused(f"^{name!r} is not a plain ViT; ", name=name)
    _refused(
        "^'vit_small_patch16_rope_mixed_224' has a rotation of its own in every block, which is not supported$",
        name="vit_small_patch16_rope_mixed_224",
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_smal_patch16_224", "vit_small_patch16_224"),
        ("vit_base_patch_16_224", "vit_base_patch16_224"),
        ("deit_small_patch16_22", "deit_small_patch16_224"),
        ("vit_tiny_patch16_224.no_such_weights", "vit_tiny_patch16_224"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name: str, near: str) -> None:
    _refused(f"^timm knows no model named '{name}'; near names: .*\\b{near}\\b", name=name)


@pytest.mark.parametrize("name", ["", "hf-hub:somebody/something", "local-dir:/somewhere", "vit_[", "*"])
def test_a_name_is_never_looked_for_outside_timm(name: str) -> None:
    with pytest.raises(ValueError, match=r"^timm knows no model named "):
        timm_arguments(EncoderConfig(name=name))


def test_sizes_that_do_not_fit_are_refused(tiny: EncoderConfig, images: Tensor) -> None:
    _refused("^image height 33 is not divisible by the patch size 8$", image_height=33)
    _refused("^image width 4 is not divisible by the patch size 8$", image_width=4)
    _refused("^encoder width 50 is not divisible by its 6 heads$", width=50)
    _refused("^encoder width 384 is not divisible by its 5 heads$", heads=5)
    encoder = Encoder(tiny, mask_token=False)
    with pytest.raises(ValueError, match=r"^image size 36x40 is not divisible by the patch size 8x8$"):
        encoder(torch.zeros(1, 3, 36, 40))
    with pytest.raises(ValueError, match=r"^image width 30 is not divisible by the patch size 8$"):
        encoder.set_image_size(32, 30)
    with pytest.raises(ValueError, match=r"^the encoder takes 3 channels, got images of 1$"):
        encoder(images[:, :1])
    with pytest.raises(
        ValueError, match=r"^this encoder was built without a mask token; build it with mask_token=True$"
    ):
        encoder(images, replace_BN=torch.zeros(3, 20, dtype=torch.bool))


@pytest.mark.parametrize("field", ["patch_size", "channels", "width", "depth", "heads"])
def test_sizes_below_one_are_refused(tiny: EncoderConfig, field: str) -> None:
    what = field.replace("_", " ")
    with pytest.raises(ValueError, match=rf"^encoder {what} must be at least 1, got 0$"):
        replace(tiny, **cast(Any, {field: 0}))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_shares_of_dropped_paths_are_shares(tiny: EncoderConfig, share: float) -> None:
    with pytest.raises(ValueError, match=rf"^drop path must lie in \[0, 1\), got {share}$"):
        replace(tiny, drop_path=share)


def test_sizes_that_timm_cannot_build_are_refused() -> None:
    _refused(
        "^timm cannot build 'vit_base_patch16_sapiens2' with these sizes \\(", name="vit_base_patch16_sapiens2", depth=1
    )


def test_positions_that_a_family_cannot_have_are_refused() -> None:
    rotary, beit = "eva02_tiny_patch14_224", "beit_base_patch16_224"
    _refused(
        "^'eva02_tiny_patch14_224' has rotary positions; position 'relative' needs", name=rotary, position="relative"
    )
    _refused(
        "^'eva02_tiny_patch14_224' has rotary positions; choose position 'native'$", name=rotary, position="sincos"
    )
    _refused("^'beit_base_patch16_224' adds positions to attention; choose", name=beit, position="sincos")
    sentence = "^'vit_base_patch16_rpn_224' has blocks of its own kind; position 'relative' needs a plain vit_\\* name$"
    _refused(sentence, name="vit_base_patch16_rpn_224", position="relative")
    _refused("^'eva02_tiny_patch14_224' keeps its layer scale as it is; give it another", name=rotary, layer_scale=0.0)


def test_unequal_masks_cannot_be_dropped(build: Build, tiny: EncoderConfig, images: Tensor, mask: Tensor) -> None:
    unequal = mask.clone()
    unequal[0] = False
    with pytest.raises(ValueError, match=r"^all samples of a batch must hide equally many patches to drop them, got 0"):
        build(tiny)(images, drop_BN=unequal)


def test_stochastic_depth_grows_with_depth_and_rests_in_eval_mode(build: Build, tiny: EncoderConfig) -> None:
    encoder = Encoder(replace(tiny, depth=3, drop_path=0.4), mask_token=False)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.vit.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    images = torch.randn(8, 3, 32, 40)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))
