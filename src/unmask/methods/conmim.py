"""ConMIM: Masked Image Modeling with Denoising Contrast (Yi et al., ICLR 2023, arXiv 2205.09616).

A masked patch must find, among all patches of its own image, the feature that a slowly moving target network computes
at its position from the whole, colour-perturbed image.

Shape legend: B samples, N patches, L = prefix + N tokens, T = B x N, Q chosen patches of all samples, D width, E
projected width.

Where the authors' code differs from the paper (the code is the default here):
- random masks hide ceil(.75 x 49) blocks of 2x2 patches at 224 px: 75.5 %, not 75 %; their argparse default is BEiT's
  blockwise mask of about 38 % (`mask.kind=blockwise`, `mask.ratio=.383`);
- features pass a three-layer projector with batch norm that the formula hides in f(.); it sees class and mask tokens
  too, and its statistics are those of each GPU alone (`projector.synchronised` changes that);
- the target is fine-tuned, not the online network (`export`);
- the mask token and the table of relative positions are decayed.

Cheaper forms of the projector, which costs as much as a ViT-S/16 encoder and which batch norm ties to tokens that the
loss never looks at (ours, off by default; `benchmarks/projector.py` measures speed and accuracy of each):

- `projected=needed`: only hidden patches pass the online projector, and patches without the class token the target's;
  batch norm's statistics come from these;
- `query_share=.5` beside it: a random half of the hidden patches asks in each step, the others are neither projected
  nor in the statistics; keys are still all patches;
- `projector.hidden=2048`: half as wide hidden layers; the product between them, which is most of the projector, costs
  a quarter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.masking import Mask, MaskConfig, take_hidden
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
    projected: Annotated[
        Literal["all", "needed"],
        Doc(
            "Tokens that pass the projectors and so make batch norm's statistics: all of both branches [authors' "
            "code], or those the loss needs, hidden patches online and all patches of the target (ours, cheaper)."
        ),
    ] = "all"
    query_share: Annotated[
        float,
        Doc("Share of the hidden patches that are queries, drawn anew each step; below 1 needs `projected=needed`."),
    ] = 1.0
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
        if not 0 < self.query_share <= 1:
            raise ValueError(f"query share must lie above 0 and be at most 1, got {self.query_share}")
        if self.query_share < 1 and self.projected == "all":
            raise ValueError(
                f"a query share of {self.query_share} saves nothing while all tokens are projected; "
                "set projected to 'needed' too"
            )


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
        student_BLD, target_BLD = self._tokens(views, mask_BN)
        queries_BN, queries = mask_BN, views.hidden
        if self.config.projected == "all":
            student_BNE, target_BNE = self._projected(student_BLD, target_BLD)
        else:
            if self.config.query_share < 1:
                queries_BN, queries = draw_queries(mask_BN, self.config.query_share, hidden=views.hidden)
            student_BNE = project_some(self.projector, self.encoder.patches(student_BLD), queries_BN, count=queries)
            with torch.no_grad():
                target_BNE = self.target_projector(self.encoder.patches(target_BLD))
        contrast = patch_infonce(student_BNE, target_BNE, queries_BN, self.config.temperature, hidden=queries)
        return {"contrast": contrast}

    def _tokens(self, views: Views, mask_BN: Mask) -> tuple[Tensor, Tensor]:
        """Encoded tokens of both branches [B, L, D]."""
        student_BLD = self.encoder(views.online, replace_BN=mask_BN, hidden=views.hidden)
        with torch.no_grad():
            return student_BLD, self.target_encoder(views.online if views.target is None else views.target)

    def _projected(self, student_BLD: Tensor, target_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Projected patches of both branches [B, N, E]; batch norm sees all tokens, the class token's included."""
        student_BLE = self.projector(student_BLD)
        with torch.no_grad():
            target_BLE = self.target_projector(target_BLD)
        return self.encoder.patches(student_BLE), self.encoder.patches(target_BLE)

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.target_encoder if self.config.export == "target" else self.encoder

    def inspect(self, views: Views) -> Inspection:
        # In eval mode a token's projection depends on no other, so it does not matter which are projected.
        student_BNE, target_BNE = self._projected(*self._tokens(views, check_mask(views.mask_BN)))
        student_BNE, target_BNE = F.normalize(student_BNE, dim=-1), F.normalize(target_BNE, dim=-1)
        logits_BNN = student_BNE @ target_BNE.transpose(1, 2) / self.config.temperature
        return Inspection(similarity_BNN=logits_BNN.softmax(dim=-1))


def draw_queries(mask_BN: Mask, share: float, *, hidden: int | None = None) -> tuple[Mask, int | None]:
    """A random `share` of the hidden patches of every sample, rounded up, and their number where it is known.

    `hidden` is the number of hidden patches where every sample hides as many (trusted). Draws from torch's own state,
    as stochastic depth does; the device is not waited for.
    """
    noise_BN = torch.rand(mask_BN.shape, device=mask_BN.device)
    rank_BN = noise_BN.masked_fill(~mask_BN, torch.inf).argsort(dim=1).argsort(dim=1)
    if hidden is not None:
        # Blind to the last bits of a product such as 10 * 0.7.
        count = math.ceil(hidden * share - 1e-9)
        return rank_BN < count, count
    count_B1 = (mask_BN.sum(dim=1, keepdim=True) * share - 1e-4).ceil()
    return rank_BN < count_B1, None


def project_some(
    projector: MLPHead, patches_BND: Float[Tensor, "B N D"], chosen_BN: Mask, *, count: int | None
) -> Float[Tensor, "B N E"]:
    """Projections of the chosen patches at their places, 0 at all others; batch norm sees the chosen ones alone.

    `count` is the number of chosen patches where it is the same in every sample and known: the device is then not
    waited for.
    """
    place_BN = torch.arange(chosen_BN.numel(), device=chosen_BN.device).view_as(chosen_BN)
    place_Q = take_hidden(place_BN, chosen_BN, hidden=count)
    projected_QE = projector(patches_BND.flatten(0, 1).index_select(0, place_Q))
    all_TE = projected_QE.new_zeros(chosen_BN.numel(), projected_QE.shape[1])
    return all_TE.index_copy(0, place_Q, projected_QE).unflatten(0, chosen_BN.shape)
