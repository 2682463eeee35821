"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021, arXiv 2104.14294).

From any crop of an image, small ones too, the online network must assign it to the same learnt prototypes as a slowly
moving target network does from another, large crop; centring and sharpening the target keep it from collapsing.

Shape legend: B samples, V online views (2 large, then the small ones), Q = 2 target views, D encoder width, K
prototypes.

Formula:
    p = softmax(online / .1),  t = softmax((target - centre) / temperature), no gradient through t
    loss = mean over target views q and online views v != q of the cross-entropy - sum_k t_q log p_v
    centre <- .9 centre + .1 mean of the target's logits over the batch

Where the authors' code differs from the paper, or from this code:
- prototypes are rows of a weight-normalised linear layer whose lengths are fixed at 1 by default (`head.fixed_length`),
  but free in the recipes for ViT-S; the layer is not touched during the first epoch (here a share, `freeze_last`);
- gradients are clipped for each parameter on its own;
- the target has no stochastic depth, the online network has;
- the target's temperature warms up by whole epochs, here by steps;
- positions and class token are decayed; the weight decay itself grows from .04 to .4 by a cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import Inspection, Method, MethodConfig, MethodInfo
from unmask.methods.multi_crop import (
    MultiCropConfig,
    MultiCropViews,
    check_local_crops,
    crop_features,
    multi_crop_views,
    multi_crops,
)
from unmask.methods.siamese import BYOL_FIRST, BYOL_SECOND, second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.prototypes import PrototypeHead, PrototypeHeadConfig
from unmask.models.target import ema_update_, frozen_copy, stop_dropping_
from unmask.objectives.clustering import centred_softmax, cross_view_entropy, next_centre
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional

LOCAL_COLOUR = ColourConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5)
OPTIMIZER = OptimizerConfig(
    lr=5e-4,
    lr_batch=256,
    betas=(0.9, 0.999),
    weight_decay=0.04,
    weight_decay_end=0.4,
    warmup_epochs=10,
    min_lr=1e-6,
    clip=3.0,
    clip_each=True,
)


@dataclass(frozen=True, kw_only=True)
class DINOConfig(MultiCropConfig):
    """Knobs of DINO; defaults are the README's run of ViT-S over 300 epochs, with the crops of the argparse."""

    encoder: Annotated[EncoderConfig, Doc("Stochastic depth for the online network. [argparse]")] = EncoderConfig(
        position_resize="offset", drop_path=0.1
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a large crop covers. [argparse]")] = (
        0.4,
        1.0,
    )
    online_colour: Annotated[ColourConfig, Doc("Colour of the first large crop. [code]")] = BYOL_FIRST
    target_colour: Annotated[ColourConfig, Doc("Colour of the second large crop. [code]")] = BYOL_SECOND
    local_colour: Annotated[ColourConfig, Doc("Colour of the small crops. [code]")] = LOCAL_COLOUR
    head: Annotated[PrototypeHeadConfig, Doc("Head of both networks, with the prototypes. [argparse]")] = (
        PrototypeHeadConfig()
    )
    temperature: Annotated[float, Doc("Temperature of the online network's assignment. [paper and code]")] = 0.1
    target_temperature: Annotated[
        Schedule, Doc("Temperature of the target's assignment. [README: .04 to .07 in 30 of 300 epochs]")
    ] = Schedule(kind="linear", start=0.04, end=0.07, until=0.1)
    centre_momentum: Annotated[float, Doc("Momentum of the centre. [paper and code]")] = 0.9
    freeze_last: Annotated[
        float, Doc("Share of the run during which the prototypes are left alone. [code: the first epoch, of 300]")
    ] = 1 / 300
    momentum: Annotated[Schedule, Doc("Momentum of the target. [paper and code]")] = Schedule(
        kind="cosine", start=0.996, end=1.0
    )
    export: Annotated[
        Literal["target", "online"], Doc("Which network is exported and evaluated. [code: the target]")
    ] = "target"
    optimizer: Annotated[OptimizerConfig, Doc("5e-4 per 256 images, growing weight decay. [argparse]")] = OPTIMIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clustering(self.temperature, self.centre_momentum, self.freeze_last)


def check_clustering(temperature: float, centre_momentum: float, freeze_last: float) -> None:
    """Refuse settings that cannot be."""
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not 0 <= centre_momentum <= 1:
        raise ValueError(f"the centre's momentum must lie in [0, 1], got {centre_momentum}")
    if not 0 <= freeze_last <= 1:
        raise ValueError(f"freeze_last must be a share of the run, in [0, 1], got {freeze_last}")


class DINO(Method[MultiCropViews]):
    """Assign all crops of an image as the target assigns its large ones (Caron et al. 2021)."""

    Config: ClassVar[type[MethodConfig]] = DINOConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="DINO",
        idea="Every crop of an image, large or small, must choose the prototypes that a moving target chooses.",
        paper="arXiv 2104.14294",
        year=2021,
        family="clustering",
        online_input="whole crops, 2 large and 8 small",
        target="EMA encoder's assignment of the large crops, centred and sharpened",
        objective="cross-entropy over 65536 prototypes",
    )
    centre: Tensor

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.config: DINOConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        check_local_crops(self.encoder, config)
        self.head = PrototypeHead(self.encoder.width, config.head)
        self.target_encoder = stop_dropping_(frozen_copy(self.encoder))
        self.target_head = frozen_copy(self.head)
        self.register_buffer("centre", torch.zeros(config.head.out))

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return multi_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> MultiCropViews:
        colours = (self.config.online_colour, self.config.target_colour)
        (first, second), local = multi_crop_views(
            batch, self.encoder, self.config, colours=colours, local_colour=self.config.local_colour
        )
        return MultiCropViews(online=first, target=second, local=local)

    def losses(self, views: MultiCropViews, progress: float = 0.0) -> Losses:
        online_VBK, target_QBK = self.logits(views)
        temperature = self.config.target_temperature.at(progress)
        assigned_QBK = centred_softmax(target_QBK, self.centre, temperature)
        if self.training:
            mean_K = target_QBK.mean(dim=(0, 1))
            self.centre.copy_(next_centre(self.centre, mean_K, self.config.centre_momentum))
        return {"assignment": cross_view_entropy(online_VBK, assigned_QBK, self.config.temperature)}

    def logits(self, views: MultiCropViews) -> tuple[Tensor, Tensor]:
        """Of the online network for all crops [V, B, K], and of the target for the large ones [Q, B, K]."""
        large = [views.online, second_view(views)]
        online_MK = self.head(crop_features(self.encoder, large, views.local))
        with torch.no_grad():
            target_MK = self.target_head(crop_features(self.target_encoder, large, None))
        B = len(views.online)
        return online_MK.unflatten(0, (-1, B)), target_MK.unflatten(0, (-1, B))

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_head, self.head, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        frozen_until = self.config.freeze_last if name.startswith("head.last.") else 0.0
        return ParameterRule(decay=not one_dimensional(name, parameter), frozen_until=frozen_until)

    def exported(self) -> Encoder:
        return self.target_encoder if self.config.export == "target" else self.encoder

    def inspect(self, views: MultiCropViews) -> Inspection:
        return Inspection()
