"""SIM: Siamese Image Modeling for Self-Supervised Vision Representation Learning (Tao et al., CVPR 2023,
arXiv 2206.01204).

From the visible patches of one crop, predict the target's feature of every patch of *another* crop of the same image,
given only where that crop lies.

Shape legend: B samples, N patches, L = prefix + visible tokens, T = B * N, W encoder width, D decoder width.

Formula:
    p = predictor(projector(encoder(visible patches of view 1)), relative position of view 2), for all N patches of it
    t = norm(target_projector(target_encoder(all of view 2))), no gradient, the norm without weights
    positive = mean_i |p_i - t_i|^2 / D
    negative = .02 * mean_i p_i' C p_i / D,  C = mean_i t_i t_i' over the batch of all ranks (UniGrad)

Projector and predictor are transformer blocks with batch norm over all tokens in place of layer norm.

Where the authors' code differs from the paper or surprises:
- the patch embedding is never trained, the encoder has no final norm, and only view 1 predicts view 2;
- predictions meet the loss as they are; `online_norm` puts a norm before it whose weights are fixed;
- the target moves inside the forward pass, with the weights that the last step left; its batch norms use the batch's
  own statistics, and it has no stochastic depth;
- sin-cos positions hold rows first, MAE's (used here) columns: the same up to the order of a token's dimensions;
- the picture is mirrored before it is cropped; here the crop is, and `relative_position` converts;
- masks that are not blockwise are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.colour.apply import apply_colour
from unmask.colour.plan import ColourConfig, sample_colour
from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, sample_mask
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    crop_pair,
    two_crops,
)
from unmask.methods.siamese import BYOL_FIRST, BYOL_SECOND, second_view
from unmask.models.build import build_vit
from unmask.models.decoder import DecoderConfig
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.relative_decoder import RelativePredictor, TokenProjector
from unmask.models.target import ema_update_, frozen_copy, stop_dropping_
from unmask.objectives.distillation import unigrad
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.schedule import Schedule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, flip, generators, normalise_, to_float


@dataclass(frozen=True, kw_only=True)
class PlacedViews(Views):
    """Two crops of each image, and where the second lies relative to the first."""

    relative_B6: Float[Tensor, "B 6"]
    """See `relative_position`."""


@dataclass(frozen=True, kw_only=True)
class SIMConfig(MaskedMethodConfig):
    """Knobs of SIM; defaults are the authors' script for ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("ViT without final norm, fixed sin-cos positions, Xavier init. [code]")] = (
        EncoderConfig(position="sincos", init="xavier", final_norm=False)
    )
    mask: Annotated[MaskConfig, Doc("Blockwise, exactly 118 of 196 patches of view 1. [script]")] = MaskConfig(
        kind="blockwise", ratio=0.6, exact=True
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [script]")] = (0.08, 1.0)
    first_colour: Annotated[ColourConfig, Doc("Colour of view 1. [code]")] = BYOL_FIRST
    second_colour: Annotated[ColourConfig, Doc("Colour of view 2. [code]")] = BYOL_SECOND
    train_patches: Annotated[bool, Doc("Whether the patch embedding is trained. [code: no]")] = False
    decoder: Annotated[DecoderConfig, Doc("Predictor; its width and heads are the projector's too. [script]")] = (
        DecoderConfig(width=768, depth=4, heads=16)
    )
    projector_depth: Annotated[int, Doc("Blocks of the projector, which the target has too. [code]")] = 2
    projector_norm: Annotated[Literal["batch", "layer"], Doc("Norm in the projector's blocks. [code]")] = "batch"
    predictor_norm: Annotated[Literal["batch", "layer"], Doc("Norm in the predictor's blocks. [code]")] = "batch"
    online_norm: Annotated[bool, Doc("Whether a norm with fixed weights ends the predictor. [code: no]")] = False
    negative_weight: Annotated[float, Doc("Weight of UniGrad's second term. [paper and code]")] = 0.02
    momentum: Annotated[Schedule, Doc("Momentum of the target. [script]")] = Schedule(
        kind="cosine", start=0.995, end=1.0
    )
    optimizer: Annotated[OptimizerConfig, Doc("6.25e-5 per 256 images, 40 epochs of warm-up. [script]")] = (
        OptimizerConfig(lr=6.25e-5, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40, clip=1.0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projector_depth < 0:
            raise ValueError(f"projector depth must be 0 or more, got {self.projector_depth}")
        if self.mask.kind == "blockwise" and not self.mask.exact:
            raise ValueError("SIM drops hidden patches, so every image must hide equally many; set mask.exact")


class SIM(Method[PlacedViews]):
    """Predict the target's features of another crop from its place (Tao et al. 2023)."""

    Config: ClassVar[type[MethodConfig]] = SIMConfig
    target_moves: ClassVar[Literal["after step", "before step"]] = "before step"
    info: ClassVar[MethodInfo] = MethodInfo(
        title="SIM",
        idea="From the visible patches of one crop, predict the features of another whose place is known.",
        paper="arXiv 2206.01204",
        year=2023,
        family="masked + siamese",
        online_input="visible patches only, first crop",
        target="EMA encoder, all patches of the second crop",
        objective="UniGrad",
    )

    def __init__(self, config: SIMConfig) -> None:
        super().__init__()
        self.config: SIMConfig = config
        self.encoder = build_vit(config.encoder, mask_token=False)
        self.encoder.vit.patch_embed.proj.requires_grad_(config.train_patches)
        self.projector = TokenProjector(
            config.decoder,
            encoder_width=self.encoder.width,
            depth=config.projector_depth,
            batch_norm=config.projector_norm == "batch",
        )
        self.predictor = RelativePredictor(
            config.decoder,
            grid=self.encoder.grid,
            prefix=self.encoder.prefix,
            batch_norm=config.predictor_norm == "batch",
        )
        width = config.decoder.width
        self.online_norm = nn.LayerNorm(width).requires_grad_(False) if config.online_norm else nn.Identity()
        self.target_encoder = stop_dropping_(frozen_copy(self.encoder))
        self.target_projector = frozen_copy(self.projector)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return two_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> PlacedViews:
        crops_B2CHW = crop_pair(batch, self.encoder)
        host, device = generators(batch.seed, crops_B2CHW.device)
        flips_B2 = torch.rand(len(crops_B2CHW), 2, generator=host) < 0.5
        views = []
        for view, colour in enumerate((self.config.first_colour, self.config.second_colour)):
            images_BCHW = to_float(flip(crops_B2CHW[:, view], flips_B2[:, view]))
            coloured_BCHW = apply_colour(images_BCHW, sample_colour(colour, len(images_BCHW), host))
            views.append(normalise_(coloured_BCHW, self.config.mean, self.config.std))
        mask_BN = sample_mask(
            self.config.mask, len(crops_B2CHW), self.encoder.grid, generator=device, device=crops_B2CHW.device
        )
        relative_B6 = relative_position(batch.boxes[0].cpu(), flips_B2).to(crops_B2CHW.device, non_blocking=True)
        return PlacedViews(online=views[0], target=views[1], mask_BN=mask_BN, relative_B6=relative_B6)

    def losses(self, views: PlacedViews, progress: float = 0.0) -> Losses:
        prediction_BND = self.predict(views)
        with torch.no_grad():
            target_BND = self.target_features(second_view(views))
            target_TD = F.layer_norm(target_BND, target_BND.shape[-1:]).flatten(0, 1)
        prediction_TD = self.online_norm(prediction_BND).flatten(0, 1)
        positive, negative = unigrad(prediction_TD, target_TD, self.config.negative_weight)
        return {"positive": positive, "negative": negative}

    def predict(self, views: PlacedViews) -> Float[Tensor, "B N D"]:
        """Predicted features of all patches of the second view, before any norm."""
        mask_BN = check_mask(views.mask_BN)
        visible_BLD = self.projector(self.encoder(views.online, drop_BN=mask_BN))
        return self.predictor(visible_BLD, mask_BN, views.relative_B6)

    def target_features(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The target's features of all patches, before the norm; in train mode its batch norms see this batch."""
        return self.encoder.patches(self.target_projector(self.target_encoder(images_BCHW)))

    def update_target(self, progress: float) -> None:
        momentum = self.config.momentum.at(progress)
        ema_update_(self.target_encoder, self.encoder, momentum)
        ema_update_(self.target_projector, self.projector, momentum)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: PlacedViews) -> Inspection:
        return Inspection()


def relative_position(boxes_B26: Float[Tensor, "B 2 6"], flips_B2: Bool[Tensor, "B 2"]) -> Float[Tensor, "B 6"]:
    """Where the second crop lies as seen from the first, in units of the first crop.

    `boxes_B26`: top, left, height, width, image height and image width of both crops, as `Batch.boxes` has them;
    `flips_B2`: which crops were mirrored afterwards. Mirroring a crop is mirroring the picture and cropping at the
    mirrored place, which is how the authors count: right offsets are those in the mirrored picture. Columns: offset
    down, offset right, scale of height, scale of width, whether exactly one of the two is mirrored, offset right if so.
    """
    top_B2, left_B2, height_B2, width_B2, _, image_B2 = boxes_B26.unbind(dim=2)
    left_B2 = torch.where(flips_B2, image_B2 - left_B2 - width_B2, left_B2)
    height_B, width_B = height_B2[:, 0], width_B2[:, 0]
    return torch.stack(
        [
            (top_B2[:, 1] - top_B2[:, 0]) / height_B,
            (left_B2[:, 1] - left_B2[:, 0]) / width_B,
            height_B2[:, 1] / height_B,
            width_B2[:, 1] / width_B,
            (flips_B2[:, 0] != flips_B2[:, 1]).to(boxes_B26.dtype),
            (image_B2[:, 0] - left_B2[:, 0] - left_B2[:, 1]) / width_B,
        ],
        dim=1,
    )
