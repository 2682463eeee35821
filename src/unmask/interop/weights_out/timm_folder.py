"""A folder that `timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)` loads as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from unmask.interop.weights_out.compare import Difference, difference, normalised, tokens_of
from unmask.interop.weights_out.shared import instead, margin
from unmask.models.convolutional import ConvEncoder
from unmask.models.encoder_config import blank_timm_model
from unmask.models.pretrained import PretrainedEncoder, encoder_file
from unmask.training.checkpoint import write_atomically

INTERPOLATION = "bicubic"


def write_timm(pretrained: PretrainedEncoder, images_BCHW: Tensor, folder: Path) -> list[Difference]:
    """Write `config.json` and `model.safetensors`, and compare what timm loads from them.

    ValueError for an encoder that timm does not have.
    """
    encoder = pretrained.encoder
    if encoder.timm_model is None:
        lacks = "has no such network" if encoder.config.final_norm else "has no such network without a final norm"
        raise ValueError(f"timm {lacks} ({encoder.config.name!r}); {instead(encoder)}")
    name, arguments = encoder.timm_model
    values = {
        "architecture": name,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": data_facts(pretrained, name, margin(encoder)) | {"num_classes": 0},
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors, _ = encoder_file(encoder, mean=pretrained.mean, std=pretrained.std, facts={})
    write_atomically(folder / "model.safetensors", tensors, {"format": "pt"})
    return _compare(pretrained, images_BCHW, folder)


def data_facts(pretrained: PretrainedEncoder, name: str, crop_ratio: float) -> dict[str, Any]:
    """What timm's transforms and its fine-tuning must know; the central crop keeps `crop_ratio` of the shorter side."""
    known = blank_timm_model(name).pretrained_cfg
    encoder = pretrained.encoder
    return {
        "input_size": [encoder.config.channels, *encoder.image_size],
        "fixed_input_size": not isinstance(encoder, ConvEncoder),
        "interpolation": INTERPOLATION,
        "crop_pct": crop_ratio,
        "crop_mode": "center",
        "mean": list(pretrained.mean),
        "std": list(pretrained.std),
        "pool_size": None,
        "first_conv": known["first_conv"],
        "classifier": known["classifier"],
        "custom_load": False,
    }


@torch.no_grad()
def _compare(pretrained: PretrainedEncoder, images_BCHW: Tensor, folder: Path) -> list[Difference]:
    encoder, ours = pretrained.encoder, tokens_of(pretrained, images_BCHW)
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    inputs = normalised(pretrained, images_BCHW)
    theirs: Tensor = model(inputs)
    if isinstance(encoder, ConvEncoder):
        return [difference("maps of features", theirs.flatten(2).transpose(1, 2), ours)]
    return [
        difference("tokens", model.forward_features(inputs), ours),
        difference("means of patches", theirs, encoder.pool(ours)),
    ]
