"""data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language (Baevski et al., ICML 2022,
arXiv 2202.03555), its vision half.

Predict, from an image with mask tokens in it, what the moving average of the same network makes of the whole image.

Shape legend: B samples, N patches, L = prefix + N tokens, D encoder width, M hidden patches of the batch.

Formula:
    target  t = LN(mean over the last 6 blocks of LN(output of the EMA network's block, whole image)), LN without affine
    loss    = mean over hidden patches and D of smooth-L1(linear(encoder(image with mask tokens)) - t), beta 2

Where the authors' code differs from the paper: the mean of the blocks is normalised once more; the momentum of the
recipe is constant (`--ema_start_at 0` skips its ramp); with a momentum of 0.9999, rounding lowers some entries of the
target's table of relative places by one. Different here: that table stays as it is, colour is jittered after the crop
and not before it, and attention has no dropout (theirs: .05).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
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
from unmask.models.build import build_vit
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.target import ema_update_, frozen_copy, stop_dropping_
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.ranks import share_of_mean
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views


@dataclass(frozen=True, kw_only=True)
class Data2VecConfig(MaskedMethodConfig):
    """Knobs of data2vec; defaults are the authors' recipe for ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("ViT with shared relative positions, layer scale, drop path. [README]")] = (
        EncoderConfig(position="relative", layer_scale=1e-4, drop_path=0.25)
    )
    mask: Annotated[MaskConfig, Doc("Blockwise, 120 of 196 patches. [README]")] = MaskConfig(
        kind="blockwise", ratio=120 / 196
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.08, 1.0)
    colour: Annotated[ColourConfig, Doc("Perturbation of the one picture that both networks see. [code]")] = (
        ColourConfig(brightness=0.4, contrast=0.4, saturation=0.4, jitter_p=1.0)
    )
    target_blocks: Annotated[
        tuple[int, ...],
        Doc(
            "Blocks whose outputs make the target; 0 is the first, -1 the last. Those counted from the last that the "
            "encoder lacks are left out. [README: the last 6]"
        ),
    ] = (-6, -5, -4, -3, -2, -1)
    normalise_blocks: Annotated[bool, Doc("Whether each block's output is normalised. [paper and code]")] = True
    normalise_target: Annotated[bool, Doc("Whether their mean is normalised again. [README; paper: no]")] = True
    beta: Annotated[float, Doc("Error at which the loss turns from squared to absolute. [paper and README]")] = 2.0
    momentum: Annotated[
        Schedule, Doc("Momentum of the target. [README: constant; paper: linear from .999, then constant]")
    ] = Schedule(kind="constant", start=0.9998)
    optimizer: Annotated[OptimizerConfig, Doc("2e-3 for 2048 images, clipped at 3. [README]")] = OptimizerConfig(
        lr=2e-3, lr_batch=2048, betas=(0.9, 0.999), warmup_epochs=10, min_lr=1e-5, clip=3.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_blocks:
            raise ValueError("target_blocks must name at least one block")
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")


class Data2Vec(Method[Views]):
    """Predict the averaged upper layers of the EMA network at hidden patches (Baevski et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = Data2VecConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="data2vec",
        idea="See half of an image, predict how a slowly moving copy of the network describes the whole.",
        paper="arXiv 2202.03555",
        year=2022,
        family="masked",
        online_input="mask tokens",
        target="EMA encoder, mean of the last blocks",
        objective="smooth absolute error on hidden patches",
    )

    def __init__(self, config: Data2VecConfig) -> None:
        super().__init__()
        self.config: Data2VecConfig = config
        self.encoder = build_vit(config.encoder, mask_token=True)
        depth = self.encoder.depth
        self.blocks = tuple(block % depth for block in config.target_blocks if block >= -depth)
        if not self.blocks or max(config.target_blocks) >= depth:
            raise ValueError(f"an encoder of {depth} blocks has no target_blocks {max(config.target_blocks)}")
        self.head = nn.Linear(self.encoder.width, self.encoder.width)
        self.target_encoder = stop_dropping_(frozen_copy(self.encoder))

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return shared_views(batch, self.encoder, self.config, colour=None, online_colour=self.config.colour)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        prediction_MD, target_MD = self.predict(views.online, mask_BN), self.target(views.online, mask_BN)
        error = F.smooth_l1_loss(prediction_MD, target_MD, beta=self.config.beta)
        return {"features": share_of_mean(error, len(prediction_MD))}

    def predict(self, images_BCHW: Tensor, mask_BN: Tensor, where_BN: Tensor | None = None) -> Tensor:
        """Predicted features [M, D] of the patches `where_BN` (the hidden ones by default)."""
        tokens_BND = self.encoder.patches(self.encoder(images_BCHW, replace_BN=mask_BN))
        return self.head(tokens_BND[mask_BN if where_BN is None else where_BN])

    @torch.no_grad()
    def target(self, images_BCHW: Tensor, where_BN: Tensor) -> Tensor:
        """Features [M, D] of the patches `where_BN`, as the target network sees them in the whole image."""
        width = (self.encoder.width,)
        outputs = self.target_encoder.block_outputs(images_BCHW, self.blocks)
        features_MD = [self.target_encoder.patches(tokens_BLD)[where_BN] for tokens_BLD in outputs]
        if self.config.normalise_blocks:
            features_MD = [F.layer_norm(block_MD, width) for block_MD in features_MD]
        mean_MD = torch.stack(features_MD).mean(dim=0)
        return F.layer_norm(mean_MD, width) if self.config.normalise_target else mean_MD

    def update_target(self, progress: float) -> None:
        ema_update_(self.target_encoder, self.encoder, self.config.momentum.at(progress))

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        """The loss, taken for a logarithm of a probability, says which patch each prediction belongs to."""
        mask_BN = check_mask(views.mask_BN)
        everywhere_BN = torch.ones_like(mask_BN)
        prediction_BND = self.predict(views.online, mask_BN, everywhere_BN).unflatten(0, mask_BN.shape)
        target_BND = self.target(views.online, everywhere_BN).unflatten(0, mask_BN.shape)
        squared_BNN = torch.cdist(prediction_BND.float(), target_BND.float()).square()
        return Inspection(similarity_BNN=(-squared_BNN / (2 * self.config.beta)).softmax(dim=-1))
