"""timm's own weights, encoders for other images, and going on from any of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tiny_runs import tiny_settings
from unmask.interop.resize import for_channels, resized
from unmask.interop.start import load_start, start_settings
from unmask.interop.weights_in import Wanted, import_weights
from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
GREY: dict[str, Any] = TINY | {"in_chans": 1, "class_token": False, "global_pool": "avg", "fc_norm": False}
PLAIN = EncoderConfig(
    name="vit_tiny_patch16_224", image_height=32, image_width=32, patch_size=8, width=32, depth=2, heads=2
)


def timm_file(path: Path, name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
    return model


@pytest.mark.parametrize(
    ("name", "source", "arguments"),
    [
        ("vit_small_patch16_224", "timm", TINY),
        ("vit_small_patch16_224", "timm", GREY),
        ("beit_base_patch16_224", "timm", TINY),
        ("deit3_small_patch16_224", "timm:deit3_small_patch16_224", TINY),
        ("vit_small_patch14_reg4_dinov2", "timm", TINY),
        ("eva02_tiny_patch14_224", "timm:eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}),
        ("resnet18", "timm:resnet18", {}),
    ],
)
def test_a_network_of_timm_computes_the_same_here(
    name: str, source: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = timm_file(tmp_path / "x.pth", name, num_classes=3, **arguments)
    imported = import_weights(str(tmp_path / "x.pth"), Wanted(source=source, heads=arguments.get("num_heads")))
    encoder = imported.encoder.encoder.eval()
    images_BCHW = torch.rand(1, arguments.get("in_chans", 3), *encoder.image_size)
    with torch.no_grad():
        theirs = model.forward_features(images_BCHW)
    if theirs.ndim == 4:
        theirs = theirs.flatten(2).transpose(1, 2)
    # Where timm pools before the final norm, it has none here.
    torch.testing.assert_close(encoder(images_BCHW).detach(), theirs, rtol=1e-5, atol=1e-5)
    names = {f"state_dict.{tensor}" for tensor in model.state_dict()}
    assert set(imported.used) | set(imported.left_out) == names
    assert set(imported.left_out.values()) == {"classifier, after the encoder"}


def test_a_residual_network_must_be_named(tmp_path: Path) -> None:
    timm_file(tmp_path / "x.pth", "resnet18", num_classes=0)
    with pytest.raises(ValueError, match="say which, as in --encoder resnet50"):
        import_weights(str(tmp_path / "x.pth"), Wanted(source="mixmask"))


def made(**changes: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(replace(PLAIN, **changes), mask_token=False).eval()


def test_other_sizes_patches_and_channels_are_listed() -> None:
    encoder, changed = resized(made(), image_size=(32, 64), patch_size=4, channels=5)
    assert encoder.image_size == (32, 64)
    assert encoder.patch == (4, 4)
    channels, patches = "from 3 to 5 channels, repeated and scaled", "from patches of 8 to 4 pixels, resampled"
    assert changed == {
        "patch_embed.proj.weight": f"{channels}; {patches}",
        "pos_embed": "positions interpolated from 4x4 to 8x16 patches",
    }
    assert encoder(torch.rand(1, 5, 32, 64)).shape == (1, 1 + 8 * 16, 32)


@pytest.mark.parametrize(
    ("changes", "name", "how"),
    [
        ({"position": "sincos"}, "pos_embed", "computed anew"),
        ({"position": "relative"}, "rel_pos_bias.relative_position_bias_table", "interpolated"),
        ({"position": "relative_blocks"}, "blocks.1.attn.relative_position_bias_table", "interpolated"),
        ({"name": "convmae_tiny_patch16", "patch_size": 16, "heads": 2}, "pos_embed", "computed anew"),
    ],
)
def test_positions_of_every_kind_follow(changes: dict[str, Any], name: str, how: str) -> None:
    encoder, changed = resized(made(**changes), image_size=(64, 64))
    assert how in changed[name]
    assert encoder(torch.rand(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convmae_tiny_patch16"])
def test_a_grey_image_is_seen_as_its_colour_form_was(name: str) -> None:
    encoder = made() if name.startswith("vit") else made(name=name, patch_size=16)
    grey, changed = resized(encoder, channels=1)
    assert list(changed.values()) == ["from 3 to 1 channels, their sum"]
    images_BCHW = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = encoder(images_BCHW.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.eval()(images_BCHW), expected, rtol=1e-4, atol=1e-5)


def test_nothing_asked_for_changes_nothing() -> None:
    encoder = made()
    assert resized(encoder, image_size=(32, 32), patch_size=8, channels=3) == (encoder, {})
    with pytest.raises(ValueError, match="its stages are made for them"):
        resized(made(name="convmae_tiny_patch16", patch_size=16), patch_size=32)


def test_normalisation_follows_channels() -> None:
    assert for_channels((0.1, 0.2, 0.3), 5) == (0.1, 0.2, 0.3, 0.1, 0.2)
    assert for_channels((0.1, 0.2, 0.3), 1) == pytest.approx((0.2,))


def from_weights(name: str, encoder: Encoder) -> tuple[Method, Any]:
    """A tiny method that begins from an encoder."""
    weights = PretrainedEncoder(encoder=encoder, mean=(0.1,) * 3, std=(0.2,) * 3, origin="made")
    settings = tiny_settings(name)
    usual = replace(settings)
    begun = start_settings(settings, usual, encoder.config, (weights.mean, weights.std))
    assert (begun.mean, begun.std) == (weights.mean, weights.std)
    begun = replace(begun, encoder=replace(begun.encoder, image_height=32, image_width=32))
    torch.manual_seed(1)
    method = METHODS[name](begun)
    return method, load_start(method, weights, "made")


@pytest.mark.parametrize("name", ["conmim", "cmae", "dino", "mae", "data2vec"])
def test_a_method_begins_from_weights_and_its_target_as_a_copy(name: str) -> None:
    encoder = made(depth=1)
    method, start = from_weights(name, encoder)
    online = method.get_submodule("encoder")
    assert isinstance(online, Encoder)
    given = encoder.network.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in online.network.state_dict().items())
    assert set(start.loaded) == set(given)
    state: dict[str, Tensor] = method.state_dict()
    targets = {key: value for key, value in state.items() if key.startswith("target_")}
    assert all(torch.equal(value, state[key.removeprefix("target_")]) for key, value in targets.items())
    assert ("encoder.mask_token" in start.random) == (online.mask_token is not None)
    assert start.random
    assert not any(part.startswith("target_") for part in start.random)


def test_what_fits_only_in_part_is_listed() -> None:
    _, start = from_weights("extrema", made(depth=1))
    assert start.left_out == ("cls_token",)
    assert start.changed == ("pos_embed without the class token's",)
    assert "class_attention" in start.random
    without_norm = made(depth=1, final_norm=False)
    _, start = from_weights("mae", without_norm)
    assert start.random == ("encoder.norm.weight", "encoder.norm.bias", "decoder")
    assert "random: encoder.norm.weight, encoder.norm.bias, decoder" in start.sentences()


def test_another_network_is_refused() -> None:
    method, _ = from_weights("mae", made(depth=1))
    wider = PretrainedEncoder(encoder=made(width=48), mean=(0.5,) * 3, std=(0.5,) * 3, origin="made")
    with pytest.raises(ValueError, match="does not fit the encoder"):
        load_start(method, wider, "wide.safetensors")
