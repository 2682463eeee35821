"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., CVPR 2022, arXiv 2111.09886).

Mask tokens stand for hidden patches in the encoder; one linear layer paints them; the loss is the absolute error.

Shape legend: B samples, N patches, L = prefix + N tokens, M hidden patches of the batch, K = p*p*C values.

Where the authors' code differs from the paper: 61 % are hidden, not 60 (blocks are rounded up); hidden pixels are
counted over the whole batch, plus 1e-5; the released ViT configuration keeps the final norm; the mask token and the
table of relative positions are decayed. Their head orders a patch's values (channel, row, column); here it is
(row, column, channel) as in MAE, which is the same map with its outputs renamed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn
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
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.objectives.reconstruction import absolute_error_per_pixel, patchify, unpatchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.ranks import share_of_mean
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(MaskedMethodConfig):
    """Knobs of SimMIM; defaults are the authors'."""

    encoder: Annotated[EncoderConfig, Doc("ViT with shared relative positions, layer scale, drop path. [code]")] = (
        EncoderConfig(position="relative", layer_scale=0.1, drop_path=0.1)
    )
    mask: Annotated[MaskConfig, Doc("2x2 patches at once, 60 % of them. [paper and code]")] = MaskConfig(
        kind="random", ratio=0.6, unit=2
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (
        0.67,
        1.0,
    )
    optimizer: Annotated[OptimizerConfig, Doc("1e-4 per 512 images, step decay at 700 of 800 epochs. [code]")] = (
        OptimizerConfig(
            lr=1e-4, lr_batch=512, betas=(0.9, 0.999), warmup_epochs=10, decay="step", step_at=0.875, clip=5.0
        )
    )


class SimMIM(Method[Views]):
    """Predict the raw pixels of hidden patches by one linear layer and an L1 loss (Xie et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = SimMIMConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="SimMIM",
        idea="Put mask tokens in place of patches and paint their pixels by one linear layer.",
        paper="arXiv 2111.09886",
        year=2022,
        family="masked",
        online_input="mask tokens",
        target="raw pixels",
        objective="absolute error on hidden patches",
    )

    def __init__(self, config: SimMIMConfig) -> None:
        super().__init__()
        self.config: SimMIMConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=True)
        height, width = self.encoder.patch
        self.decoder = nn.Linear(self.encoder.width, height * width * config.encoder.channels)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return shared_views(batch, self.encoder, self.config, colour=None)

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        tokens_BND = self.encoder.patches(self.encoder(views.online, replace_BN=mask_BN, hidden=views.hidden))
        prediction_MK = self.decoder(take_hidden(tokens_BND, mask_BN, hidden=views.hidden))
        target_MK = take_hidden(patchify(views.online, self.encoder.patch), mask_BN, hidden=views.hidden)
        error = absolute_error_per_pixel(prediction_MK, target_MK, self.config.encoder.channels)
        return {"reconstruction": error if views.hidden is not None else share_of_mean(error, len(prediction_MK))}

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not (one_dimensional(name, parameter) or name.endswith(("cls_token", "pos_embed"))))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        tokens_BLD = self.encoder(views.online, replace_BN=check_mask(views.mask_BN))
        prediction_BNK = self.decoder(self.encoder.patches(tokens_BLD))
        return Inspection(reconstruction_BCHW=unpatchify(prediction_BNK, self.encoder.patch, self.encoder.grid))
