"""The demonstration: ConMIM with a small ViT on built-in photos of clothes, minutes on a laptop's processor."""

from __future__ import annotations

from unmask.config import RunConfig
from unmask.masking import MaskConfig
from unmask.methods.conmim import ConMIMConfig
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHeadConfig
from unmask.optimisation import OptimizerConfig
from unmask.schedule import Schedule
from unmask.training.trainer import TrainingConfig


def demo() -> RunConfig:
    """Show the whole path on real images in minutes: `unmask pretrain --recipe demo`.

    ConMIM on 10,000 images of Fashion-MNIST with a ViT of width 128 and 4 blocks: relative positions as its authors
    have them, no layer scale and a small projector, so that a few hundred steps are enough to see it learn.
    """
    return RunConfig(
        data="builtin:fashion-mnist",
        method="conmim",
        settings=ConMIMConfig(
            encoder=EncoderConfig(
                name="vit_tiny_patch16_224",
                image_height=32,
                image_width=32,
                patch_size=8,
                width=128,
                depth=4,
                heads=4,
                position="relative",
            ),
            mask=MaskConfig(kind="random", ratio=0.75, unit=1),
            crop_scale=(0.3, 1.0),
            projector=MLPHeadConfig(hidden=256, out=64, layers=3, last_norm=True),
            momentum=Schedule(kind="cosine", start=0.99, end=1.0),
            optimizer=OptimizerConfig(lr=2e-3, lr_batch=None, betas=(0.9, 0.98), warmup_epochs=2, min_lr=1e-5),
        ),
        training=TrainingConfig(epochs=9, batch_size=128, workers=1, log_every=10, checkpoint_every=200),
    )
