"""From a configuration to an encoder."""

from __future__ import annotations

from dataclasses import replace

from unmask.models.convolutional import conv_encoder, fixed_stride, gives_maps, refuse_masks
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.hybrid import PREFIX, HybridEncoder
from unmask.models.pixels import PIXELS_PREFIX, PixelEncoder
from unmask.models.vit import VitEncoder


def build_encoder(config: EncoderConfig, *, mask_token: bool) -> Encoder:
    """The encoder that `config` describes, at its random start; `mask_token`: whether patches can be replaced.

    By its name: ConvMAE's hybrid (convmae_*), iGPT's transformer over colours (igpt_*), a timm network that gives maps
    of features, or a timm ViT. ValueError for a name that is unknown and for sizes that do not fit.
    """
    if config.name.startswith(PREFIX):
        return HybridEncoder(config, mask_token=mask_token)
    if config.name.startswith(PIXELS_PREFIX):
        return PixelEncoder(config)
    if gives_maps(config.name):
        if mask_token:
            refuse_masks(config.name)
        return conv_encoder(config)
    return VitEncoder(config, mask_token=mask_token)


def build_vit(config: EncoderConfig, *, mask_token: bool) -> VitEncoder:
    """The same for methods that look inside a ViT (single blocks, tokens on their way)."""
    encoder = build_encoder(config, mask_token=mask_token)
    if not isinstance(encoder, VitEncoder):
        raise ValueError(f"this method needs a ViT, not {config.name!r}")
    return encoder


def fixed_patch(name: str) -> int | None:
    """The stride of a network that gives maps of features, in pixels; None where the patch size is free."""
    if name.startswith((PREFIX, PIXELS_PREFIX)) or not gives_maps(name):
        return None
    found = fixed_stride(name)
    return None if found is None else found[0]


def renamed(config: EncoderConfig, name: str, usual: EncoderConfig) -> EncoderConfig:
    """`config` with another network.

    Between a ViT and a network without tokens, what a method's usual configuration `usual` says about the one does not
    hold for the other (positions, initial values); what the user set stays, and may then be refused.
    """
    if (fixed_patch(name) is None) == (fixed_patch(config.name) is None):
        return replace(config, name=name)
    plain = vars(EncoderConfig())
    changed = {field: plain[field] for field, value in vars(usual).items() if vars(config)[field] == value}
    kept = ("image_height", "image_width", "channels", "drop_path", "checkpointing")
    return replace(config, **{field: value for field, value in changed.items() if field not in kept} | {"name": name})
