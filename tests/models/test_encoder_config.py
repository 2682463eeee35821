"""What a configuration builds: sizes, initial values, layer scale; and the names and sizes that are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig, timm_arguments
from unmask.models.positions import sincos_positions


def test_sizes_follow_the_configuration(tiny: EncoderConfig) -> None:
    encoder = build_encoder(replace(tiny, depth=3, mlp_ratio=2.0), mask_token=False)
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
        return _layer_scales(build_encoder(replace(config, layer_scale=layer_scale), mask_token=False))

    assert scales(None) == (set() if own is None else {torch.tensor(own).item()})
    assert scales(0.25) == {0.25}
    assert scales(0.0) == set()


def test_beit_of_the_same_size_stands_in_for_a_vit_with_relative_positions() -> None:
    name, arguments = timm_arguments(EncoderConfig(name="vit_small_patch16_224", position="relative", layer_scale=0.1))
    assert name == "beit_base_patch16_224"
    sizes = {key: arguments[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio", "init_values")}
    assert sizes == {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 4.0, "init_values": 0.1}


def test_relative_positions_start_at_zero_and_residuals_are_damped_with_depth(tiny: EncoderConfig) -> None:
    encoder = build_encoder(replace(tiny, position="relative", depth=8), mask_token=False)
    assert encoder.vit.rel_pos_bias.relative_position_bias_table.abs().max() == 0
    first, last = (encoder.vit.blocks[index].attn.proj.weight.std().item() for index in (0, 7))
    assert first / last == pytest.approx(8**0.5, rel=0.1)


def test_xavier_initial_values_are_those_of_maes_authors(tiny: EncoderConfig) -> None:
    encoder = build_encoder(replace(tiny, position="sincos", init="xavier"), mask_token=False)
    block = encoder.vit.blocks[1]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, encoder.vit.patch_embed.proj.weight.flatten(1)):
        bound = (6 / (weight.shape[0] + weight.shape[1])) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert block.attn.qkv.bias.abs().max() == 0
    assert encoder.vit.cls_token.std().item() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_sincos_positions_are_fixed(tiny: EncoderConfig, name: str) -> None:
    encoder = build_encoder(replace(tiny, name=name, position="sincos"), mask_token=False)
    assert not encoder.vit.pos_embed.requires_grad
    torch.testing.assert_close(encoder.vit.pos_embed.data, sincos_positions((4, 5), 48), rtol=0, atol=0)


def _refused(sentence: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_encoder(
            replace(EncoderConfig(image_height=32, image_width=32, patch_size=8), **changes), mask_token=False
        )


def test_names_that_are_no_plain_vit_are_refused() -> None:
    sentence = (
        "^'twins_svt_small' is not a plain ViT; use one of vit_\\*, deit\\*, beit\\*, eva02_\\* and their kin, or a "
    )
    _refused(sentence, name="twins_svt_small")
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
    encoder = build_encoder(tiny, mask_token=False)
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
    rotary = "eva02_tiny_patch14_224"
    _refused(
        "^'eva02_tiny_patch14_224' has rotary positions; position 'relative' needs", name=rotary, position="relative"
    )
    _refused(
        "^'eva02_tiny_patch14_224' has rotary positions; choose position 'native'$", name=rotary, position="sincos"
    )
    sentence = "^'vit_base_patch16_rpn_224' has blocks of its own kind; position 'relative' needs a plain vit_\\* name$"
    _refused(sentence, name="vit_base_patch16_rpn_224", position="relative")
    _refused("^'eva02_tiny_patch14_224' keeps its layer scale as it is; give it another", name=rotary, layer_scale=0.0)
    _refused(
        "^'beit_base_patch16_224' keeps its class token as it is; choose a vit_\\* name to set it$",
        name="beit_base_patch16_224",
        class_token=False,
    )


def test_a_class_token_can_be_taken_out_and_put_in(tiny: EncoderConfig) -> None:
    without = build_encoder(replace(tiny, class_token=False, position="sincos"), mask_token=False)
    assert (without.prefix, without.has_class_token) == (0, False)
    assert without(torch.zeros(1, 3, 32, 40)).shape == (1, 20, 48)
    with_one = build_encoder(replace(tiny, name="vit_base_patch16_gap_224", class_token=True), mask_token=False)
    assert (with_one.prefix, with_one.has_class_token) == (1, True)
