"""Encoders so small that a test can afford to export many, with weights away from where they begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder

VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "patch_size": 8,
    "width": 32,
    "depth": 1,
    "heads": 2,
    "image_height": 32,
    "image_width": 32,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": VIT | {"depth": 2},
    "oblong": VIT | {"image_width": 48},
    "one channel": VIT | {"channels": 1},
    "four channels": VIT | {"channels": 4},
    "sin-cos": VIT | {"position": "sincos"},
    "no positions": VIT | {"position": "none"},
    "no norm": VIT | {"final_norm": False},
    "no class token": VIT | {"class_token": False},
    "layer scale": VIT | {"layer_scale": 0.1},
    "registers": VIT | {"name": "vit_base_patch14_reg4_dinov2"},
    "shared table": VIT | {"position": "relative", "layer_scale": 0.1, "depth": 2},
    "table a block": VIT | {"position": "relative_blocks", "layer_scale": 0.1, "depth": 2},
    "grey table": VIT | {"position": "relative", "channels": 1},
    "oblong table": VIT | {"position": "relative", "image_width": 48},
    "table without norm": VIT | {"position": "relative", "final_norm": False},
    "beit, sin-cos": VIT | {"name": "beit_base_patch16_224", "position": "sincos"},
    "dino's positions": VIT | {"position_resize": "offset"},
    "rotary": VIT | {"name": "eva02_tiny_patch14_224", "width": 48},
    "rotary without norm": VIT | {"name": "eva02_tiny_patch14_224", "width": 48, "final_norm": False},
    "gated": VIT | {"name": "vit_giant_patch14_dinov2"},
    "quick gelu": VIT | {"name": "vit_base_patch16_clip_quickgelu_224"},
    "norm before": VIT | {"name": "vit_base_patch16_clip_224"},
    "small convolutions": {"name": "test_resnet", "image_height": 64, "image_width": 64},
    "convolutions": {"name": "test_convnext", "image_height": 64, "image_width": 64},
    "hybrid": VIT
    | {"name": "convmae_base_patch16", "stage_widths": (16, 16), "stage_depths": (1, 1), "patch_size": 16},
    "pixels": {"name": "igpt_small", "width": 32, "depth": 2, "heads": 2, "image_height": 8, "image_width": 8},
}


@pytest.fixture
def tiny() -> Callable[[str], PretrainedEncoder]:
    """Makes the encoder of a kind."""

    def make(kind: str) -> PretrainedEncoder:
        torch.manual_seed(0)
        encoder = build_encoder(EncoderConfig(**KINDS[kind]), mask_token=False)
        with torch.no_grad():
            for name, parameter in encoder.network.named_parameters():
                # What begins at zero, tables of positions above all, must not stay there.
                if parameter.requires_grad and not name.startswith("palette"):
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        channels = encoder.config.channels
        mean, std = (0.4, 0.5, 0.45, 0.3), (0.2, 0.25, 0.3, 0.2)
        return PretrainedEncoder(encoder=encoder, mean=mean[:channels], std=std[:channels], origin="tiny", method="mae")

    return make
