"""CAE: Context Autoencoder for Self-Supervised Representation Learning (Chen et al., IJCV 2023, arXiv 2202.03026).

The encoder sees half of the patches; a regressor guesses the latents of the others from them; a decoder that sees
nothing but the guesses tells the tokenizer's codes. So the encoder only represents, and the task is solved behind it.

Shape legend: B samples, N patches, M hidden patches of a sample, L = prefix + visible tokens, D latent width, V codes.

Where the authors' code differs from the paper:
- the latents to align with come from the encoder itself, without gradient and without momentum: its copy shares its
  weights from the first step on;
- masks hide exactly half of the patches; theirs add rectangles until the count is met, ours fills up with single
  patches;
- the class token takes no part in the regression; the mask token and the class token are decayed;
- their sin-cos positions name rows before columns, ours columns before rows: the same up to the order of channels;
- keys have a bias here (timm's ViT), which changes no attention; theirs have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    one_crop,
)
from unmask.methods.tokens import TokenMethodConfig, TokenViews, hidden_token_loss, load_tokenizer, token_views
from unmask.models.build import build_vit
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.initialise import small_linears_
from unmask.models.regressor import LatentRegressor, RegressorConfig
from unmask.objectives.reconstruction import mean_squared_error
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional


@dataclass(frozen=True, kw_only=True)
class CAEConfig(TokenMethodConfig):
    """Knobs of CAE; defaults are the authors' for ViT-B."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions, layer scale, drop path. [README]")] = (
        EncoderConfig(position="sincos", layer_scale=0.1, drop_path=0.1)
    )
    mask: Annotated[MaskConfig, Doc("Blocks of patches, exactly 98 of 196. [README]")] = MaskConfig(
        kind="blockwise", ratio=0.5, exact=True
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.08, 1.0)
    regressor: Annotated[RegressorConfig, Doc("Latent regressor and decoder. [README]")] = RegressorConfig()
    token_weight: Annotated[float, Doc("Weight of the codes' cross-entropy. [code]")] = 1.0
    align_weight: Annotated[float, Doc("Weight of the latents' squared error. [README]")] = 2.0
    optimizer: Annotated[OptimizerConfig, Doc("lr is absolute, for batches of 2048 in 800 epochs. [README]")] = (
        OptimizerConfig(lr=1.5e-3, lr_batch=None, betas=(0.9, 0.999), warmup_epochs=20, min_lr=1e-5, clip=3.0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask.kind == "blockwise" and not self.mask.exact:
            raise ValueError("CAE drops patches, so every image must hide equally many: set the mask's exact")
        for name, weight in (("token_weight", self.token_weight), ("align_weight", self.align_weight)):
            if weight < 0:
                raise ValueError(f"{name} must be 0 or more, got {weight}")


class CAE(Method[TokenViews]):
    """Regress hidden latents from visible ones, and tell the hidden codes from them alone (Chen et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = CAEConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="CAE",
        idea="Guess the latents of hidden patches from visible ones, and name their visual words from the guess alone.",
        paper="arXiv 2202.03026",
        year=2022,
        family="masked",
        online_input="visible patches only",
        target="codes of a frozen tokenizer; own latents of the hidden patches",
        objective="cross-entropy and squared error on hidden patches",
    )

    def __init__(self, config: CAEConfig) -> None:
        super().__init__()
        self.config: CAEConfig = config
        self.encoder = build_vit(config.encoder, mask_token=False)
        self.tokenizer, vocabulary = load_tokenizer(config)
        self.regressor = LatentRegressor(
            config.regressor,
            width=self.encoder.width,
            heads=self.encoder.vit.blocks[0].attn.num_heads,
            # One stochastic depth for all three networks, as theirs.
            drop_path=config.encoder.drop_path,
            out_width=vocabulary,
            grid=self.encoder.grid,
        )
        width = config.regressor.width or self.encoder.width
        self.bridge = nn.Sequential()
        if width != self.encoder.width:
            self.bridge.extend([nn.Linear(self.encoder.width, width), nn.LayerNorm(width, eps=1e-6)])
            small_linears_(self.bridge)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> TokenViews:
        return token_views(batch, self.encoder, self.config, self.tokenizer, colour=None)

    def losses(self, views: TokenViews, progress: float = 0.0) -> Losses:
        mask_BN = check_mask(views.mask_BN)
        predicted_BMD, target_BMD = self.latents(views)
        logits_BMV = self.regressor.decode(predicted_BMD, mask_BN)
        tokens = hidden_token_loss(logits_BMV.flatten(0, 1), views.token_ids_BN, mask_BN)
        alignment = mean_squared_error(predicted_BMD, target_BMD)
        return {"tokens": self.config.token_weight * tokens, "alignment": self.config.align_weight * alignment}

    def latents(self, views: TokenViews) -> tuple[Tensor, Tensor]:
        """Latents [B, M, D] of the hidden patches: regressed from the visible ones, and seen by the encoder."""
        mask_BN = check_mask(views.mask_BN)
        predicted_BMD = self.regressor(self._encode(views.online, mask_BN), mask_BN)
        with torch.no_grad():
            target_BMD = self._encode(views.online, ~mask_BN)
        return predicted_BMD, target_BMD

    def _encode(self, images_BCHW: Tensor, drop_BN: Tensor) -> Tensor:
        """Latents of the patches that are left, at the regressor's width."""
        return self.bridge(self.encoder.patches(self.encoder(images_BCHW, drop_BN=drop_BN)))

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: TokenViews) -> Inspection:
        return Inspection()
