"""CMAE: Contrastive Masked Autoencoders are Stronger Vision Learners (Huang et al., TPAMI, arXiv 2207.13532).

A masked autoencoder whose decoded feature must also find, among the images of the batch, the target feature of its own
image, seen through a slightly shifted and coloured window.

Shape legend: B samples, N patches, L = prefix + visible tokens, M hidden patches of the batch, W encoder width,
D decoder width, E projected width.

Where the authors' code differs from the paper (the code is the default here):
- 2x2 patches are hidden at once and 65 % of them (`mask.unit=1`, `mask.ratio=.75` for the paper's);
- the contrastive loss carries a factor 2 x temperature, so its weight against plain InfoNCE is .14 (`two_tau=False`);
- the target encoder has no final norm (`target_norm=True` gives it one);
- the shift is 0 to 31 pixels, both included (`max_shift=30` for the paper's half-open range);
- the feature decoder sees mask tokens and its outputs at all positions, hidden and visible, are averaged;
- batch norm is synchronised over ranks, has epsilon 1e-6, and its weights are decayed.
Their sin-cos positions hold rows in the first half, MAE's (used here) columns: the same up to the order of a token's
dimensions, which a new network does not know. Their weights bring their own positions.
The authors' pipeline feeds channels as BGR with statistics of RGB; that matters only when their weights are loaded.
This is not the other method called CMAE (arXiv 2205.10546).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, masked_count, sample_mask, take_hidden
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    only_crop,
)
from unmask.methods.mae import paint
from unmask.models.build import build_encoder
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.target import ema_update_, frozen_copy
from unmask.objectives.contrastive import batch_infonce
from unmask.objectives.reconstruction import mean_squared_error, normalise_patches, patchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses
from unmask.views import Views, generators, pixel_shift_views

HEAD = MLPHeadConfig(hidden=1536, out=256, layers=2, hidden_bias=True, norm_eps=1e-6, synchronised=True)


@dataclass(frozen=True, kw_only=True)
class CMAEConfig(MaskedMethodConfig):
    """Knobs of CMAE; defaults are those of the authors' code for ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("MAE's ViT: fixed sin-cos positions, Xavier init. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    mask: Annotated[MaskConfig, Doc("2x2 patches at once, 65 % of them. [code; paper: single patches, 75 %]")] = (
        MaskConfig(kind="random", ratio=0.65, unit=2)
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that the master crop covers. [code]")] = (
        0.2,
        1.0,
    )
    max_shift: Annotated[
        int,
        Doc("Largest shift of the target's window, down and right, in pixels, at 224 px images. [code: 31]"),
    ] = 31
    colour: Annotated[ColourConfig, Doc("Perturbation of the target's view; the online view has none. [code]")] = (
        ColourConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5)
    )
    pixel_decoder: Annotated[DecoderConfig, Doc("Paints pixels. [paper and code]")] = DecoderConfig(depth=8)
    feature_decoder: Annotated[DecoderConfig, Doc("Decodes features; its output is as wide as the encoder. [code]")] = (
        DecoderConfig(depth=2)
    )
    projector: Annotated[MLPHeadConfig, Doc("Head of both branches. [code]")] = HEAD
    predictor: Annotated[MLPHeadConfig, Doc("Head of the online branch alone, after the projector. [code]")] = HEAD
    norm_pixels: Annotated[bool, Doc("Whether each patch's pixels are normalised. [code: always]")] = True
    temperature: Annotated[float, Doc("Temperature of the batch InfoNCE. [code]")] = 0.07
    two_tau: Annotated[bool, Doc("Whether InfoNCE is multiplied by 2 x temperature. [code: yes; paper: no]")] = True
    contrast_weight: Annotated[float, Doc("Weight of the contrastive loss. [paper and code]")] = 1.0
    target_norm: Annotated[bool, Doc("Whether the target encoder keeps its final norm. [code: no]")] = False
    momentum: Annotated[Schedule, Doc("Momentum of the target. [code: constant]")] = Schedule(
        kind="constant", start=0.996
    )
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images, 40 epochs of warm-up. [code]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40, warmup_start=1e-4
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.max_shift < 0:
            raise ValueError(f"max_shift must be 0 or more, got {self.max_shift}")

    def for_images(self, height: int, width: int) -> CMAEConfig:
        scaled = round(self.max_shift * min(height, width) / min(self.encoder.image_height, self.encoder.image_width))
        encoder = replace(self.encoder, image_height=height, image_width=width)
        return replace(self, encoder=encoder, max_shift=scaled)


