"""A shared table of relative positions copied into every block: the same features, and then each learns its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import HEADER, encoder_file, read_encoder
from unmask.models.relative_tables import with_own_tables

Build = Callable[[EncoderConfig], Encoder]
TABLES = [f"blocks.{block}.attn.relative_position_bias_table" for block in range(2)]


@pytest.fixture(
    params=[{}, {"layer_scale": 0.1}, {"name": "beit_base_patch16_224"}, {"final_norm": False}],
    ids=lambda given: str(given),
)
def shared(request: pytest.FixtureRequest, tiny: EncoderConfig) -> EncoderConfig:
    """Encoders whose blocks share a table."""
    return replace(tiny, position="relative", **request.param)


@torch.no_grad()
def test_features_are_the_same(build: Build, shared: EncoderConfig, images: Tensor) -> None:
    encoder = build(shared)
    own = with_own_tables(encoder).eval()
    torch.testing.assert_close(own(images), encoder(images), rtol=1e-5, atol=1e-5)
    assert own.config == replace(shared, position="relative_blocks")
    table = cast(Any, encoder.network).rel_pos_bias.relative_position_bias_table
    assert table.std() > 0
    state = own.network.state_dict()
    assert all(torch.equal(state[name], table) for name in TABLES)
    assert not any(name.startswith("rel_pos_bias") for name in state)


def test_every_block_learns_its_own(build: Build, shared: EncoderConfig, images: Tensor) -> None:
    encoder = build(shared)
    own = with_own_tables(encoder)
    own(images).square().sum().backward()
    tables = [own.network.get_parameter(name) for name in TABLES]
    gradients = [cast(Tensor, table.grad) for table in tables]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert not torch.equal(*gradients)
    before = cast(Any, encoder.network).rel_pos_bias.relative_position_bias_table.clone()
    torch.optim.SGD(own.parameters(), lr=0.1).step()
    assert not torch.equal(*tables)
    assert torch.equal(cast(Any, encoder.network).rel_pos_bias.relative_position_bias_table, before)


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 64), (16, 24)])
def test_they_follow_another_size_alike(build: Build, tiny: EncoderConfig, size: tuple[int, int]) -> None:
    encoder = build(replace(tiny, position="relative"))
    before, after = with_own_tables(encoder), encoder
    before.set_image_size(*size)
    after.set_image_size(*size)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = encoder(images)
    torch.testing.assert_close(before.eval()(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(with_own_tables(after).eval()(images), expected, rtol=1e-5, atol=1e-5)
    assert before.image_size == size
    assert before.network.get_parameter(TABLES[0]).shape[0] > 1


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(name="vit_tiny_patch16_224", width=48, depth=2, heads=3),
        EncoderConfig(name="vit_tiny_patch16_224", width=48, depth=2, heads=3, position="relative_blocks"),
        EncoderConfig(name="beit_base_patch16_224", width=48, depth=2, heads=3),
        EncoderConfig(name="resnet18", image_height=64, image_width=64),
        EncoderConfig(name="igpt_tiny", image_height=4, image_width=4, width=48, depth=2, heads=3),
    ],
    ids=lambda config: f"{config.name}-{config.position}",
)
def test_without_a_shared_table_there_is_nothing_to_copy(config: EncoderConfig) -> None:
    encoder = build_encoder(config, mask_token=False)
    sentence = f"^{config.name!r} has no shared table of relative positions to copy into its blocks$"
    with pytest.raises(ValueError, match=sentence):
        with_own_tables(encoder)


@torch.no_grad()
def test_tables_of_their_own_are_a_position_like_others(
    build: Build, tiny: EncoderConfig, images: Tensor, tmp_path: Path
) -> None:
    encoder = build(replace(tiny, position="relative_blocks", drop_path=0.1))
    assert all(encoder.network.get_parameter(name).std() > 0 for name in TABLES)
    path = tmp_path / "encoder.safetensors"
    tensors, metadata = encoder_file(encoder, mean=(0.1,) * 3, std=(0.2,) * 3, facts={})
    save_file(tensors, path, metadata=metadata)

    read = read_encoder(path).encoder
    assert read.config == encoder.config
    torch.testing.assert_close(read.eval()(images), encoder(images), rtol=0, atol=0)

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    model = timm.create_model(header["timm_name"], **header["timm_arguments"])
    model.load_state_dict(load_file(path))
    torch.testing.assert_close(model.eval()(images), encoder.pool(encoder(images)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mask_tokens_fit_and_dropped_patches_are_refused(
    build: Build, tiny: EncoderConfig, images: Tensor, mask: Tensor
) -> None:
    encoder = build(replace(tiny, position="relative_blocks"))
    assert encoder(images, replace_BN=mask).shape == (3, 21, 48)
    with pytest.raises(
        ValueError, match=r"^patches cannot be dropped where every block has its own relative positions$"
    ):
        encoder(images, drop_BN=mask)


def test_rotary_networks_have_no_room_for_tables() -> None:
    with pytest.raises(ValueError, match=r"^'eva02_tiny_patch14_224' has rotary positions; position 'relative' needs "):
        build_encoder(EncoderConfig(name="eva02_tiny_patch14_224", position="relative_blocks"), mask_token=False)
