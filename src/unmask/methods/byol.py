"""BYOL: Bootstrap Your Own Latent (Grill et al., NeurIPS 2020, arXiv 2006.07733).

From one view, predict what a slowly moving target network makes of the other; there are no negatives.

Shape legend: B samples, D encoder width, E projected width.

Formula:
    p = predictor(projector(encoder(view))), z = target_projector(target_encoder(view)), no gradient through z
    loss = mean of 2 - 2 cos(p1, z2)  +  mean of 2 - 2 cos(p2, z1)

The authors' code is JAX; the golden case is OpenMMLab's. It differs from the paper in little:
- the target moves inside the forward pass, with the weights that the last step left, and no more after the last step;
- batch statistics are copied to the target at each of its moves (they are never used: the target stays in train mode);
- the paper trains by LARS; here AdamW, as the golden case does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    two_crops,
    two_views,
)
from unmask.methods.siamese import BYOL_FIRST, BYOL_SECOND, copy_statistics_, image_feature, second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.target import ema_update_, frozen_copy
from unmask.objectives.distillation import cosine_distance
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views

HEAD = MLPHeadConfig(hidden=4096, out=256, layers=2, hidden_bias=True, synchronised=True)


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(MethodConfig):
    """Knobs of BYOL; defaults are the authors' but for the optimizer."""

    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [paper]")] = (0.08, 1.0)
    first_colour: Annotated[ColourConfig, Doc("Colour of view 1. [paper]")] = BYOL_FIRST
    second_colour: Annotated[ColourConfig, Doc("Colour of view 2. [paper]")] = BYOL_SECOND
    projector: Annotated[MLPHeadConfig, Doc("Head of both networks. [paper]")] = HEAD
    predictor: Annotated[MLPHeadConfig, Doc("Further head of the online network. [paper]")] = HEAD
    momentum: Annotated[Schedule, Doc("Momentum of the target. [paper; .99 in runs of 300 epochs]")] = Schedule(
        kind="cosine", start=0.996, end=1.0
    )
    optimizer: Annotated[OptimizerConfig, Doc("AdamW in place of LARS. [ours]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.999), weight_decay=0.05, warmup_epochs=10
    )


class BYOL(Method[Views]):
    """Predict the target's feature of the other view (Grill et al. 2020)."""

    Config: ClassVar[type[MethodConfig]] = BYOLConfig
    target_moves: ClassVar[Literal["after step", "before step"]] = "before step"
    info: ClassVar[MethodInfo] = MethodInfo(
        title="BYOL",
        idea="From one view, predict what a moving target makes of the other; no negatives.",
        paper="arXiv 2006.07733",
        year=2020,
        family="siamese",
        online_input="whole image, two crops",
        target="EMA encoder, other view",
        objective="cosine, both directions",
    )

    def __init__(self, config: BYOLConfig) -> None:
        super().__init__()
        self.config: BYOLConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
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
        projected = [self.projector(image_feature(self.encoder, images)) for images in both]
        if self.training:
            copy_statistics_(self.target_encoder, self.encoder)
            copy_statistics_(self.target_projector, self.projector)
        with torch.no_grad():
            targets = [self.target_projector(image_feature(self.target_encoder, images)) for images in both]
        first_BE, second_BE = (self.predictor(projection) for projection in projected)
        return {
            "first_to_second": cosine_distance(first_BE, targets[1]),
            "second_to_first": cosine_distance(second_BE, targets[0]),
        }

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        return Inspection()
