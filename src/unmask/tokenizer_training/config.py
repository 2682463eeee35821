"""What defines the training of a tokenizer, and what its authors' optimizers were."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from unmask.config import KIND
from unmask.data.stored import PixelRange
from unmask.formats import FORMATS
from unmask.models.tokenizers.base import TokenizerConfig
from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.models.tokenizers.vq import VQConfig
from unmask.models.tokenizers.vqkd import VQKDConfig
from unmask.optimisation import OptimizerConfig
from unmask.training.trainer import LOG_DOC, Tracker, TrainingConfig

Kind = Literal["dvae", "vq", "vqkd"]
KINDS: dict[Kind, type[TokenizerConfig]] = {"dvae": DVAEConfig, "vq": VQConfig, "vqkd": VQKDConfig}
OPTIMIZERS: dict[Kind, OptimizerConfig] = {
    # DALL-E's rate is 1e-4 for 3 million steps; a run of thousands needs more.
    "dvae": OptimizerConfig(
        lr=1e-3, lr_batch=None, betas=(0.9, 0.999), weight_decay=1e-4, warmup_epochs=1, min_lr=1e-6, clip=1.0
    ),
    "vq": OptimizerConfig(
        lr=1e-3, lr_batch=None, betas=(0.9, 0.99), weight_decay=1e-4, warmup_epochs=1, min_lr=1e-6, clip=1.0
    ),
    # BEiT v2's.
    "vqkd": OptimizerConfig(lr=5e-5, lr_batch=128, betas=(0.9, 0.99), weight_decay=1e-4, warmup_epochs=10, min_lr=1e-5),
}


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """How long and on what a tokenizer is trained: all that needs no look at the data."""

    epochs: Annotated[float, Doc("Passes over the data.")] = 50.0
    crop_scale: Annotated[tuple[float, float], Doc("Range of the share of the image's area that a crop covers.")] = (
        0.2,
        1.0,
    )
    seed: Annotated[int, Doc("Everything random follows from this.")] = 0
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], Doc("auto: bf16 on GPUs that have it, fp32 elsewhere.")] = (
        "auto"
    )
    log_every: Annotated[int, Doc("Steps between lines of the log.")] = 10
    log: Annotated[tuple[Tracker, ...], LOG_DOC] = ()
    checkpoint_every: Annotated[int, Doc("Steps between checkpoints.")] = 500
    max_bad_share: Annotated[float, Doc("Share of unreadable images past which the run stops.")] = 0.1


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainingConfig(TokenizerOptions):
    """Everything that defines a run. Two runs with equal configurations end with equal weights."""

    data: Annotated[str, Doc("The images.")]
    kind: Annotated[Kind, Doc("What is trained.")]
    tokenizer: Annotated[TokenizerConfig, Doc("Knobs of the tokenizer.")]
    teacher: Annotated[str | None, Doc("The network to imitate or to judge by.")]
    optimizer: Annotated[OptimizerConfig, Doc("The optimizer and its schedule.")]
    image_height: Annotated[int, Doc("Height of the crops, in pixels.")]
    image_width: Annotated[int, Doc("Width of the crops, in pixels.")]
    batch_size: Annotated[int, Doc("Images of one optimizer step.")]
    workers: Annotated[int, Doc("Processes that decode images; 0: the training process itself.")]
    pixel_range: Annotated[
        PixelRange | None,
        Doc("What becomes black and white of images with more than 8 bits; None: the ends."),
    ] = None

    def __post_init__(self) -> None:
        # It refuses what no training can have.
        _ = self.training
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop scale must be a range within (0, 1], got {low} to {high}")
        if self.kind == "vqkd" and self.teacher is None:
            raise ValueError("a vqkd tokenizer learns from a teacher; give --teacher RUN or --teacher timm:NAME")
        if self.kind == "dvae" and self.teacher is not None:
            raise ValueError("a dvae tokenizer takes no teacher; leave --teacher out, or choose --kind vq or vqkd")

    @property
    def training(self) -> TrainingConfig:
        """How long and on what, as the trainer takes it."""
        return TrainingConfig(
            epochs=self.epochs,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            log_every=self.log_every,
            log=self.log,
            checkpoint_every=self.checkpoint_every,
            max_bad_share=self.max_bad_share,
            batch_size=self.batch_size,
            workers=self.workers,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in config.json."""
        values = {"format": FORMATS[KIND], **dataclasses.asdict(self)}
        if self.pixel_range is None:
            del values["pixel_range"]
        return values
