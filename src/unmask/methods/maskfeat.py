"""MaskFeat: Masked Feature Prediction for Self-Supervised Visual Pre-Training (Wei et al., CVPR 2022,
arXiv 2112.09133).

Mask tokens stand for hidden patches in the encoder; one linear layer predicts their histograms of oriented gradients.

Shape legend: B samples, N patches, L = prefix + N tokens, D encoder width, M hidden patches of the batch, K values of a
patch's histograms (channels x bins x cells).

Formula:
    target  t = histogram of the gradient directions in each cell, weighted by gradient length, by its L2 norm
    loss    = mean over hidden patches and K of (linear(norm(encoder(image with mask tokens))) - t)^2

Where the authors' code differs from the paper, or goes beyond it: gradients are taken on normalised pixels, not on
0..255; directions are measured from the vertical axis, atan2(horizontal, vertical); class token, position embedding and
mask token are decayed; the configuration trains for 300 epochs, the released weights for 1600. The encoder has no final
norm: the head's own stands in its place. Other libraries weight gradients by a Gaussian window; the authors do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    one_crop,
    shared_views,
)
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.objectives.hog import hog, hog_width
from unmask.objectives.reconstruction import mean_squared_error
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.ranks import share_of_mean
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views

AUTHORS_CELL = 8


@dataclass(frozen=True, kw_only=True)
class MaskFeatConfig(MaskedMethodConfig):
    """Knobs of MaskFeat; defaults are the authors' for images."""

    encoder: Annotated[EncoderConfig, Doc("ViT with learnt positions and without a final norm. [code]")] = (
        EncoderConfig(position="learned", final_norm=False)
    )
    mask: Annotated[MaskConfig, Doc("Blockwise, 78 of 196 patches, rectangles from a fifth of that. [code]")] = (
        MaskConfig(kind="blockwise", ratio=78 / 196, min_block_patches=15)
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.5, 1.0)
    bins: Annotated[int, Doc("Directions that a histogram tells apart in half a turn. [paper and code]")] = 9
    cell: Annotated[
        int | None,
        Doc("Side of a histogram's cell, in pixels. None: 8 [code], or the patch where 8 does not divide it."),
    ] = None
    optimizer: Annotated[OptimizerConfig, Doc("2e-4 per 256 images, clipped at 0.02. [code]")] = OptimizerConfig(
        lr=2e-4, lr_batch=256, betas=(0.9, 0.999), warmup_epochs=30, warmup_start=0.005, min_lr=1e-6, clip=0.02
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2, got {self.bins}")


class MaskFeat(Method[Views]):
    """Predict the histograms of oriented gradients of hidden patches by one linear layer (Wei et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = MaskFeatConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="MaskFeat",
        idea="Put mask tokens in place of patches and predict which way their edges run.",
        paper="arXiv 2112.09133",
        year=2022,
        family="masked",
        online_input="mask tokens",
        target="histograms of oriented gradients",
        objective="squared error on hidden patches",
    )

    def __init__(self, config: MaskFeatConfig) -> None:
        super().__init__()
        self.config: MaskFeatConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=True)
        patch = self.encoder.patch
        self.cell = config.cell or (AUTHORS_CELL if patch[0] % AUTHORS_CELL == 0 else patch[0])
        values = hog_width(patch, channels=config.encoder.channels, cell=self.cell, bins=config.bins)
        self.norm = nn.LayerNorm(self.encoder.width, eps=1e-6)
        self.head = nn.Linear(self.encoder.width, values)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return shared_views(batch, self.encoder, self.config, colour=None)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        prediction_MK, target_MK = self.predict(views.online, mask_BN), self.target(views.online, mask_BN)
        return {"features": share_of_mean(mean_squared_error(prediction_MK, target_MK), len(prediction_MK))}

    def predict(self, images_BCHW: Tensor, mask_BN: Tensor) -> Tensor:
        """Predicted histograms [M, K] of the hidden patches."""
        tokens_BND = self.encoder.patches(self.encoder(images_BCHW, replace_BN=mask_BN))
        return self.head(self.norm(tokens_BND[mask_BN]))

    @torch.no_grad()
    def target(self, images_BCHW: Tensor, mask_BN: Tensor) -> Tensor:
        """True histograms [M, K] of the hidden patches."""
        return hog(images_BCHW, self.encoder.patch, mask_BN, cell=self.cell, bins=self.config.bins)

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        return Inspection()
