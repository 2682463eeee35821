"""What more than one format must know of an encoder."""

from __future__ import annotations

from unmask.models.encoder import Encoder
from unmask.models.pixels import PixelEncoder


def margin(encoder: Encoder) -> float:
    """How much of an image's shorter side our own evaluation crops keep (timm's `crop_pct`)."""
    return 1.0 if max(encoder.image_size) <= 64 else 224 / 256


def instead(encoder: Encoder) -> str:
    """The other way out for an encoder that a format does not have."""
    if isinstance(encoder, PixelEncoder):
        return "export to safetensors instead"
    others = "onnx, torch-export or safetensors"
    return f"export to {others if encoder.timm_model is None else f'timm, {others}'} instead"
