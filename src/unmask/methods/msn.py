"""MSN: Masked Siamese Networks for Label-Efficient Learning (Assran et al., ECCV 2022, arXiv 2204.07141).

A crop with patches left out, and small crops, must be assigned to the same learnt prototypes to which the moving target
assigns another, whole crop of the image; all prototypes must be used alike.

Shape legend: B samples, V anchors (online views: masked large crops, then the small ones), N patches, D encoder width,
E projected width, K prototypes.

Formula:
    p = softmax(cos(anchor, prototypes) / .1),  t = softmax(cos(target, prototypes) / (.1 · .25)), then Sinkhorn
    loss = mean of - sum_k t_k log p_k  +  me_max_weight · (ln K - entropy of the mean of p)
           + entropy_weight · mean entropy of p

Where the authors' code differs from the paper, or from this code:
- one random subset of patches is kept for a whole batch, by all masked crops; positions are added before;
- targets are balanced by three Sinkhorn iterations, starting from probabilities (`sinkhorn_iterations=0` for none), and
  take no gradient with respect to the prototypes either;
- anchors of one size go through the head together, so batch norm sees each size apart; the target's batch norm uses its
  own batch's statistics;
- prototypes are neither decayed nor clipped, and have no moving copy;
- schedules are made for a run 1.25 times as long and then broken off: momentum grows linearly, learning rate and weight
  decay follow cosines (`optimizer.stretch`), which the authors read one step later than the momentum;
- their learning rate does not follow the batch size: 1e-3 for 1024 images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, masked_count, sample_mask
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
)
from unmask.methods.multi_crop import (
    MultiCropConfig,
    MultiCropViews,
    check_local_crops,
    multi_crop_views,
    multi_crops,
)
from unmask.methods.siamese import image_feature, second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.prototypes import CosinePrototypes
from unmask.models.target import ema_update_, frozen_copy
from unmask.objectives.clustering import assignment_entropy, idle_prototypes, log_assignment, mean_entropy, sinkhorn
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import generators


@dataclass(frozen=True, kw_only=True)
class MSNConfig(MaskedMethodConfig, MultiCropConfig):
    """Knobs of MSN; defaults are the authors' configuration for ViT-S/16."""

    encoder: Annotated[EncoderConfig, Doc("The encoder that is pre-trained.")] = EncoderConfig(position_resize="scale")
    mask: Annotated[
        MaskConfig, Doc("Patches left out of the masked crops, the same ones in a whole batch. [config]")
    ] = MaskConfig(kind="random", ratio=0.15)
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a large crop covers. [config]")] = (
        0.3,
        1.0,
    )
    masked_crops: Annotated[int, Doc("Number of large crops that the online network sees with a mask. [config]")] = 1
    local_crops: Annotated[int, Doc("Number of small crops of an image; 0: none. [config]")] = 10
    local_crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a small crop covers. [config]")] = (
        0.05,
        0.3,
    )
    colour: Annotated[ColourConfig, Doc("Colour of every crop. [config]")] = ColourConfig(
        brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5
    )
    head: Annotated[MLPHeadConfig, Doc("Head of both networks. [code]")] = MLPHeadConfig(
        hidden=2048, out=256, layers=3, activation="gelu", hidden_bias=True, out_bias=True, synchronised=True
    )
    prototypes: Annotated[int, Doc("Number of prototypes. [config]")] = 1024
    temperature: Annotated[float, Doc("Temperature of the assignment. [paper and config]")] = 0.1
    sharpening: Annotated[
        Schedule, Doc("Temperature by which targets are sharpened after the assignment's own. [config: .25]")
    ] = Schedule(kind="constant", start=0.25)
    sinkhorn_iterations: Annotated[int, Doc("Rounds that balance the targets; 0: none. [code: 3]")] = 3
    me_max_weight: Annotated[float, Doc("Weight of the term that keeps all prototypes in use. [config]")] = 1.0
    entropy_weight: Annotated[float, Doc("Weight of the entropy of single assignments. [config: 0]")] = 0.0
    momentum: Annotated[Schedule, Doc("Momentum of the target: to 1 in 1.25 times the run. [config]")] = Schedule(
        kind="linear", start=0.996, end=1.0, until=1.25
    )
    export: Annotated[
        Literal["target", "online"], Doc("Which network is exported and evaluated. [code: the target]")
    ] = "target"
    optimizer: Annotated[OptimizerConfig, Doc("2e-4 to 1e-3 in 15 epochs, then towards 1e-6. [config]")] = (
        OptimizerConfig(
            lr=1e-3,
            lr_batch=1024,
            betas=(0.9, 0.999),
            weight_decay=0.04,
            weight_decay_end=0.4,
            warmup_epochs=15,
            warmup_start=0.2,
            min_lr=1e-6,
            stretch=1.25,
            clip=3.0,
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.masked_crops < 1:
            raise ValueError(f"there must be at least 1 masked crop, got {self.masked_crops}")
        if self.sinkhorn_iterations < 0:
            raise ValueError(f"sinkhorn_iterations must be 0 or more, got {self.sinkhorn_iterations}")


class MSN(Method[MultiCropViews]):
    """Assign masked and small crops to prototypes as the target assigns a whole one (Assran et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = MSNConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="MSN",
        idea="A masked crop must choose the prototypes that a moving target chooses for another, whole crop.",
        paper="arXiv 2204.07141",
        year=2022,
        family="masked + clustering",
        online_input="visible patches of a large crop, 10 small crops",
        target="EMA encoder's assignment of another crop, sharpened and balanced",
        objective="cross-entropy over 1024 prototypes + entropy of their mean use",
    )

    def __init__(self, config: MSNConfig) -> None:
        super().__init__()
        self.config: MSNConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        check_local_crops(self.encoder, config)
        self.head = MLPHead(self.encoder.width, config.head)
        self.prototypes = CosinePrototypes(config.head.out, config.prototypes)
        self.target_encoder = frozen_copy(self.encoder)
        self.target_head = frozen_copy(self.head)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return multi_crops(self.encoder, self.config, count=1 + self.config.masked_crops)

    def make_views(self, batch: Batch) -> MultiCropViews:
        config = self.config
        colours = (config.colour,) * (1 + config.masked_crops)
        (target, online, *more), local = multi_crop_views(
            batch, self.encoder, config, colours=colours, local_colour=config.colour
        )
        _, generator = generators(batch.seed, online.device)
        mask_1N = sample_mask(config.mask, 1, self.encoder.grid, generator=generator, device=online.device)
        return MultiCropViews(
            online=online,
            target=target,
            mask_BN=mask_1N.expand(len(online), -1),
            hidden=masked_count(config.mask, self.encoder.grid),
            local=local,
            more=torch.stack(more) if more else None,
        )

    def losses(self, views: MultiCropViews, progress: float = 0.0) -> Losses:
        config = self.config
        anchors_VBE = self.anchors(views)
        log_VBK = log_assignment(self.prototypes(anchors_VBE), config.temperature)
        losses = {
            "assignment": assignment_entropy(log_VBK, self.targets(views, progress)),
            "me_max": config.me_max_weight * idle_prototypes(log_VBK.exp()),
        }
        if config.entropy_weight:
            losses["entropy"] = config.entropy_weight * mean_entropy(log_VBK)
        return losses

    def anchors(self, views: MultiCropViews) -> Tensor:
        """Projected class tokens [V, B, E] of the masked crops and then the small ones, one pass for each size."""
        mask_BN = check_mask(views.mask_BN)
        masked = [views.online] if views.more is None else [views.online, *views.more]
        tokens = self.encoder(torch.cat(masked), drop_BN=mask_BN.repeat(len(masked), 1), hidden=views.hidden)
        anchors = [self.head(self.encoder.pool(tokens, "class" if self.encoder.has_class_token else "mean"))]
        if views.local is not None:
            anchors.append(self.head(image_feature(self.encoder, views.local.flatten(0, 1))))
        return torch.cat(anchors).unflatten(0, (-1, len(views.online)))

    @torch.no_grad()
    def project_target(self, views: MultiCropViews) -> Tensor:
        """The target's projected class token of the whole crop [B, E]."""
        return self.target_head(image_feature(self.target_encoder, second_view(views)))

    @torch.no_grad()
    def targets(self, views: MultiCropViews, progress: float) -> Tensor:
        """Sharpened and balanced assignment of the whole crop [B, K]."""
        config = self.config
        target_BE = self.project_target(views)
        # A softmax whose values are raised to 1 / T and normalised again is one with T times the temperature.
        sharp = config.temperature * config.sharpening.at(progress)
        target_BK = (self.prototypes(target_BE) / sharp).softmax(dim=-1)
        return sinkhorn(target_BK, config.sinkhorn_iterations) if config.sinkhorn_iterations else target_BK

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_head, self.head, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        prototypes = name.startswith("prototypes.")
        return ParameterRule(decay=not (prototypes or one_dimensional(name, parameter)), clip=not prototypes)

    def exported(self) -> Encoder:
        return self.target_encoder if self.config.export == "target" else self.encoder

    def inspect(self, views: MultiCropViews) -> Inspection:
        return Inspection()
