"""Tokenizers of every kind, tiny, and a teacher for them."""

from __future__ import annotations

import torch

from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.tokenizers.base import TokenizerConfig, TrainableTokenizer
from unmask.models.tokenizers.codebook import CodebookConfig
from unmask.models.tokenizers.conv import ConvConfig
from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.models.tokenizers.file import build_tokenizer
from unmask.models.tokenizers.vq import VQConfig
from unmask.models.tokenizers.vqkd import VQKDConfig

VIT = EncoderConfig(
    name="vit_tiny_patch16_224", image_height=32, image_width=40, patch_size=8, width=24, depth=2, heads=2
)
CODES = 20


def tiny_config(kind: str, channels: int = 3) -> TokenizerConfig:
    """20 codes for 8 x 8 pixels each."""
    conv, codes = ConvConfig(stride=8, width=8, blocks=1), CodebookConfig(width=6)
    if kind == "dvae":
        return DVAEConfig(vocabulary=CODES, channels=channels, conv=conv)
    if kind == "vq":
        return VQConfig(vocabulary=CODES, channels=channels, conv=conv, codebook=codes, perceptual_layers=2)
    encoder = EncoderConfig(**{**vars(VIT), "channels": channels})
    return VQKDConfig(
        vocabulary=CODES, channels=channels, encoder=encoder, decoder_depth=1, codebook=codes, teacher_width=24
    )


def tiny_teacher(channels: int = 3) -> PretrainedEncoder:
    """A frozen ViT with a grid of 4 x 5 patches."""
    torch.manual_seed(1)
    encoder = build_encoder(EncoderConfig(**{**vars(VIT), "channels": channels}), mask_token=False)
    encoder.requires_grad_(False).eval()
    return PretrainedEncoder(encoder=encoder, mean=(0.5,) * channels, std=(0.25,) * channels, origin="a teacher")


def tiny_tokenizer(kind: str, channels: int = 3) -> TrainableTokenizer:
    """Built from seed 0; its codes, if it has a codebook, are random directions."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tiny_config(kind, channels))
    assert isinstance(tokenizer, TrainableTokenizer)
    for name, buffer in tokenizer.named_buffers():
        if name == "codebook.codes_VD":
            buffer.copy_(torch.nn.functional.normalize(torch.randn(buffer.shape), dim=-1))
        if name == "codebook.started":
            buffer.fill_(True)
    return tokenizer
