"""Detectors small enough to train in seconds, on a tiny ViT whose attention has windows."""

from __future__ import annotations

from dataclasses import replace

import torch

from unmask.data.detection import JitterConfig
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.optimisation import OptimizerConfig
from unmask.tasks.detection import DetectionConfig, DetectionTask, DetectorConfig

TINY_ENCODER = EncoderConfig(
    name="vit_tiny_patch16_224",
    image_height=64,
    image_width=80,
    patch_size=8,
    channels=1,
    width=64,
    depth=4,
    heads=4,
)
TINY_DETECTION = DetectionConfig(
    # A grid of 8 x 10 patches: four windows of 4 x 5, in the first and the third block.
    detector=DetectorConfig(
        window=5,
        global_blocks=2,
        pyramid_width=32,
        box_width=64,
        proposals=100,
        proposal_samples=64,
        box_samples=32,
    ),
    drop_path=0.0,
    layer_decay=1.0,
    optimizer=OptimizerConfig(
        lr=2e-3, lr_batch=None, betas=(0.9, 0.999), weight_decay=0.01, warmup_epochs=5.0, clip=1.0
    ),
    jitter=JitterConfig(scale=(1.0, 1.0), flip=0.0),
)


def tiny_pretrained(config: EncoderConfig = TINY_ENCODER, seed: int = 0) -> PretrainedEncoder:
    """An encoder at its random start, for grey or coloured images."""
    torch.manual_seed(seed)
    encoder = build_encoder(config, mask_token=False)
    mean, std = (0.38,) * config.channels, (0.2,) * config.channels
    return PretrainedEncoder(encoder=encoder, mean=mean, std=std, origin="random")


def tiny_detection(
    config: DetectionConfig = TINY_DETECTION,
    *,
    encoder: EncoderConfig = TINY_ENCODER,
    classes: tuple[str, ...] = ("coin",),
    outlines: bool = True,
    seed: int = 0,
) -> DetectionTask:
    """A task at its start, which follows from the seed."""
    pretrained = tiny_pretrained(encoder, seed)
    torch.manual_seed(seed)
    return DetectionTask(pretrained, config, classes, outlines=outlines)


def with_encoder(**changes: object) -> EncoderConfig:
    """The tiny encoder with something changed."""
    return replace(TINY_ENCODER, **changes)  # type: ignore[arg-type]
