"""SupMAE: Supervised Masked Autoencoders Are Efficient Vision Learners (Liang et al. 2022, arXiv 2205.14540).

A masked autoencoder that must also tell, from the visible quarter of the patches, of which class the image is.

Shape legend: B samples, N patches, L = prefix + visible tokens, M hidden patches of the batch, K = p*p*C values of a
patch, W encoder width, E classes.

Formula:
    loss    = MAE's loss + 0.01 cross entropy(head(mean of the visible patch tokens) / 10, label)
    head    = linear, batch norm, ReLU, linear

Where the authors' code differs from the paper, or goes beyond it: the logits are divided by 10; patch variance is
unbiased and 1e-6 is added to it; mask token and class token, having three dimensions, are decayed. Batch norm sees each
rank's images alone (`class_synchronised` changes that), so parts of a batch (`--accumulate`) have statistics of their
own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.data.sources import Source
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
from unmask.methods.mae import paint
from unmask.models.build import build_encoder
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.objectives.reconstruction import mean_squared_error, normalise_patches, patchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views


@dataclass(frozen=True, kw_only=True)
class LabelledViews(Views):
    """Views whose images have classes."""

    labels_B: Int64[Tensor, " B"]


@dataclass(frozen=True, kw_only=True)
class SupMAEConfig(MaskedMethodConfig):
    """Knobs of SupMAE; defaults are the authors'."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions, Xavier init. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    mask: Annotated[MaskConfig, Doc("Single patches at random, 75 %. [paper and code]")] = MaskConfig(
        kind="random", ratio=0.75
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.2, 1.0)
    decoder: Annotated[DecoderConfig, Doc("Pixel decoder, of a single block. [paper and code]")] = DecoderConfig(
        depth=1
    )
    norm_pixels: Annotated[bool, Doc("Whether each patch's pixels are normalised before the loss. [recipe]")] = True
    classes: Annotated[int, Doc("Number of classes; set from the data.")] = 1000
    class_hidden: Annotated[int, Doc("Hidden width of the classification head. [code]")] = 3072
    class_synchronised: Annotated[
        bool, Doc("Whether that head's batch statistics are taken over all ranks, or over each alone. [code: alone]")
    ] = False
    class_feature: Annotated[
        Literal["mean", "class"], Doc("What is classified: the mean visible patch or the class token. [recipe: mean]")
    ] = "mean"
    class_temperature: Annotated[float, Doc("What the logits are divided by. [code]")] = 10.0
    class_weight: Annotated[float, Doc("Weight of the cross entropy. [paper and code]")] = 0.01
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images, 20 epochs of warm-up. [recipe]")] = (
        OptimizerConfig(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=20)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2, got {self.classes}")
        if self.class_temperature <= 0:
            raise ValueError(f"class_temperature must be above 0, got {self.class_temperature}")

    def for_source(self, source: Source) -> SupMAEConfig:
        if source.labels is None or source.classes is None:
            raise ValueError(
                f"SupMAE learns from labels, and {source.name} has none: put its images into one folder a class, "
                "or choose method mae"
            )
        if len(source.classes) < 2:
            raise ValueError(f"SupMAE tells classes apart, and {source.name} has only one, {source.classes[0]}")
        return replace(self, classes=len(source.classes))


class SupMAE(Method[LabelledViews]):
    """Paint hidden pixels and classify the image, both from its visible patches (Liang et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = SupMAEConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="SupMAE",
        idea="See a quarter of the patches, paint the rest and name the class of the image.",
        paper="arXiv 2205.14540",
        year=2022,
        family="masked + supervised",
        online_input="visible patches only",
        target="normalised pixels; labels",
        objective="squared error on hidden patches + cross entropy",
    )

    def __init__(self, config: SupMAEConfig) -> None:
        super().__init__()
        self.config: SupMAEConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        height, width = self.encoder.patch
        self.decoder = TransformerDecoder(
            config.decoder,
            encoder_width=self.encoder.width,
            out_width=height * width * config.encoder.channels,
            grid=self.encoder.grid,
            prefix=self.encoder.prefix,
        )
        self.classifier = MLPHead(
            self.encoder.width,
            MLPHeadConfig(
                hidden=config.class_hidden,
                out=config.classes,
                layers=2,
                hidden_bias=True,
                out_bias=True,
                synchronised=config.class_synchronised,
            ),
        )

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> LabelledViews:
        if batch.labels is None:
            raise ValueError("SupMAE learns from labels, and this batch has none")
        shared = shared_views(batch, self.encoder, self.config, colour=None)
        return LabelledViews(online=shared.online, mask_BN=shared.mask_BN, hidden=shared.hidden, labels_B=batch.labels)

    def losses(self, views: LabelledViews, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        visible_BLW = self.encoder(views.online, drop_BN=mask_BN, hidden=views.hidden)
        prediction_MK = self.decoder.predict(self.decoder.hidden(visible_BLW, mask_BN).flatten(0, 1))
        target_MK = take_hidden(patchify(views.online, self.encoder.patch), mask_BN, hidden=views.hidden)
        if self.config.norm_pixels:
            target_MK = normalise_patches(target_MK)
        logits_BE = self.classify(visible_BLW) / self.config.class_temperature
        return {
            "reconstruction": mean_squared_error(prediction_MK, target_MK),
            "classification": self.config.class_weight * F.cross_entropy(logits_BE, views.labels_B),
        }

    def classify(self, visible_BLW: Tensor) -> Tensor:
        """Logits [B, E] from the tokens of visible patches, before the temperature."""
        return self.classifier(self.encoder.pool(visible_BLW, self.config.class_feature))

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: LabelledViews) -> Inspection:
        mask_BN = check_mask(views.mask_BN)
        prediction_BNK = self.decoder.predict(self.decoder(self.encoder(views.online, drop_BN=mask_BN), mask_BN))
        return Inspection(
            reconstruction_BCHW=paint(prediction_BNK, views.online, self.encoder, self.config.norm_pixels)
        )
