"""Discrete VAE (Ramesh et al., DALL-E, ICML 2021, arXiv 2102.12092): the tokenizer of BEiT.

A convolutional encoder gives logits over the codes at every place; a relaxed sample (Gumbel-softmax) of them is decoded
to pixels. The loss is the negative log-likelihood of the pixels under a logit-Laplace distribution plus the divergence
of the codes' distribution from the uniform one. As in the paper the sum is divided by the number of values of an image,
so that the divergence of one token counts beta / (stride^2 x channels): 6.6 / 192 there.

Where this differs from the paper: the scale of the distribution has a floor of about one step of 8-bit pixels, without
which plain areas (black borders) have unbounded likelihood; schedules run over shares of the run, not over fixed
numbers of steps.

Shape legend: B images, C channels, H x W pixels, V codes, h x w tokens (n, row-major).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import Doc

from unmask.models.tokenizers.base import Lesson, Losses, PaintingTokenizer, TokenizerConfig
from unmask.models.tokenizers.conv import (
    ConvConfig,
    ConvDecoder,
    ConvEncoder,
    map_of,
    map_pixels,
    rows_of,
    unmap_pixels,
)
from unmask.optimisation import ParameterRule
from unmask.schedule import Schedule

SMALLEST_LOG_SCALE = -4.0


@dataclass(frozen=True, kw_only=True)
class DVAEConfig(TokenizerConfig):
    """Knobs of the discrete VAE; defaults are DALL-E's but for the width."""

    conv: Annotated[ConvConfig, Doc("Size of encoder and decoder.")] = ConvConfig()
    temperature: Annotated[Schedule, Doc("Temperature of the relaxed samples. [paper: 1 to 1/16 in 150,000 steps]")] = (
        Schedule(kind="cosine", start=1.0, end=1 / 16)
    )
    temperature_until: Annotated[
        float,
        Doc("Share of the run after which the temperature stays. [paper: 150,000 of 3 million steps; 0.5 is ours]"),
    ] = 0.5
    beta: Annotated[float, Doc("Weight of the divergence from uniform codes. [paper: 6.6]")] = 6.6
    beta_until: Annotated[
        float, Doc("Share of the run in which that weight rises from 0. [paper: 5,000 of 3 million steps; 0.1 is ours]")
    ] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature.start <= 0 or (self.temperature.kind != "constant" and self.temperature.end <= 0):
            raise ValueError("the temperature of relaxed samples must stay above 0")
        if self.beta < 0:
            raise ValueError(f"beta must be 0 or more, got {self.beta}")
        for name, share in (("temperature_until", self.temperature_until), ("beta_until", self.beta_until)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share of the run, within 0 and 1, got {share}")


class DVAE(PaintingTokenizer):
    """Codes as relaxed samples between a convolutional encoder and decoder (Ramesh et al. 2021)."""

    kind: ClassVar[str] = "dvae"

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config: DVAEConfig = config
        self.encoder = ConvEncoder(config.conv, channels=config.channels, outputs=config.vocabulary)
        # For each channel the location and the logarithm of the scale.
        self.decoder = ConvDecoder(config.conv, inputs=config.vocabulary, outputs=2 * config.channels)

    @property
    def stride(self) -> int:
        return self.config.conv.stride

    def scores(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B n V"]:
        return rows_of(self.encoder(map_pixels(images_BCHW)))

    def losses(self, images_BCHW: Float[Tensor, "B C H W"], lesson: Lesson) -> Losses:
        config = self.config
        values_BCHW = map_pixels(images_BCHW)
        logits_BVhw = self.encoder(values_BCHW).float()
        temperature = config.temperature.at(_share(lesson.progress, config.temperature_until))
        noise = gumbel_noise(logits_BVhw, lesson.generator)
        relaxed_BVhw = ((logits_BVhw + noise) / temperature).softmax(dim=1)
        location, log_scale = self.decoder(relaxed_BVhw).float().chunk(2, dim=1)
        beta = config.beta * _share(lesson.progress, config.beta_until)
        values_a_token = self.stride**2 * config.channels
        return {
            "reconstruction": logit_laplace_loss(values_BCHW.float(), location, log_scale),
            "divergence": beta / values_a_token * divergence_from_uniform(logits_BVhw),
        }

    def decode(self, ids_Bn: Int64[Tensor, "B n"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        weight = next(self.parameters())
        hard_BnV = F.one_hot(ids_Bn, self.vocabulary).to(weight.dtype)
        location, _ = self.decoder(map_of(hard_BnV, grid)).float().chunk(2, dim=1)
        return unmap_pixels(location.sigmoid())

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=parameter.ndim > 1)


def _share(progress: float, until: float) -> float:
    """How much of the stretch from 0 to `until` is over."""
    return 1.0 if until == 0 else min(1.0, progress / until)


def gumbel_noise(like: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise of the shape and type of `like`, drawn on the CPU: the same on every device."""
    # Twice the logarithm of a uniform value; 0 and 1 would give infinities.
    tiny = torch.finfo(torch.float32).tiny
    uniform = torch.rand(like.shape, generator=generator).clamp_(min=tiny, max=1 - 2**-24)
    return -torch.log(-torch.log(uniform)).to(like)


def logit_laplace_loss(
    values: Float[Tensor, "*shape"], location: Float[Tensor, "*shape"], log_scale: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of values in (0, 1) whose logits are Laplace distributed (paper, appendix A.3)."""
    log_scale = log_scale.clamp(min=SMALLEST_LOG_SCALE)
    distance = (torch.logit(values) - location).abs() * torch.exp(-log_scale)
    return (distance + log_scale + math.log(2) + torch.log(values * (1 - values))).mean()


def divergence_from_uniform(logits_BVhw: Float[Tensor, "B V h w"]) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence in nats of each token's distribution of codes from the uniform one, their mean."""
    log_p = logits_BVhw.log_softmax(dim=1)
    return (log_p.exp() * log_p).sum(dim=1).mean() + math.log(logits_BVhw.shape[1])
