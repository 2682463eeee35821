"""ConMIM: Masked Image Modeling with Denoising Contrast (Yi et al., ICLR 2023, arXiv 2205.09616).

A masked patch must find, among all patches of its own image, the feature that a slowly moving target network computes
at its position from the whole, colour-perturbed image.

Shape legend: B samples, N patches, L = prefix + N tokens, E projected width.

Where the authors' code differs from the paper (the code is the default here):
- random masks hide ceil(.75 x 49) blocks of 2x2 patches at 224 px: 75.5 %, not 75 %; their argparse default is BEiT's
  blockwise mask of about 38 % (`mask.kind=blockwise`, `mask.ratio=.383`);
- features pass a three-layer projector with batch norm that the formula hides in f(.); it sees class and mask tokens
  too, and its statistics are those of each GPU alone (`projector.synchronised` changes that);
- the target is fine-tuned, not the online network (`export`);
- the mask token and the table of relative positions are decayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc

from unmask.colour import ColourConfig
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
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.target import ema_update_, frozen_copy
from unmask.objectives.contrastive import patch_infonce
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views


@dataclass(frozen=True, kw_only=True)
class ConMIMConfig(MaskedMethodConfig):
    """Knobs of ConMIM; defaults are the authors' (README recipe where it differs from their argparse)."""

    encoder: Annotated[EncoderConfig, Doc("BEiT's ViT: shared relative positions, layer scale. [authors' code]")] = (
        EncoderConfig(position="relative", layer_scale=0.1)
    )
    mask: Annotated[MaskConfig, Doc("2x2 patches at once, 75 % of them. [README: random_mps32]")] = MaskConfig(
        kind="random", ratio=0.75, unit=2
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [authors' code]")] = (
        0.08,
        1.0,
    )
    colour: Annotated[ColourConfig, Doc("Perturbation of the target's view; the online view has none. [code]")] = (
        ColourConfig(
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            jitter_p=0.8,
            grey_p=0.2,
            blur_p=0.1,
            solarise_p=0.2,
        )
    )
    projector: Annotated[MLPHeadConfig, Doc("Head of both branches; there is no predictor. [authors' code]")] = (
        MLPHeadConfig(hidden=4096, out=256, layers=3, last_norm=True)
    )
    temperature: Annotated[float, Doc("Temperature of the patch InfoNCE. [paper and code]")] = 0.1
    momentum: Annotated[Schedule, Doc("Momentum of the target. [paper and code]")] = Schedule(
        kind="cosine", start=0.996, end=1.0
    )
    export: Annotated[
        Literal["target", "online"],
        Doc("Which network is exported and evaluated. [README: the target's weights]"),
    ] = "target"
    optimizer: Annotated[OptimizerConfig, Doc("lr is absolute; the README's ViT-L uses 7.5e-4. [argparse]")] = (
        OptimizerConfig(lr=5e-4, lr_batch=None, betas=(0.9, 0.98), warmup_epochs=5, min_lr=1e-5)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class ConMIM(Method[Views]):
    """A masked patch must find its own target feature among all N patches of its image (Yi et al. 2023)."""

    Config: ClassVar[type[MethodConfig]] = ConMIMConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="ConMIM",
        idea="A masked patch must find its own feature among all patches of its image.",
        paper="arXiv 2205.09616",
        year=2023,
        family="masked + contrastive",
        online_input="mask tokens",
        target="EMA encoder, whole image",
        objective="patch InfoNCE within an image",
    )

    def __init__(self, config: ConMIMConfig) -> None:
        super().__init__()
        self.config: ConMIMConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=True)
        self.projector = MLPHead(self.encoder.width, config.projector)
        self.target_encoder = frozen_copy(self.encoder)
        self.target_projector = frozen_copy(self.projector)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return shared_views(batch, self.encoder, self.config, self.config.colour)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        student_BLE, target_BLE = self._features(views, mask_BN)
        contrast = patch_infonce(
            self.encoder.patches(student_BLE),
            self.encoder.patches(target_BLE),
            mask_BN,
            self.config.temperature,
        )
        return {"contrast": contrast}

    def _features(self, views: Views, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Projected tokens of both branches [B, L, E]; batch norm sees all tokens, the class token's included."""
        student_BLE = self.projector(self.encoder(views.online, replace_BN=mask_BN))
        with torch.no_grad():
            target = views.online if views.target is None else views.target
            target_BLE = self.target_projector(self.target_encoder(target))
        return student_BLE, target_BLE

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.target_encoder if self.config.export == "target" else self.encoder

    def inspect(self, views: Views) -> Inspection:
        student_BLE, target_BLE = self._features(views, check_mask(views.mask_BN))
        student_BNE = F.normalize(self.encoder.patches(student_BLE), dim=-1)
        target_BNE = F.normalize(self.encoder.patches(target_BLE), dim=-1)
        logits_BNN = student_BNE @ target_BNE.transpose(1, 2) / self.config.temperature
        return Inspection(similarity_BNN=logits_BNN.softmax(dim=-1))
