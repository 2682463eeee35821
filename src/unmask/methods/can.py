"""CAN: A simple, efficient and scalable contrastive masked autoencoder (Mishra et al. 2022, arXiv 2210.16870).

Two crops, both masked and noisy: their mean features must find each other in the batch, the decoder paints the hidden
patches and names the noise of the visible ones.

Shape legend: B samples, T = 2B views (first views, then second ones), N patches, L = prefix + visible tokens, K = p*p*C
values of a patch, D encoder width.

Formula:
    x' = x + s e, e ~ N(0, 1), s ~ U(0, s_max) for each view; z = encoder(visible patches of x')
    y = decoder(z + embedding(s)), for all patches
    contrast = .03 * NT-Xent of projector(mean of z), between the two views of the batch
    reconstruction = .97 * .7 * mean over hidden patches of (y - x)^2
    noise = .97 * .3 * mean over visible patches of (y - s e)^2

Where the authors' code differs from the paper:
- the noise is added in place, so hidden patches are compared with the *noisy* image (`clean_target=False`; the paper,
  and the default here, take the clean one);
- three quarters of the patches are hidden unless told otherwise (`mask.ratio=.75`; paper .5);
- the largest deviation of the noise is .1 whatever is asked for, and pixels are not normalised unless told so;
- without the noise loss the code does not run; negatives are those of one process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.masking import Mask, MaskConfig, masked_count, sample_mask, take_hidden
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    two_crops,
    two_views,
)
from unmask.methods.mae import paint
from unmask.methods.siamese import second_view
from unmask.models.build import build_encoder
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.models.initialise import xavier_linears_
from unmask.objectives.contrastive import ntxent
from unmask.objectives.reconstruction import mean_squared_error, normalise_patches, patchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, generators


@dataclass(frozen=True, kw_only=True)
class NoisyViews(Views):
    """Two clean masked views and the noise that is added to them; row b and row b + B belong to image b."""

    target_mask_BN: Mask
    """Hidden patches of the second view."""
    level_T: Float[Tensor, " T"]
    """Deviation of each view's noise, in units of normalised pixels."""
    unit_TCHW: Float[Tensor, "T C H W"]
    """Noise of deviation one."""


