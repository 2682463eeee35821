"""ExtreMA: Extreme Masking for Learning Instance and Distributed Visual Representations (Wu et al., TMLR 2023,
arXiv 2206.04667).

BYOL whose augmentation is masking: from a fifth of the patches, predict the target's feature of the whole image; five
disjoint fifths of one image are seen in one step.

Shape legend: B samples, K masks, N patches, V visible patches of a mask, D width, E projected width.

Formula:
    q_k = predictor(projector(class feature of the patches visible in mask k of view 1))
    t = target_projector(target class feature of all of view 2), no gradient
    loss = mean over k and images of 2 - 2 cos(q_k, t)

The class token is not part of the trunk: it listens to the trunk's tokens in two class-attention blocks (CaiT). What is
exported is the trunk, which the authors fine-tune with mean pooling; their linear probe reads the class feature of the
*target*, which `class_feature` gives and the checkpoint holds.

Where the authors' code differs from the paper or surprises:
- only view 1 predicts view 2, not the other way round; the views share crop and flip and differ in colour;
- the final norm ends the trunk, but the loss sees it on the class token only;
- the target moves inside the forward pass, with the weights that the last step left;
- the number of visible patches is rounded down in floating point (100 patches at .9: 9); here it is 10;
- the target has no stochastic depth; 196 patches are hard-coded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import Doc

from unmask.colour.apply import apply_colour
from unmask.colour.plan import ColourConfig, sample_colour
from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, disjoint_masks, masked_count
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    check_size,
    one_crop,
    only_crop,
)
from unmask.methods.siamese import second_view
from unmask.models.build import build_vit
from unmask.models.class_attention import ClassAttention
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.target import ema_update_, frozen_copy, stop_dropping_
from unmask.models.vit import VitEncoder
from unmask.objectives.distillation import cosine_distance
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, generators, normalise_, random_flip, to_float

COLOUR = ColourConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grey_p=0.2)
PROJECTOR = MLPHeadConfig(
    hidden=4096, out=256, layers=3, norm="layer", activation="gelu", hidden_bias=True, out_bias=True
)
PREDICTOR = replace(PROJECTOR, layers=2)


@dataclass(frozen=True, kw_only=True)
class MultiMaskViews(Views):
    """Views whose online picture is seen through several masks."""

    masks_BKN: Bool[Tensor, "B K N"]
    """K masks of each picture; True = hidden. All hide the same number of patches."""


@dataclass(frozen=True, kw_only=True)
class ExtreMAConfig(MethodConfig):
    """Knobs of ExtreMA; defaults are the README's for ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("ViT without class token, fixed sin-cos positions, Xavier init. [code]")] = (
        EncoderConfig(class_token=False, position="sincos", init="xavier", drop_path=0.1)
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.2, 1.0)
    masks: Annotated[int, Doc("How many disjoint masks each picture is seen through. [README]")] = 5
    mask_ratio: Annotated[float, Doc("Share of the patches that each mask hides. [README; .9 with 8 masks]")] = 0.8
    colour: Annotated[ColourConfig, Doc("Colour changes, drawn apart for each of the two views. [code]")] = COLOUR
    class_blocks: Annotated[int, Doc("Class-attention blocks after the trunk. [code]")] = 2
    class_layer_scale: Annotated[float, Doc("Initial layer scale of those; 1e-5 for ViT-L. [code]")] = 0.1
    projector: Annotated[MLPHeadConfig, Doc("Head of both networks. [code]")] = PROJECTOR
    predictor: Annotated[MLPHeadConfig, Doc("Further head of the online network. [code]")] = PREDICTOR
    momentum: Annotated[Schedule, Doc("Momentum of the target. [README]")] = Schedule(
        kind="cosine", start=0.996, end=1.0
    )
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images, 40 epochs of warm-up. [README]")] = (
        OptimizerConfig(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), weight_decay=0.1, warmup_epochs=40)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks < 1:
            raise ValueError(f"masks must be at least 1, got {self.masks}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask ratio must lie strictly between 0 and 1, got {self.mask_ratio}")


