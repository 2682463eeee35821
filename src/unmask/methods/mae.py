"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, arXiv 2111.06377).

The encoder sees a quarter of the patches; a light decoder paints the hidden ones.

Shape legend: B samples, N patches, L = prefix + visible tokens, M hidden patches of the batch, K = p*p*C values.

Where the authors' code differs from the paper: patch variance is unbiased and 1e-6 is added to it; mask token and class
token, having three dimensions, are decayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, take_hidden
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
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.objectives.reconstruction import (
    mean_squared_error,
    normalise_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views


@dataclass(frozen=True, kw_only=True)
class MAEConfig(MaskedMethodConfig):
    """Knobs of MAE; defaults are the authors'."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions, Xavier init. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    mask: Annotated[MaskConfig, Doc("Single patches at random, 75 %. [paper and code]")] = MaskConfig(
        kind="random", ratio=0.75
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (
        0.2,
        1.0,
    )
    decoder: Annotated[DecoderConfig, Doc("Pixel decoder. [paper and code]")] = DecoderConfig()
    norm_pixels: Annotated[bool, Doc("Whether each patch's pixels are normalised before the loss. [recipe]")] = True
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images, 40 epochs of warm-up. [code]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40
    )


class MAE(Method[Views]):
    """Encode the visible patches, decode all, compare the hidden ones with their pixels (He et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = MAEConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="MAE",
        idea="See a quarter of the patches, paint the rest.",
        paper="arXiv 2111.06377",
        year=2022,
        family="masked",
        online_input="visible patches only",
        target="normalised pixels",
        objective="squared error on hidden patches",
    )

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config: MAEConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        height, width = self.encoder.patch
        self.decoder = TransformerDecoder(
            config.decoder,
            encoder_width=self.encoder.width,
            out_width=height * width * config.encoder.channels,
            grid=self.encoder.grid,
            prefix=self.encoder.prefix,
        )

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return shared_views(batch, self.encoder, self.config, colour=None)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        visible_BLW = self.encoder(views.online, drop_BN=mask_BN, hidden=views.hidden)
        prediction_MK = self.decoder.predict(self.decoder.hidden(visible_BLW, mask_BN).flatten(0, 1))
        target_MK = take_hidden(patchify(views.online, self.encoder.patch), mask_BN, hidden=views.hidden)
        if self.config.norm_pixels:
            target_MK = normalise_patches(target_MK)
        return {"reconstruction": mean_squared_error(prediction_MK, target_MK)}

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        mask_BN = check_mask(views.mask_BN)
        decoded_BND = self.decoder(self.encoder(views.online, drop_BN=mask_BN), mask_BN)
        return Inspection(
            reconstruction_BCHW=paint(
                self.decoder.predict(decoded_BND), views.online, self.encoder, self.config.norm_pixels
            )
        )


def paint(prediction_BNK: Tensor, images_BCHW: Tensor, encoder: Encoder, norm_pixels: bool) -> Tensor:
    """Images [B, C, H, W] from predicted patches; normalised ones take their mean and deviation from the true patch,
    as every published picture of MAE does."""
    if norm_pixels:
        mean, deviation = patch_statistics(patchify(images_BCHW, encoder.patch))
        prediction_BNK = prediction_BNK * deviation + mean
    return unpatchify(prediction_BNK, encoder.patch, encoder.grid)
