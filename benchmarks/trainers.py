"""Trainers as users get them, with a batch of noise, for benchmarks that ask what a step costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from unmask.bench.made import made_batch
from unmask.data.batch import Batch
from unmask.methods import find_method
from unmask.methods.base import MethodConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.heads import MLPHeadConfig
from unmask.training.trainer import Precision, Trainer, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained, and on how much."""

    method: str
    encoder: str
    image_size: int
    patch_size: int = 16
    batch: int
    depth: int | None = None
    """Blocks of the encoder; None: as many as its name says."""
    checkpointing: bool = False
    small_parts: bool = False
    """Whether decoders and heads, too, are tiny: for what asks nothing of their cost."""

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    def config(self) -> MethodConfig:
        """The method's own settings, for this encoder and size of images."""
        settings = find_method(self.method).Config()
        encoder = replace(
            settings.encoder,
            name=self.encoder,
            depth=self.depth,
            image_height=self.image_size,
            image_width=self.image_size,
            patch_size=self.patch_size,
            checkpointing=self.checkpointing,
        )
        settings = replace(settings.for_images(self.image_size, self.image_size), encoder=encoder)
        return replace(settings, **_small_parts(settings)) if self.small_parts else settings


def _small_parts(settings: MethodConfig) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, part in vars(settings).items():
        if isinstance(part, DecoderConfig):
            small[name] = replace(part, width=64, depth=1, heads=4)
        elif isinstance(part, MLPHeadConfig):
            small[name] = replace(part, hidden=64)
    return small


def make_trainer(
    setting: Setting, device: torch.device, *, precision: Precision = "auto", compile_mode: str | None = None
) -> tuple[Trainer[Any], Batch]:
    """The trainer at its random start, which follows from seed 0, and a batch of noise on the device.

    `compile_mode` is torch.compile's; "default" is what `--compile` gives, None is eager.
    """
    torch.manual_seed(0)
    method = find_method(setting.method)(setting.config())
    if compile_mode not in (None, "default"):
        # What the trainer does for `--compile`, in a mode that it does not offer.
        method.losses = torch.compile(method.losses, mode=compile_mode)  # type: ignore[method-assign]
    training = TrainingConfig(
        batch_size=setting.batch,
        workers=0,
        device=str(device),
        precision=precision,
        compile=compile_mode == "default",
    )
    trainer = Trainer(method, training, steps_per_epoch=1000, device=device)
    return trainer, made_batch(method, setting.batch).to(device)
