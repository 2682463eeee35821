"""Networks that give maps: their tokens are timm's own features, files are read by timm, and masks are refused."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.models import pretrained
from unmask.models.build import build_encoder, build_vit, fixed_patch, renamed
from unmask.models.convolutional import ConvEncoder, gives_maps
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import encoder_file, read_encoder

# The smallest of several families: batch norm, a norm in the head, another nonlinearity.
NAMES = ("test_resnet", "test_convnext", "test_efficientnet", "resnet18")
TINY = EncoderConfig(name="test_resnet", image_height=64, image_width=96)


def _build(config: EncoderConfig) -> ConvEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(config, mask_token=False).eval()
    assert isinstance(encoder, ConvEncoder)
    return encoder


@pytest.fixture
def wide() -> Tensor:
    """Two images [2, 3, 64, 96]."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_tokens_are_the_places_of_timms_map_row_by_row(name: str, wide: Tensor) -> None:
    encoder = _build(replace(TINY, name=name))
    tokens_BND = encoder(wide)
    plain: Any = timm.create_model(name, num_classes=0)
    stride = plain.feature_info[-1]["reduction"]
    assert (encoder.patch, encoder.grid) == ((stride, stride), (64 // stride, 96 // stride))
    assert (encoder.prefix, encoder.has_class_token, encoder.image_size) == (0, False, (64, 96))
    assert tokens_BND.shape == (2, encoder.grid[0] * encoder.grid[1], encoder.width)
    map_BDrc = encoder.network(wide)
    rows, columns = encoder.grid
    for row in range(rows):
        for column in range(columns):
            assert torch.equal(tokens_BND[:, row * columns + column], map_BDrc[:, :, row, column])


@torch.no_grad()
def test_pooled_features_are_timms_where_the_head_has_no_norm(wide: Tensor) -> None:
    encoder = _build(TINY)
    own = timm.create_model("test_resnet", num_classes=0, global_pool="avg").eval()
    own.load_state_dict(encoder.network.state_dict())
    torch.testing.assert_close(encoder.pool(encoder(wide)), own(wide), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_where_the_head_has_a_norm_every_place_passes_it(wide: Tensor) -> None:
    encoder = _build(replace(TINY, name="test_convnext"))
    network: Any = encoder.network
    places = network.forward_features(wide).permute(0, 2, 3, 1).flatten(1, 2)
    norm = network.head.norm
    expected = nn.functional.layer_norm(places, (encoder.width,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(encoder(wide), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str, wide: Tensor) -> None:
    encoder = _build(replace(TINY, name=name)).train()
    encoder.pool(encoder(wide)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_files_are_read_again_and_by_three_lines_of_timm(
    name: str, wide: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _build(replace(TINY, name=name, channels=3))
    tensors, metadata = encoder_file(encoder, mean=(0.5,) * 3, std=(0.2,) * 3, facts={})
    save_file(tensors, tmp_path / "encoder.safetensors", metadata=metadata)
    read = read_encoder(tmp_path / "encoder.safetensors").encoder.eval()
    assert read.config == encoder.config
    assert torch.equal(read(wide), encoder(wide))
    monkeypatch.chdir(tmp_path)
    documented = textwrap.dedent((pretrained.__doc__ or "").split(":\n\n", 1)[1].split("\n\n`model(images)`")[0])
    names: dict[str, Any] = {"load_file": load_file, "timm": timm}
    exec(f"import json\nfrom safetensors import safe_open\n{documented}", names)
    features = names["model"].eval()(wide).mean(dim=(2, 3))
    torch.testing.assert_close(features, encoder.pool(encoder(wide)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sizes_and_channels_can_be_set(wide: Tensor) -> None:
    encoder = _build(replace(TINY, channels=2))
    encoder.set_image_size(32, 64)
    assert (encoder.grid, encoder.image_size, encoder.config.image_width) == ((1, 2), (32, 64), 64)
    assert encoder(wide[:, :2]).shape == (2, 6, encoder.width)
    deep = _build(replace(TINY, name="resnet18", drop_path=0.2))
    assert deep.timm_model[1] == {"num_classes": 0, "global_pool": "", "in_chans": 3}
    assert _build(replace(TINY, checkpointing=True)).depth == 5


def test_a_network_of_ones_own_is_an_encoder_too(wide: Tensor) -> None:
    config = EncoderConfig(name="mine", image_height=64, image_width=96)
    encoder = ConvEncoder(config, nn.Conv2d(3, 7, 8, stride=8), width=7, stride=8, stages=1)
    assert encoder(wide).shape == (2, 8 * 12, 7)
    assert (encoder.width, encoder.depth, encoder.grid, encoder.patch) == (7, 1, (8, 12), (8, 8))


def test_masks_are_refused(wide: Tensor) -> None:
    sentence = r"^'test_resnet' cannot leave patches out or replace them; choose a ViT for methods that hide patches$"
    encoder = _build(TINY)
    mask_BN = torch.zeros(2, 6, dtype=torch.bool)
    for mode in ({"drop_BN": mask_BN}, {"replace_BN": mask_BN}):
        with pytest.raises(ValueError, match=sentence):
            encoder(wide, **mode)
    with pytest.raises(ValueError, match=sentence):
        build_encoder(TINY, mask_token=True)
    with pytest.raises(ValueError, match=r"^this method needs a ViT, not 'test_resnet'$"):
        build_vit(TINY, mask_token=False)


def test_what_only_a_vit_has_is_refused(wide: Tensor) -> None:
    encoder = _build(TINY)
    with pytest.raises(ValueError, match=r"^'test_resnet' has no attention to show$"):
        encoder.attention(wide)
    with pytest.raises(
        ValueError, match=r"^'test_resnet' has no final norm to take away; choose a ViT for this method$"
    ):
        encoder.remove_norm()
    unwanted: dict[str, Any] = {
        "width": 32,
        "depth": 3,
        "heads": 2,
        "mlp_ratio": 2.0,
        "position": "sincos",
        "init": "xavier",
        "layer_scale": 0.1,
        "patch_size": 8,
        "final_norm": False,
        "class_token": True,
        "stage_widths": (8, 8),
    }
    for field, value in unwanted.items():
        what = field.replace("_", " ")
        with pytest.raises(ValueError, match=rf"^'test_resnet' is no ViT and takes no {what}; leave it at "):
            build_encoder(replace(TINY, **{field: value}), mask_token=False)


def test_sizes_that_do_not_fit_are_refused(wide: Tensor) -> None:
    sentence = r"^image height 48 is not divisible by the stride 32 of 'test_resnet'$"
    with pytest.raises(ValueError, match=sentence):
        build_encoder(replace(TINY, image_height=48), mask_token=False)
    encoder = _build(TINY)
    with pytest.raises(ValueError, match=sentence):
        encoder(wide[:, :, :48])
    with pytest.raises(ValueError, match=sentence):
        encoder.set_image_size(48, 96)
    with pytest.raises(ValueError, match=r"^the encoder takes 3 channels, got images of 1$"):
        encoder(wide[:, :1])


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mixer_s16_224", "vit_small_r26_s32_224"])
def test_networks_without_such_maps_are_refused(name: str) -> None:
    assert not gives_maps(name)
    with pytest.raises(ValueError, match=rf"^'{name}' is not a plain ViT; use one of .*gives feature maps \(resnet\*"):
        build_encoder(EncoderConfig(name=name), mask_token=False)


def test_a_fixed_patch_is_the_stride() -> None:
    names = (
        "resnet18",
        "test_convnext",
        "vit_tiny_patch16_224",
        "convmae_small_patch16",
        "swin_tiny_patch4_window7_224",
    )
    assert [fixed_patch(name) for name in names] == [32, 32, None, None, None]
    with pytest.raises(ValueError, match=r"^timm knows no model named 'resnt18'; near names: .*resnet18"):
        fixed_patch("resnt18")


def test_another_network_sheds_what_the_method_says_of_its_usual_one_and_nothing_else() -> None:
    usual = EncoderConfig(position="sincos", init="xavier")
    given = replace(usual, image_height=64, depth=3)
    assert renamed(given, "vit_tiny_patch16_224", usual) == replace(given, name="vit_tiny_patch16_224")
    assert renamed(given, "convmae_small_patch16", usual) == replace(given, name="convmae_small_patch16")
    # The depth was set by the user, so it stays, to be refused.
    assert renamed(given, "resnet18", usual) == EncoderConfig(name="resnet18", image_height=64, depth=3)
    back = renamed(EncoderConfig(name="resnet50", channels=4), "vit_tiny_patch16_224", EncoderConfig(name="resnet50"))
    assert back == EncoderConfig(name="vit_tiny_patch16_224", channels=4)
