"""The demonstration: ConMIM with a small ViT on built-in emoji, minutes on a laptop's processor."""

from __future__ import annotations

from unmask.config import RunConfig
from unmask.masking import MaskConfig
from unmask.methods.conmim import ConMIMConfig
from unmask.models.encoder import EncoderConfig
from unmask.models.heads import MLPHeadConfig
from unmask.optimisation import OptimizerConfig
from unmask.training.trainer import TrainingConfig


def demo() -> RunConfig:
    """Show the whole path on real images: `unmask pretrain --recipe demo`."""
    return RunConfig(
        data="builtin:emoji",
        method="conmim",
        settings=ConMIMConfig(
            encoder=EncoderConfig(
                name="vit_tiny_patch16_224",
                image_height=32,
                image_width=32,
                patch_size=4,
                depth=4,
                position="relative",
                layer_scale=0.1,
            ),
            mask=MaskConfig(kind="random", ratio=0.75, unit=1),
            crop_scale=(0.3, 1.0),
            projector=MLPHeadConfig(hidden=512, out=128, layers=3, last_norm=True),
            optimizer=OptimizerConfig(lr=1e-3, lr_batch=None, betas=(0.9, 0.98), warmup_epochs=2, min_lr=1e-5),
        ),
        training=TrainingConfig(epochs=30, batch_size=64, workers=1, log_every=5, checkpoint_every=200),
    )
