"""BootMAE: Bootstrapped Masked Autoencoders for Vision BERT Pretraining (Dong et al., ECCV 2022, arXiv 2207.07116).

A masked autoencoder with two decoders: one paints pixels and may look up shallow features, so that the encoder need
not carry them; the other predicts the features that the encoder's own moving average has for the whole image.

Shape legend: B samples, N patches, L = prefix + visible tokens, W encoder width, D pixel decoder's width, M hidden
patches of the batch, K = p*p*C values of a patch.

Formula:
    w       = 1 + share of hidden patches among the 3x3 around a hidden patch (beyond the border: visible)
    pixels  = sum of w mean((prediction - y)^2) / number of hidden patches, y normalised by patch and channel
    feature = sum of w mean((LN(prediction) - LN(last block of the EMA encoder, whole image))^2) / the same number
    loss    = pixels + f(t) feature, f rising from 0 to 1 in the first quarter

Where the authors' code differs from the paper, or goes beyond it: patches have the weights w; predicted and target
features are normalised; 120 patches are hidden by rectangles and random ones fill up to 147, after which up to 3 of the
rectangles' are shown again, one number a batch; pixels are normalised for each channel, by the biased variance; the
README speaks of batches of 2048, its script runs 4096. Different here: momentum and feature weight change with each
step and not each epoch, and the decoders have 8 heads, where theirs have the encoder's 12 and so leave 8 of 512 values
out of attention. Rectangles end after ten proposals in vain (BEiT); theirs try until they meet their count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
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
from unmask.models.build import build_vit
from unmask.models.cross_decoder import CrossDecoder, CrossDecoderConfig
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.positions import sincos_positions
from unmask.models.target import ema_update_, frozen_copy, stop_dropping_
from unmask.objectives.reconstruction import channel_statistics, patchify, unpatchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.ranks import share_of_mean
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views


@dataclass(frozen=True, kw_only=True)
class BootMAEConfig(MaskedMethodConfig):
    """Knobs of BootMAE; defaults are the authors' script for ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions, Xavier init. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    mask: Annotated[MaskConfig, Doc("147 of 196 patches, 120 of them by rectangles. [code]")] = MaskConfig(
        kind="blockwise", ratio=0.75, exact=True, block_ratio=120 / 196, max_block_patches=60, roll=3
    )
    mean: Annotated[tuple[float, ...], Doc("Mean of each channel, of values in [0, 1]. [code]")] = (0.5, 0.5, 0.5)
    std: Annotated[tuple[float, ...], Doc("Deviation of each channel. [code]")] = (0.5, 0.5, 0.5)
    decoder: Annotated[
        CrossDecoderConfig, Doc("Pixel decoder; the feature decoder differs in being as wide as the encoder. [code]")
    ] = CrossDecoderConfig()
    shallow_block: Annotated[int, Doc("Block that the pixel decoder looks up; 0 is the first. [code]")] = 0
    weighted: Annotated[bool, Doc("Whether patches among hidden ones weigh up to twice as much. [script]")] = True
    feature_weight: Annotated[
        Schedule, Doc("Weight of the feature loss. [code: 4 (epoch + 1) / epochs of 800, at most 1]")
    ] = Schedule(kind="linear", start=0.005, end=1.0, until=0.25)
    momentum: Annotated[Schedule, Doc("Momentum of the target at first. [code: until epoch 100 of 800]")] = Schedule(
        kind="linear", start=0.999, end=0.9999, until=0.125
    )
    momentum_end: Annotated[float, Doc("Momentum that it then moves to, linearly. [code]")] = 0.99999
    momentum_until: Annotated[
        float, Doc("Share of the run at which that momentum is reached and kept. [code: epoch 400 of 800]")
    ] = 0.5
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images down to 1e-4. [script]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40, min_lr=1e-4
    )

    def momentum_at(self, progress: float) -> float:
        """Momentum of the target at `progress`, over both stages."""
        first = self.momentum
        if progress <= first.until:
            return first.at(progress)
        if progress >= self.momentum_until:
            return self.momentum_end
        share = (progress - first.until) / (self.momentum_until - first.until)
        return Schedule(kind="linear", start=first.at(first.until), end=self.momentum_end).at(share)