class ExtreMA(Method[MultiMaskViews]):
    """From each of K disjoint subsets of patches, predict the target's feature of the image (Wu et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = ExtreMAConfig
    target_moves: ClassVar[Literal["after step", "before step"]] = "before step"
    info: ClassVar[MethodInfo] = MethodInfo(
        title="ExtreMA",
        idea="From each of five disjoint fifths of the patches, predict the feature of the whole image.",
        paper="arXiv 2206.04667",
        year=2023,
        family="masked + siamese",
        online_input="visible patches only, several masks",
        target="EMA encoder, whole image in other colours",
        objective="cosine, one direction",
    )

    def __init__(self, config: ExtreMAConfig) -> None:
        super().__init__()
        self.config: ExtreMAConfig = config
        self.encoder = build_vit(config.encoder, mask_token=False)
        self.class_attention = ClassAttention(
            self.encoder.width,
            self.encoder.vit.blocks[0].attn.num_heads,
            depth=config.class_blocks,
            mlp_ratio=config.encoder.mlp_ratio or 4.0,
            layer_scale=config.class_layer_scale,
        )
        self.projector = MLPHead(self.encoder.width, config.projector)
        self.predictor = MLPHead(config.projector.out, config.predictor)
        self.target_encoder = stop_dropping_(frozen_copy(self.encoder))
        self.target_class_attention = frozen_copy(self.class_attention)
        self.target_projector = frozen_copy(self.projector)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> MultiMaskViews:
        crop_BCHW = only_crop(batch)
        check_size(crop_BCHW, self.encoder)
        host, device = generators(batch.seed, crop_BCHW.device)
        plain_BCHW = to_float(random_flip(crop_BCHW, host))
        online, target = (
            # A picture whose colours stay is the shared one itself, which must not be overwritten.
            normalise_(
                apply_colour(plain_BCHW.clone(), sample_colour(self.config.colour, len(crop_BCHW), host)),
                self.config.mean,
                self.config.std,
            )
            for _ in range(2)
        )
        masks_BKN = disjoint_masks(
            len(crop_BCHW),
            self.encoder.grid,
            self.config.mask_ratio,
            self.config.masks,
            generator=device,
            device=crop_BCHW.device,
        )
        hidden = masked_count(MaskConfig(ratio=self.config.mask_ratio), self.encoder.grid)
        return MultiMaskViews(online=online, target=target, masks_BKN=masks_BKN, hidden=hidden)

    def losses(self, views: MultiMaskViews, progress: float = 0.0) -> Losses:
        # Mask by mask, as the authors' batch is; the patches of a picture are embedded once for all masks.
        drop_MN = views.masks_BKN.transpose(0, 1).flatten(0, 1)
        online_MD = _class_feature(self.encoder, self.class_attention, views.online, drop_MN, views.hidden)
        prediction_ME = self.predictor(self.projector(online_MD))
        with torch.no_grad():
            target_BE = self.target_projector(self.class_feature(second_view(views)))
        return {"cosine": cosine_distance(prediction_ME, target_BE.repeat(views.masks_BKN.shape[1], 1))}

    def class_feature(self, images_BCHW: Tensor) -> Tensor:
        """The target's class feature [B, D] of whole normalised images: what the authors' linear probe reads."""
        return _class_feature(self.target_encoder, self.target_class_attention, images_BCHW)

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_class_attention, self.class_attention, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith("class_token")))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: MultiMaskViews) -> Inspection:
        return Inspection()


def _class_feature(
    encoder: VitEncoder,
    attention: ClassAttention,
    images_BCHW: Tensor,
    drop_MN: Tensor | None = None,
    hidden: int | None = None,
) -> Tensor:
    """Feature [B, D] of images, or [M, D] of what M masks leave of them; the trunk's norm comes after attention."""
    (tokens_MVD,) = encoder.block_outputs(images_BCHW, (encoder.depth - 1,), drop_BN=drop_MN, hidden=hidden)
    return encoder.norm(attention(tokens_MVD))[:, 0]