class CMAE(Method[Views]):
    """Paint hidden pixels, and match the decoded mean feature with one's own image in the batch (Huang et al. 2023)."""

    Config: ClassVar[type[MethodConfig]] = CMAEConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="CMAE",
        idea="A masked autoencoder whose decoded feature must also find its own image in the batch.",
        paper="arXiv 2207.13532",
        year=2024,
        family="masked + contrastive",
        online_input="visible patches only",
        target="normalised pixels; EMA encoder, shifted whole image",
        objective="squared error + batch InfoNCE",
    )

    def __init__(self, config: CMAEConfig) -> None:
        super().__init__()
        self.config: CMAEConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        width, grid, prefix = self.encoder.width, self.encoder.grid, self.encoder.prefix
        height_p, width_p = self.encoder.patch
        self.pixel_decoder = TransformerDecoder(
            config.pixel_decoder,
            encoder_width=width,
            out_width=height_p * width_p * config.encoder.channels,
            grid=grid,
            prefix=prefix,
        )
        self.feature_decoder = TransformerDecoder(
            config.feature_decoder, encoder_width=width, out_width=width, grid=grid, prefix=prefix
        )
        self.projector = MLPHead(width, config.projector)
        self.predictor = MLPHead(config.projector.out, config.predictor)
        self.target_encoder = frozen_copy(self.encoder)
        if not config.target_norm:
            self.target_encoder.remove_norm()
        self.target_projector = frozen_copy(self.projector)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        # The master crop leaves room for the shift: 256 pixels at 224 and 31.
        height, width = self.encoder.image_size
        margin = self.config.max_shift + 1 if self.config.max_shift else 0
        return (CropConfig(height=height + margin, width=width + margin, scale=self.config.crop_scale),)

    def make_views(self, batch: Batch) -> Views:
        master_BCHW = only_crop(batch)
        host, device = generators(batch.seed, master_BCHW.device)
        online, target = pixel_shift_views(
            master_BCHW,
            size=self.encoder.image_size,
            max_shift=self.config.max_shift,
            colour=self.config.colour,
            mean=self.config.mean,
            std=self.config.std,
            generator=host,
        )
        mask_BN = sample_mask(
            self.config.mask, len(master_BCHW), self.encoder.grid, generator=device, device=master_BCHW.device
        )
        hidden = masked_count(self.config.mask, self.encoder.grid)
        return Views(online=online, target=target, mask_BN=mask_BN, hidden=hidden)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        visible_BLW = self.encoder(views.online, drop_BN=mask_BN, hidden=views.hidden)
        return {
            "reconstruction": self._reconstruction(visible_BLW, views, mask_BN),
            "contrast": self._contrast(visible_BLW, views, mask_BN),
        }

    def _reconstruction(self, visible_BLW: Tensor, views: Views, mask_BN: Tensor) -> Tensor:
        prediction_MK = self.pixel_decoder.predict(self.pixel_decoder.hidden(visible_BLW, mask_BN).flatten(0, 1))
        target_MK = take_hidden(patchify(views.online, self.encoder.patch), mask_BN, hidden=views.hidden)
        if self.config.norm_pixels:
            target_MK = normalise_patches(target_MK)
        return mean_squared_error(prediction_MK, target_MK)

    def _contrast(self, visible_BLW: Tensor, views: Views, mask_BN: Tensor) -> Tensor:
        # The mean over positions and the last linear layer commute: predict once an image, not once a patch.
        decoded_BW = self.feature_decoder.predict(self.feature_decoder(visible_BLW, mask_BN).mean(dim=1))
        online_BE = self.predictor(self.projector(decoded_BW))
        with torch.no_grad():
            target = views.online if views.target is None else views.target
            target_BW = self.target_encoder.pool(self.target_encoder(target))
            target_BE = self.target_projector(target_BW)
        factor = 2 * self.config.temperature if self.config.two_tau else 1.0
        infonce = batch_infonce(online_BE, target_BE, self.config.temperature)
        return self.config.contrast_weight * factor * infonce

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        # The authors name what is left undecayed; batch norm's weights (in the heads) are not among it.
        layer_norm = "norm" in name  # also q_norm and k_norm of encoders that have them
        return ParameterRule(decay=not (layer_norm or name.endswith(("bias", "pos_embed", "mask_token", "cls_token"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        mask_BN = check_mask(views.mask_BN)
        decoded_BND = self.pixel_decoder(self.encoder(views.online, drop_BN=mask_BN), mask_BN)
        prediction_BNK = self.pixel_decoder.predict(decoded_BND)
        return Inspection(
            reconstruction_BCHW=paint(prediction_BNK, views.online, self.encoder, self.config.norm_pixels)
        )