class BootMAE(Method[Views]):
    """Paint hidden pixels and predict the EMA encoder's features of them, by two decoders (Dong et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = BootMAEConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="BootMAE",
        idea="A masked autoencoder that also predicts what its own moving average sees in hidden patches.",
        paper="arXiv 2207.07116",
        year=2022,
        family="masked",
        online_input="visible patches only",
        target="normalised pixels; EMA encoder, last block",
        objective="squared errors on hidden patches",
    )

    def __init__(self, config: BootMAEConfig) -> None:
        super().__init__()
        self.config: BootMAEConfig = config
        self.encoder = build_vit(config.encoder, mask_token=False)
        encoder, (height_p, width_p), channels = self.encoder, self.encoder.patch, config.encoder.channels
        if encoder.vit.pos_embed is None:
            raise ValueError("BootMAE needs an encoder with a vector for each position; choose position 'sincos'")
        if not 0 <= config.shallow_block < encoder.depth:
            raise ValueError(f"shallow_block is {config.shallow_block}, but the encoder has {encoder.depth} blocks")
        self.pixel_decoder = CrossDecoder(config.decoder, encoder_width=encoder.width, prefix=encoder.prefix)
        self.pixel_position: Tensor
        self.register_buffer("pixel_position", sincos_positions(encoder.grid, config.decoder.width))
        self.pixel_head = nn.Linear(config.decoder.width, height_p * width_p * channels, bias=False)
        self.pixel_bias = nn.Parameter(torch.zeros(channels))
        as_wide = replace(config.decoder, width=encoder.width)
        self.feature_decoder = CrossDecoder(as_wide, encoder_width=encoder.width, prefix=encoder.prefix)
        self.feature_head = nn.Linear(encoder.width, encoder.width)
        for head in (self.pixel_head, self.feature_head):
            nn.init.xavier_uniform_(head.weight)
        nn.init.zeros_(self.feature_head.bias)
        self.target_encoder = stop_dropping_(frozen_copy(encoder))

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return shared_views(batch, self.encoder, self.config, colour=None)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        painted_MK, feature_MW = self.predict(views.online, mask_BN, mask_BN)
        patches_MK = patchify(views.online, self.encoder.patch)[mask_BN]
        mean_MK, deviation_MK = channel_statistics(patches_MK, self.config.encoder.channels)
        pixel_error_M = (painted_MK - (patches_MK - mean_MK) / deviation_MK).pow(2).mean(dim=-1)
        target_MW = self.target(views.online, mask_BN)
        feature_error_M = (_normalised(feature_MW) - _normalised(target_MW)).pow(2).mean(dim=-1)
        if self.config.weighted:
            weight_M = 1 + hidden_neighbours(mask_BN, self.encoder.grid)[mask_BN].to(pixel_error_M.dtype) / 9
            pixel_error_M, feature_error_M = weight_M * pixel_error_M, weight_M * feature_error_M
        return {
            "pixels": share_of_mean(pixel_error_M.mean(), len(pixel_error_M)),
            "features": self.config.feature_weight.at(progress)
            * share_of_mean(feature_error_M.mean(), len(feature_error_M)),
        }

    def predict(self, images_BCHW: Tensor, mask_BN: Tensor, where_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels [M, K] and features [M, W] of the patches `where_BN`."""
        blocks = (self.config.shallow_block, self.encoder.depth - 1)
        shallow_BLW, deep_BLW = self.encoder.block_outputs(images_BCHW, blocks, drop_BN=mask_BN)
        visible_BLW = self.encoder.norm(deep_BLW)
        patches = mask_BN.shape[1]
        pixel_BND = self.pixel_decoder(visible_BLW, shallow_BLW, mask_BN, self.pixel_position[:, -patches:])
        feature_BNW = self.feature_decoder(visible_BLW, deep_BLW, mask_BN, self.encoder.vit.pos_embed[:, -patches:])
        pixel_MK = self.pixel_head(pixel_BND[where_BN])
        pixel_MK = (pixel_MK.unflatten(-1, (-1, len(self.pixel_bias))) + self.pixel_bias).flatten(-2)
        return pixel_MK, self.feature_head(feature_BNW[where_BN])

    @torch.no_grad()
    def target(self, images_BCHW: Tensor, where_BN: Tensor) -> Tensor:
        """Features [M, W] of the patches `where_BN`, as the target network sees them in the whole image."""
        (last_BLW,) = self.target_encoder.block_outputs(images_BCHW, (self.encoder.depth - 1,))
        return self.target_encoder.patches(last_BLW)[where_BN]

    def update_target(self, progress: float) -> None:
        ema_update_(self.target_encoder, self.encoder, self.config.momentum_at(progress))

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        mask_BN = check_mask(views.mask_BN)
        painted_MK, _ = self.predict(views.online, mask_BN, torch.ones_like(mask_BN))
        patches_BNK = patchify(views.online, self.encoder.patch)
        mean_BNK, deviation_BNK = channel_statistics(patches_BNK, self.config.encoder.channels)
        painted_BNK = painted_MK.view_as(patches_BNK) * deviation_BNK + mean_BNK
        return Inspection(reconstruction_BCHW=unpatchify(painted_BNK, self.encoder.patch, self.encoder.grid))


def hidden_neighbours(mask_BN: Bool[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B N"]:
    """How many of the 3x3 patches around each patch, itself among them, are hidden; beyond the border none is."""
    mask_B1RC = mask_BN.float().unflatten(1, (1, *grid))
    return F.avg_pool2d(mask_B1RC, kernel_size=3, stride=1, padding=1, divisor_override=1).flatten(1)


def _normalised(features_MW: Tensor) -> Tensor:
    return F.layer_norm(features_MW, features_MW.shape[-1:], eps=1e-6)