@dataclass(frozen=True, kw_only=True)
class CANConfig(MaskedMethodConfig):
    """Knobs of CAN; defaults are the paper's where it and the code differ."""

    encoder: Annotated[EncoderConfig, Doc("MAE's ViT: fixed sin-cos positions, Xavier init. [code]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    mask: Annotated[MaskConfig, Doc("Single patches at random, in both views. [paper; code: 75 %]")] = MaskConfig(
        kind="random", ratio=0.5
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.2, 1.0)
    colour: Annotated[ColourConfig, Doc("Perturbation of both views, SimCLR's. [code]")] = ColourConfig(
        brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5
    )
    decoder: Annotated[DecoderConfig, Doc("Decodes pixels and noise. [code]")] = DecoderConfig()
    norm_pixels: Annotated[bool, Doc("Whether each patch's pixels are normalised. [README: no]")] = False
    clean_target: Annotated[bool, Doc("Whether hidden patches are compared without noise. [paper; code: no]")] = True
    noise: Annotated[float, Doc("Largest deviation of the noise, of normalised pixels. [code, in effect]")] = 0.1
    level_width: Annotated[int, Doc("Width of the sine-cosine code of the noise's deviation. [code]")] = 128
    projected: Annotated[int, Doc("Width of the features that are contrasted. [code]")] = 128
    temperature: Annotated[float, Doc("Temperature of NT-Xent. [code]")] = 0.1
    gathered: Annotated[
        bool, Doc("Whether the images of all ranks are negatives, or those of each rank alone. [code: alone]")
    ] = False
    contrast_weight: Annotated[float, Doc("Weight of NT-Xent. [paper and code]")] = 0.03
    mae_weight: Annotated[float, Doc("Weight of reconstruction and noise together. [paper and code]")] = 0.97
    noise_weight: Annotated[float, Doc("Share of the noise in those two. [code]")] = 0.3
    optimizer: Annotated[OptimizerConfig, Doc("2.5e-4 per 256 images, 40 epochs of warm-up. [README]")] = (
        OptimizerConfig(lr=2.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.noise < 0:
            raise ValueError(f"noise must be 0 or more, got {self.noise}")
        if self.level_width < 4 or self.level_width % 2:
            raise ValueError(f"level width must be even and at least 4, got {self.level_width}")


class CAN(Method[NoisyViews]):
    """Contrast, paint and denoise two masked crops (Mishra et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = CANConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="CAN",
        idea="Contrast two masked, noisy crops; paint what is hidden, name the noise of what is not.",
        paper="arXiv 2210.16870",
        year=2022,
        family="masked + contrastive",
        online_input="visible noisy patches only, two crops",
        target="pixels, noise, the other crop",
        objective="squared errors + NT-Xent",
    )

    def __init__(self, config: CANConfig) -> None:
        super().__init__()
        self.config: CANConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        width = self.encoder.width
        height_p, width_p = self.encoder.patch
        self.decoder = TransformerDecoder(
            config.decoder,
            encoder_width=width,
            out_width=height_p * width_p * config.encoder.channels,
            grid=self.encoder.grid,
            prefix=self.encoder.prefix,
        )
        head = MLPHeadConfig(hidden=width, out=config.projected, layers=2, norm="none", hidden_bias=True, out_bias=True)
        self.projector = MLPHead(width, head)
        self.level_embed = nn.Sequential(nn.Linear(config.level_width, width), nn.ReLU(), nn.Linear(width, width))
        xavier_linears_(self.projector)
        xavier_linears_(self.level_embed)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return two_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> NoisyViews:
        clean = two_views(batch, self.encoder, self.config, (self.config.colour, self.config.colour))
        pair_TCHW = torch.cat([clean.online, second_view(clean)])
        views, device = len(pair_TCHW), pair_TCHW.device
        _, generator = generators(batch.seed, device)
        mask_TN = sample_mask(self.config.mask, views, self.encoder.grid, generator=generator, device=device)
        mask_BN, target_mask_BN = mask_TN.chunk(2)
        return NoisyViews(
            online=clean.online,
            target=clean.target,
            mask_BN=mask_BN,
            target_mask_BN=target_mask_BN,
            hidden=masked_count(self.config.mask, self.encoder.grid),
            level_T=self.config.noise * torch.rand(views, generator=generator, device=device),
            unit_TCHW=torch.randn(pair_TCHW.shape, generator=generator, device=device),
        )

    def losses(self, views: NoisyViews, progress: float = 0.0) -> Losses:
        config, patch = self.config, self.encoder.patch
        images_TCHW = torch.cat([views.online, second_view(views)])
        mask_TN = torch.cat([check_mask(views.mask_BN), views.target_mask_BN])
        noise_TCHW = views.level_T[:, None, None, None] * views.unit_TCHW
        noisy_TCHW = images_TCHW + noise_TCHW

        visible_TLD = self.encoder(noisy_TCHW, drop_BN=mask_TN, hidden=views.hidden)
        first, second = self.projector(visible_TLD.mean(dim=1)).chunk(2)
        prediction_TNK = self._predict(visible_TLD, views.level_T, mask_TN)
        seen = None if views.hidden is None else mask_TN.shape[1] - views.hidden
        target_TNK = patchify(images_TCHW if config.clean_target else noisy_TCHW, patch)
        pixels = take_hidden(target_TNK, mask_TN, hidden=views.hidden)
        if config.norm_pixels:
            pixels = normalise_patches(pixels)
        reconstruction = mean_squared_error(take_hidden(prediction_TNK, mask_TN, hidden=views.hidden), pixels)
        noise = mean_squared_error(
            take_hidden(prediction_TNK, ~mask_TN, hidden=seen),
            take_hidden(patchify(noise_TCHW, patch), ~mask_TN, hidden=seen),
        )
        return {
            "reconstruction": config.mae_weight * (1 - config.noise_weight) * reconstruction,
            "noise": config.mae_weight * config.noise_weight * noise,
            "contrast": config.contrast_weight * ntxent(first, second, config.temperature, gathered=config.gathered),
        }

    def _predict(self, visible_TLD: Tensor, level_T: Tensor, mask_TN: Tensor) -> Tensor:
        """What the decoder makes of all patches [T, N, K]: pixels of hidden ones, noise of visible ones."""
        level_T1D = self.level_embed(level_code(level_T, self.config.level_width))[:, None]
        return self.decoder.predict(self.decoder(visible_TLD + level_T1D, mask_TN))

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: NoisyViews) -> Inspection:
        mask_BN, level_B = check_mask(views.mask_BN), views.level_T[: len(views.online)]
        noisy_BCHW = views.online + level_B[:, None, None, None] * views.unit_TCHW[: len(views.online)]
        prediction_BNK = self._predict(self.encoder(noisy_BCHW, drop_BN=mask_BN), level_B, mask_BN)
        # Visible patches are shown as they are: what is predicted there is their noise.
        own_BNK = patchify(views.online, self.encoder.patch)
        if self.config.norm_pixels:
            own_BNK = normalise_patches(own_BNK)
        shown_BNK = torch.where(mask_BN[..., None], prediction_BNK, own_BNK)
        return Inspection(reconstruction_BCHW=paint(shown_BNK, views.online, self.encoder, self.config.norm_pixels))


def level_code(level_T: Float[Tensor, " T"], width: int) -> Float[Tensor, "T W"]:
    """Sines, then cosines, of the noise's deviation at width / 2 frequencies from 1 down to 1 / 10000."""
    half = width // 2
    steps = torch.arange(half, dtype=level_T.dtype, device=level_T.device)
    angles = level_T[:, None] * (steps * (-math.log(10000) / (half - 1))).exp()
    return torch.cat([angles.sin(), angles.cos()], dim=1)
