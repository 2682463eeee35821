"""DMAE: Denoising Masked AutoEncoders Help Robust Classification (Wu et al., ICLR 2023, arXiv 2210.06983).

A masked autoencoder of a noisy image: it must paint all patches of the clean one, the visible ones too.

Shape legend: B samples, N patches, L = prefix + visible tokens, K = p*p*C values of a patch.

Formula:
    x'      = x + sigma n, n standard normal, x in [0, 1]; both are normalised by mean and deviation afterwards
    loss    = mean over all N patches of mean((decoder(encoder(visible patches of x')) - y)^2), y clean pixels
              normalised by patch

Where the authors' code differs from the paper, or goes beyond it: patch variance is unbiased and 1e-6 is added to it;
noisy values are not clamped to [0, 1]; mask token and class token, having three dimensions, are decayed; images are
resized to 224 pixels once more after the noise, which changes nothing at 224 and is left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig, masked_count, sample_mask
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    check_size,
    one_crop,
    only_crop,
)
from unmask.methods.mae import paint
from unmask.models.build import build_encoder
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.objectives.reconstruction import mean_squared_error, normalise_patches, patchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, generators, shared_crop_views


@dataclass(frozen=True, kw_only=True)
class NoisyViews(Views):
    """Views whose online image is noisy; `clean` is the same image without the noise, normalised alike."""

    clean: Float[Tensor, "B C H W"]


@dataclass(frozen=True, kw_only=True)
class DMAEConfig(MaskedMethodConfig):
    """Knobs of DMAE; defaults are the authors'."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions, Xavier init. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    mask: Annotated[MaskConfig, Doc("Single patches at random, 75 %. [paper and code]")] = MaskConfig(
        kind="random", ratio=0.75
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.2, 1.0)
    sigma: Annotated[float, Doc("Deviation of the noise, for values in [0, 1]. [paper and code]")] = 0.25
    decoder: Annotated[DecoderConfig, Doc("Pixel decoder. [paper and code]")] = DecoderConfig()
    norm_pixels: Annotated[bool, Doc("Whether each patch's pixels are normalised before the loss. [recipe]")] = True
    optimizer: Annotated[OptimizerConfig, Doc("1.5e-4 per 256 images, 40 epochs of warm-up. [recipe]")] = (
        OptimizerConfig(lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma < 0:
            raise ValueError(f"sigma must be 0 or more, got {self.sigma}")


class DMAE(Method[NoisyViews]):
    """Encode the visible patches of a noisy image, decode all, compare all with the clean image (Wu et al. 2023)."""

    Config: ClassVar[type[MethodConfig]] = DMAEConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="DMAE",
        idea="See a quarter of the patches of a noisy image, paint the whole clean one.",
        paper="arXiv 2210.06983",
        year=2023,
        family="masked",
        online_input="visible patches only, noisy",
        target="normalised pixels of the clean image",
        objective="squared error on all patches",
    )

    def __init__(self, config: DMAEConfig) -> None:
        super().__init__()
        self.config: DMAEConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        height, width = self.encoder.patch
        self.decoder = TransformerDecoder(
            config.decoder,
            encoder_width=self.encoder.width,
            out_width=height * width * config.encoder.channels,
            grid=self.encoder.grid,
            prefix=self.encoder.prefix,
        )

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> NoisyViews:
        images_BCHW = only_crop(batch)
        check_size(images_BCHW, self.encoder)
        mean, std = self.config.mean, self.config.std
        host, device = generators(batch.seed, images_BCHW.device)
        clean_BCHW, _ = shared_crop_views(images_BCHW, colour=None, mean=mean, std=std, generator=host)
        mask_BN = sample_mask(
            self.config.mask, len(images_BCHW), self.encoder.grid, generator=device, device=images_BCHW.device
        )
        # Drawn on the device, as the masks are: millions of values would take a processor longer than all else.
        noise_BCHW = torch.randn(clean_BCHW.shape, generator=device, device=clean_BCHW.device)
        # In units of the normalised image.
        sigma_C11 = self.config.sigma / noise_BCHW.new_tensor(std)[:, None, None]
        return NoisyViews(
            online=noise_BCHW.mul_(sigma_C11).add_(clean_BCHW),
            clean=clean_BCHW,
            mask_BN=mask_BN,
            hidden=masked_count(self.config.mask, self.encoder.grid),
        )

    def losses(self, views: NoisyViews, progress: float = 0.0) -> Losses:
        target_BNK = patchify(views.clean, self.encoder.patch)
        if self.config.norm_pixels:
            target_BNK = normalise_patches(target_BNK)
        return {"reconstruction": mean_squared_error(self.predict(views), target_BNK)}

    def predict(self, views: NoisyViews) -> Tensor:
        """Painted patches [B, N, K]."""
        mask_BN = check_mask(views.mask_BN)
        visible_BLW = self.encoder(views.online, drop_BN=mask_BN, hidden=views.hidden)
        return self.decoder.predict(self.decoder(visible_BLW, mask_BN))

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: NoisyViews) -> Inspection:
        return Inspection(
            reconstruction_BCHW=paint(self.predict(views), views.clean, self.encoder, self.config.norm_pixels)
        )
