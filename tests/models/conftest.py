"""Small encoders of every family, with weights that leave nothing at zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig

TINY = EncoderConfig(
    name="vit_tiny_patch16_224", image_height=32, image_width=40, patch_size=8, width=48, depth=2, heads=3
)
FAMILIES = {
    "class token": TINY,
    "no positions": replace(TINY, position="none"),
    "sin-cos": replace(TINY, position="sincos", init="xavier"),
    "class token without position, layer scale": replace(TINY, name="deit3_small_patch16_224"),
    "registers": replace(TINY, name="vit_small_patch14_reg4_dinov2"),
    "sin-cos beside registers": replace(TINY, name="vit_small_patch14_reg4_dinov2", position="sincos"),
    "no class token": replace(TINY, name="vit_base_patch16_gap_224"),
    "norm before the blocks": replace(TINY, name="vit_base_patch16_clip_224"),
    "norm after attention": replace(TINY, name="vit_base_patch16_rpn_224"),
    "relative, shared": replace(TINY, position="relative", layer_scale=0.1),
    "relative, each block": replace(TINY, name="beit_base_patch16_224"),
    "beit with learnt positions": replace(TINY, name="beit_base_patch16_224", position="learned"),
    "beit with sin-cos": replace(TINY, name="beit_base_patch16_224", position="sincos", init="xavier"),
    "rotary and learnt": replace(TINY, name="eva02_tiny_patch14_224"),
    "rotary": replace(TINY, name="vit_small_patch16_rope_224"),
    "rotary and registers": replace(TINY, name="vit_small_patch16_dinov3"),
}


def small_encoder(config: EncoderConfig) -> Encoder:
    """An encoder in eval mode, with noise on all trainable values: zero tables and unit norms would hide errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        encoder = build_encoder(config, mask_token=True).eval()
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


@pytest.fixture
def tiny() -> EncoderConfig:
    """A plain ViT with class token: 4 x 5 patches of 8 pixels, width 48, two blocks."""
    return TINY


@pytest.fixture
def build() -> Callable[[EncoderConfig], Encoder]:
    """Builds an encoder whose every value matters."""
    return small_encoder


@pytest.fixture(params=list(FAMILIES.values()), ids=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> EncoderConfig:
    """Every family of timm ViTs in turn."""
    config = request.param
    assert isinstance(config, EncoderConfig)
    return config


@pytest.fixture
def images() -> torch.Tensor:
    """Three normalised images [3, 3, 32, 40]."""
    return torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> torch.Tensor:
    """Masks [3, 20] that hide eight patches each, other ones in every image."""
    order_BN = torch.rand(3, 20, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    return order_BN < 8
