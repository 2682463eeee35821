"""Classifiers small enough to train in a test, on tiny encoders of every kind."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unmask.data.batch import Batch
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.optimisation import OptimizerConfig
from unmask.tasks.classification import ClassificationTask, ClassifierConfig

TINY = EncoderConfig(
    name="vit_tiny_patch16_224", image_height=32, image_width=32, patch_size=8, width=48, depth=3, heads=3
)
NETWORKS = {
    "vit": TINY,
    "sincos": replace(TINY, position="sincos", init="xavier"),
    "relative": replace(TINY, position="relative", layer_scale=0.1),
    "beit": replace(TINY, name="beit_base_patch16_224"),
    "eva02": replace(TINY, name="eva02_tiny_patch14_224"),
    "resnet18": EncoderConfig(name="resnet18", image_height=64, image_width=64),
    "convnext_atto": EncoderConfig(name="convnext_atto", image_height=64, image_width=64),
    "convmae": EncoderConfig(
        name="convmae_tiny_patch16",
        image_height=32,
        image_width=48,
        width=48,
        depth=2,
        heads=3,
        stage_widths=(16, 32),
        stage_depths=(1, 1),
    ),
    "igpt": EncoderConfig(name="igpt_tiny", image_height=8, image_width=8, width=48, depth=4, heads=3, colours=16),
}
"""An encoder of every kind, as small as it comes."""

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASSES = ("bird", "cat", "dog", "eel", "fox", "gnu", "hen")
BARE = ClassifierConfig(
    head_std=0.02,
    drop_path=0.0,
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.0,
    randaugment=None,
    erasing=0.0,
    flip=0.0,
    optimizer=OptimizerConfig(lr=1e-3, lr_batch=None, betas=(0.9, 0.999), warmup_epochs=0.0),
)
"""Training with nothing but cross-entropy."""


def tiny_pretrained(config: EncoderConfig = TINY) -> PretrainedEncoder:
    """An encoder with noise on all its weights: zero tables and unit norms would hide errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        encoder = build_encoder(config, mask_token=False).eval()
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in encoder.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
    mean, std = MEAN[: config.channels], STD[: config.channels]
    return PretrainedEncoder(encoder=encoder, mean=mean, std=std, origin="test")


def tiny_task(
    config: ClassifierConfig = BARE,
    encoder: EncoderConfig = TINY,
    *,
    classes: tuple[str, ...] = CLASSES,
    targets_NK: Tensor | None = None,
) -> ClassificationTask:
    """A task whose new head and norms are far from their neutral start, too."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        task = ClassificationTask(tiny_pretrained(encoder), config, classes, targets_NK=targets_NK)
        for name, parameter in task.classifier.named_parameters():
            if not name.startswith("encoder."):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return task


def batch_of(size: tuple[int, int], count: int = 4, *, seed: int | None = 5, channels: int = 3) -> Batch:
    """Random images, labelled in turn."""
    generator = torch.Generator().manual_seed(count)
    images_BCHW = torch.randint(256, (count, channels, *size), generator=generator, dtype=torch.uint8)
    return replace(Batch.of(images_BCHW, seed=seed), labels=torch.arange(count) * 3 % len(CLASSES))
