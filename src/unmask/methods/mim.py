"""MIM: Mutual Information Machine (Livne, Swersky & Fleet, 2019, arXiv 1910.03175).

This is NOT masked image modelling, and nothing is masked: an autoencoder with a latent variable, here for comparison.
Encoder q(z|x) and decoder p(x|z) must describe one joint distribution of images and codes that has little entropy, so
that codes say much about images; unlike in a variational autoencoder the posterior has no reason to collapse.

Shape legend: B samples, C channels, H x W pixels, N patches, D encoder width, Z width of the code.

Formula:
    M = half the encoding distribution q(x) q(z|x) and half the decoding distribution p(z) p(x|z)
    loss = -1/2 E_M[ log p(x|z) + log p(z) + log q(z|x) + log q(x) ] / (C H W)
    It bounds the Jensen-Shannon divergence of the two distributions plus their entropies, up to constants.
    log q(x) is replaced by its bound from the marginal of p:  log p(x|y) + log p(y) - log q(y|x),  y ~ q(z|x)
    For images (x from the data, y = z) the terms in q(z|x) cancel:  -[log p(x|z) + log p(z)]
    p(z) = N(0, I), q(z|x) = N(mean, deviation^2) from the mean patch token, p(x|z) = N(decoder(z), pixel_deviation^2)

The objective follows the authors' public code for toy data and grey images (github.com/seraphlabs-ca/MIM: fixed normal
prior, marginal q(x), samples of both distributions); there is no golden case, it is tested against its formulas. Ours:
the networks (a transformer decoder whose first token is the code), pixels of fixed deviation, and the unit, nats a
value. `symmetric=False` samples the encoding distribution alone (A-MIM), which needs one pass of each network only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    check_size,
    one_crop,
    only_crop,
)
from unmask.models.build import build_encoder
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.objectives.reconstruction import unpatchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, generators, shared_crop_views


@dataclass(frozen=True)
class LatentViews(Views):
    """Views with the standard normal noise that codes and sampled images need."""

    noise_3BZ: Float[Tensor, "3 B Z"] = field(kw_only=True)
    """Of codes of images, of codes from the prior, of codes of images that the decoder made."""
    pixel_noise_BCHW: Float[Tensor, "B C H W"] = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class MIMConfig(MethodConfig):
    """Knobs of the mutual information machine."""

    encoder: Annotated[EncoderConfig, Doc("ViT with fixed sin-cos positions, Xavier init. [ours]")] = EncoderConfig(
        position="sincos", init="xavier"
    )
    latent: Annotated[int, Doc("Width of the code. [40 in the authors' image experiments]")] = 40
    decoder: Annotated[DecoderConfig, Doc("From the code to all patches. [ours]")] = DecoderConfig(depth=4)
    pixel_deviation: Annotated[
        float, Doc("Deviation of p(x|z), in units of normalised pixels: the smaller, the more the pixels count. [ours]")
    ] = 1.0
    symmetric: Annotated[bool, Doc("Sample the decoding distribution too; no: A-MIM. [paper: yes]")] = True
    optimizer: Annotated[OptimizerConfig, Doc("AdamW, as the masked autoencoders here. [ours]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.95), warmup_epochs=40
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent < 1:
            raise ValueError(f"latent must be at least 1, got {self.latent}")
        if self.pixel_deviation <= 0:
            raise ValueError(f"pixel_deviation must be above 0, got {self.pixel_deviation}")


class MIM(Method[LatentViews]):
    """Encoder and decoder agree on one joint distribution of images and codes, of low entropy (Livne et al. 2019)."""

    Config: ClassVar[type[MethodConfig]] = MIMConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="MIM",
        idea="Mutual information machine: encoder and decoder agree on images and codes; nothing is masked.",
        paper="arXiv 1910.03175",
        year=2019,
        family="latent variable (not masked)",
        online_input="whole image",
        target="the image, and codes of images that the decoder made",
        objective="symmetric cross-entropy (Jensen-Shannon and entropy)",
    )

    def __init__(self, config: MIMConfig) -> None:
        super().__init__()
        self.config: MIMConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        self.posterior = nn.Linear(self.encoder.width, 2 * config.latent)
        height, width = self.encoder.patch
        # All patches are hidden; the code stands where other methods have their prefix tokens.
        self.decoder = TransformerDecoder(
            config.decoder,
            encoder_width=config.latent,
            out_width=height * width * config.encoder.channels,
            grid=self.encoder.grid,
            prefix=1,
        )

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> LatentViews:
        crop_BCHW = only_crop(batch)
        check_size(crop_BCHW, self.encoder)
        host, device = generators(batch.seed, crop_BCHW.device)
        config = self.config
        online, _ = shared_crop_views(crop_BCHW, colour=None, mean=config.mean, std=config.std, generator=host)
        noise_3BZ = torch.randn(3, len(online), config.latent, generator=device, device=online.device)
        pixel_noise_BCHW = torch.randn(online.shape, generator=device, device=online.device)
        return LatentViews(online=online, noise_3BZ=noise_3BZ, pixel_noise_BCHW=pixel_noise_BCHW)

    def losses(self, views: LatentViews, progress: float = 0.0) -> Losses:
        image_noise_BZ, prior_BZ, other_noise_BZ = views.noise_3BZ.unbind()
        values = views.online[0].numel()
        if not self.config.symmetric:
            mean_BZ, log_deviation_BZ = self.encode(views.online)
            code_BZ = mean_BZ + log_deviation_BZ.exp() * image_noise_BZ
            return {"encoding": -self._joint(views.online, code_BZ, self.decode(code_BZ)).mean() / values}
        made_BCHW = self.decode(prior_BZ)
        sampled_BCHW = made_BCHW + self.config.pixel_deviation * views.pixel_noise_BCHW
        # Real and made images pass the encoder as one batch, and their codes the decoder.
        posterior = self.encode(torch.cat([views.online, sampled_BCHW]))
        (mean_BZ, other_mean_BZ), (log_deviation_BZ, other_log_deviation_BZ) = (part.chunk(2) for part in posterior)
        code_BZ = mean_BZ + log_deviation_BZ.exp() * image_noise_BZ
        other_BZ = other_mean_BZ + other_log_deviation_BZ.exp() * other_noise_BZ
        image_BCHW, other_image_BCHW = self.decode(torch.cat([code_BZ, other_BZ])).chunk(2)
        encoding_B = self._joint(views.online, code_BZ, image_BCHW)
        marginal_B = self._joint(sampled_BCHW, other_BZ, other_image_BCHW) - log_normal(
            other_BZ, other_mean_BZ, other_log_deviation_BZ
        )
        decoding_B = 0.5 * (
            self._joint(sampled_BCHW, prior_BZ, made_BCHW)
            + log_normal(prior_BZ, other_mean_BZ, other_log_deviation_BZ)
            + marginal_B
        )
        return {"encoding": -0.5 * encoding_B.mean() / values, "decoding": -0.5 * decoding_B.mean() / values}

    def encode(self, images_BCHW: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Mean and logarithm of the deviation of q(z|x)."""
        both_B2Z = self.posterior(self.encoder.pool(self.encoder(images_BCHW)))
        mean_BZ, log_deviation_BZ = _full(both_B2Z).chunk(2, dim=1)
        return mean_BZ, log_deviation_BZ

    def decode(self, code_BZ: Float[Tensor, "B Z"]) -> Float[Tensor, "B C H W"]:
        """Mean of p(x|z): normalised pixels."""
        rows, columns = self.encoder.grid
        hidden_BN = torch.ones(len(code_BZ), rows * columns, dtype=torch.bool, device=code_BZ.device)
        patches_BNK = self.decoder.predict(self.decoder(code_BZ[:, None], hidden_BN))
        return unpatchify(_full(patches_BNK), self.encoder.patch, self.encoder.grid)

    def _joint(self, images_BCHW: Tensor, code_BZ: Tensor, mean_BCHW: Tensor) -> Tensor:
        """log p(x|z) + log p(z), for each sample [B]."""
        scale = code_BZ.new_full((), math.log(self.config.pixel_deviation))
        zero = code_BZ.new_zeros(())
        return log_normal(images_BCHW.flatten(1), mean_BCHW.flatten(1), scale) + log_normal(code_BZ, zero, zero)

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: LatentViews) -> Inspection:
        return Inspection(reconstruction_BCHW=self.decode(self.encode(views.online)[0]))


def _full(features: Tensor) -> Tensor:
    """Sums over thousands of pixels need float32 at least; autocast leaves less."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def log_normal(
    values_BD: Float[Tensor, "B D"], mean_BD: Float[Tensor, "*#mean"], log_deviation_BD: Float[Tensor, "*#deviation"]
) -> Float[Tensor, " B"]:
    """Logarithm of the density of independent normal variables, summed over a sample's values."""
    scaled_BD = (values_BD - mean_BD) * (-log_deviation_BD).exp()
    return (-0.5 * scaled_BD.square() - log_deviation_BD - 0.5 * math.log(2 * math.pi)).sum(dim=1)
