"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen, Xie & He, ICCV 2021,
arXiv 2104.02057).

A view must find, among the images of the batch, the other view of its image as a slowly moving target sees it; the
patch embedding stays random and fixed, which keeps a ViT stable.

Shape legend: B samples, D encoder width, E projected width.

Formula:
    q = predictor(projector(encoder(view))), k = target_projector(target_encoder(view))
    InfoNCE(q, k) = -log( exp(cos(q_b, k_b) / t) / sum over b' of exp(cos(q_b, k_b') / t) ), mean over b
    loss = 2t * InfoNCE(q1, k2) + 2t * InfoNCE(q2, k1)

Where the authors' code differs from the paper, or is not told there:
- each direction carries the factor 2t, and both are summed, not averaged (`two_tau=False` drops the factor);
- the target moves inside the forward pass, after the queries: with the weights that the last step left, and no more
  after the last step; its momentum goes from .99 to 1 by a cosine;
- everything trainable is decayed, biases and norms too;
- batch norm is synchronised over ranks and sees the two views one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import Inspection, Method, MethodConfig, MethodInfo, two_crops, two_views
from unmask.methods.siamese import BYOL_FIRST, BYOL_SECOND, image_feature, second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.target import ema_update_, frozen_copy
from unmask.models.vit import VitEncoder
from unmask.objectives.contrastive import batch_infonce
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses
from unmask.views import Views


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config(MethodConfig):
    """Knobs of MoCo v3; defaults are the authors' for ViTs."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.08, 1.0)
    first_colour: Annotated[ColourConfig, Doc("Colour of view 1. [BYOL, code]")] = BYOL_FIRST
    second_colour: Annotated[ColourConfig, Doc("Colour of view 2. [BYOL, code]")] = BYOL_SECOND
    freeze_patches: Annotated[bool, Doc("Whether a ViT's patch embedding stays as it is drawn. [code]")] = True
    projector: Annotated[MLPHeadConfig, Doc("Head of both networks. [code]")] = MLPHeadConfig(
        hidden=4096, out=256, layers=3, last_norm=True, synchronised=True
    )
    predictor: Annotated[MLPHeadConfig, Doc("Further head of the online network. [code]")] = MLPHeadConfig(
        hidden=4096, out=256, layers=2, last_norm=True, synchronised=True
    )
    temperature: Annotated[float, Doc("Temperature of InfoNCE. [code]")] = 0.2
    two_tau: Annotated[bool, Doc("Whether InfoNCE is multiplied by 2 x temperature. [code]")] = True
    momentum: Annotated[Schedule, Doc("Momentum of the target. [code]")] = Schedule(kind="cosine", start=0.99, end=1.0)
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images, 40 epochs of warm-up. [code]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.999), weight_decay=0.1, warmup_epochs=40
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class MoCoV3(Method[Views]):
    """Views of an image must find each other, across a moving target, among the batch (Chen et al. 2021)."""

    Config: ClassVar[type[MethodConfig]] = MoCoV3Config
    target_moves: ClassVar[Literal["after step", "before step"]] = "before step"
    info: ClassVar[MethodInfo] = MethodInfo(
        title="MoCo v3",
        idea="A view must find its image's other view, as a moving target sees it, in the batch.",
        paper="arXiv 2104.02057",
        year=2021,
        family="siamese",
        online_input="whole image, two crops",
        target="EMA encoder; other images as negatives",
        objective="batch InfoNCE, both directions",
    )

    def __init__(self, config: MoCoV3Config) -> None:
        super().__init__()
        self.config: MoCoV3Config = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        if config.freeze_patches and isinstance(self.encoder, VitEncoder):
            self.encoder.vit.patch_embed.requires_grad_(False)
        self.projector = MLPHead(self.encoder.width, config.projector)
        self.predictor = MLPHead(config.projector.out, config.predictor)
        self.target_encoder = frozen_copy(self.encoder)
        self.target_projector = frozen_copy(self.projector)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return two_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return two_views(batch, self.encoder, self.config, (self.config.first_colour, self.config.second_colour))

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        both = (views.online, second_view(views))
        # One view after the other: batch norm must not see both at once.
        queries = [self.predictor(self.projector(image_feature(self.encoder, images))) for images in both]
        with torch.no_grad():
            keys = [self.target_projector(image_feature(self.target_encoder, images)) for images in both]
        temperature = self.config.temperature
        factor = 2 * temperature if self.config.two_tau else 1.0
        return {
            "first_finds_second": factor * batch_infonce(queries[0], keys[1], temperature),
            "second_finds_first": factor * batch_infonce(queries[1], keys[0], temperature),
        }

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=True)

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        return Inspection()
