"""From a configuration to an encoder."""

from __future__ import annotations

from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.vit import VitEncoder


def build_encoder(config: EncoderConfig, *, mask_token: bool) -> Encoder:
    """The encoder that `config` describes, at its random start; `mask_token`: whether patches can be replaced.

    ValueError for a name that is unknown and for sizes that do not fit.
    """
    return VitEncoder(config, mask_token=mask_token)


def build_vit(config: EncoderConfig, *, mask_token: bool) -> VitEncoder:
    """The same for methods that look inside a ViT (single blocks, tokens on their way)."""
    encoder = build_encoder(config, mask_token=mask_token)
    if not isinstance(encoder, VitEncoder):
        raise ValueError(f"this method needs a ViT, not {config.name!r}")
    return encoder
