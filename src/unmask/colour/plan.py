"""What is done to the colours of each sample of a batch: strengths, what was drawn from them, and the steps in order.

Parameters are drawn on the CPU, whatever the device of the images.

Shape legend: B samples, J = 4 jitter operations, S steps (the jitter operations, greyscale, blur, solarisation; those
of several plans one after another).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import Doc

# `pixels.py` has these figures compiled into it, and Numba's cache does not see a change here: touch that file, too.
BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SOLARISE, NONE = range(8)
TURNED_HUE = 8  # from here on: hue by whole sixths of a turn (0 to 5), doubled, plus 1 where the rest goes down
OPERATIONS = 20
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # red, green, blue; torchvision's rounding of ITU-R 601
SIGMAS = 5  # where a blur's weights are cut: less than a millionth of them lies beyond
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # the factors that change nothing


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """Strengths and probabilities of the colour changes of one view; the defaults change nothing."""

    brightness: Annotated[float, Doc("Brightness factor is uniform in 1 ± this, at least 0.")] = 0.0
    contrast: Annotated[float, Doc("Contrast factor is uniform in 1 ± this, at least 0.")] = 0.0
    saturation: Annotated[float, Doc("Saturation factor is uniform in 1 ± this, at least 0.")] = 0.0
    hue: Annotated[
        float, Doc("Hue shift is uniform in ± this, in turns of the colour circle; at most 0.5. RGB only.")
    ] = 0.0
    jitter_p: Annotated[float, Doc("Probability that the four above are applied, in random order.")] = 0.0
    grey_p: Annotated[float, Doc("Probability of greyscale.")] = 0.0
    blur_p: Annotated[float, Doc("Probability of Gaussian blur.")] = 0.0
    blur_sigma: Annotated[tuple[float, float], Doc("Range of the blur's standard deviation, in pixels.")] = (
        0.1,
        2.0,
    )
    solarise_p: Annotated[float, Doc("Probability of solarisation.")] = 0.0
    solarise_threshold: Annotated[
        float, Doc("Solarisation inverts values from here on, in [0, 1]; the default is 128 of 255.")
    ] = 128 / 255

    def __post_init__(self) -> None:
        for name, strength in (
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
        ):
            if not 0 <= strength < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {strength}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must lie between 0 and 0.5, got {self.hue}")
        for name, share in (
            ("jitter_p", self.jitter_p),
            ("grey_p", self.grey_p),
            ("blur_p", self.blur_p),
            ("solarise_p", self.solarise_p),
            ("solarise_threshold", self.solarise_threshold),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {share}")
        low, high = self.blur_sigma
        if not 0 < low <= high < math.inf:
            raise ValueError(f"blur_sigma must be a range of positive numbers, low to high, got {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class ColourParameters:
    """What is done to each sample of one batch; small tensors on the CPU.

    Columns of `factors_BJ` and values of `order_BJ` are 0 brightness, 1 contrast, 2 saturation (factors, 1
    changes nothing) and 3 hue (a shift, 0 changes nothing); `order_BJ` lists the operations as they are
    applied.
    """

    jitter_B: Bool[Tensor, " B"]
    order_BJ: Int64[Tensor, "B 4"]
    factors_BJ: Float[Tensor, "B 4"]
    grey_B: Bool[Tensor, " B"]
    blur_B: Bool[Tensor, " B"]
    sigma_B: Float[Tensor, " B"]
    blur_radius: int
    solarise_B: Bool[Tensor, " B"]
    solarise_threshold: float


def sample_colour(config: ColourConfig, batch: int, generator: torch.Generator) -> ColourParameters:
    """Draw the parameters of `batch` samples from a CPU generator.

    The number of draws does not depend on the strengths, so that runs which differ in one of them stay
    comparable. The blur's radius is three times the largest possible sigma, whatever was drawn: what happens
    to a sample does not depend on its neighbours.
    """
    apply_B4 = torch.rand(batch, 4, generator=generator)
    order_BJ = torch.rand(batch, 4, generator=generator).argsort(dim=1)
    strength_J = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    neutral_J = torch.tensor(_NEUTRAL)
    low_J = neutral_J - strength_J
    low_J[:HUE].clamp_(min=0)
    # Written so that a strength of 0 gives the neutral factor exactly.
    factors_BJ = low_J + (neutral_J + strength_J - low_J) * torch.rand(batch, 4, generator=generator)
    low, high = config.blur_sigma
    sigma_B = low + (high - low) * torch.rand(batch, generator=generator)
    return ColourParameters(
        jitter_B=apply_B4[:, 0] < config.jitter_p,
        order_BJ=order_BJ,
        factors_BJ=factors_BJ,
        grey_B=apply_B4[:, 1] < config.grey_p,
        blur_B=apply_B4[:, 2] < config.blur_p,
        sigma_B=sigma_B,
        blur_radius=math.ceil(3 * high),
        solarise_B=apply_B4[:, 3] < config.solarise_p,
        solarise_threshold=config.solarise_threshold,
    )


@dataclass(frozen=True)
class ColourPlan:
    """Which operation each sample of a batch meets at each step, and with which value; on the CPU."""

    operation_BS: Int64[Tensor, "B S"]
    value_BS: Float[Tensor, "B S"]
    radius_S: Int64[Tensor, " S"]  # of the blur, in pixels, where a step is one

    @classmethod
    def of(cls, parameters: ColourParameters, *, channels: int) -> ColourPlan:
        """The plan for images with this number of channels."""
        order_BJ, factors_BJ = parameters.order_BJ, parameters.factors_BJ
        idle_BJ = (factors_BJ == torch.tensor(_NEUTRAL)) | ~parameters.jitter_B[:, None]
        if channels != 3:
            idle_BJ[:, HUE] = True
        if channels == 1:  # grey already
            idle_BJ[:, SATURATION] = True
        operation_BJ = order_BJ.clone()
        value_BJ = factors_BJ.gather(1, order_BJ)
        # Each kind of turn is an operation of its own, with the rest, up to half a sixth, as its value.
        is_hue_BJ = order_BJ == HUE
        sixths_BJ = (value_BJ * 6).round()
        rest_BJ = value_BJ * 6 - sixths_BJ
        turned_BJ = TURNED_HUE + 2 * sixths_BJ.long().remainder(6) + (rest_BJ < 0)
        operation_BJ = torch.where(is_hue_BJ, turned_BJ, operation_BJ)
        value_BJ = torch.where(is_hue_BJ, rest_BJ.abs(), value_BJ)
        operations = [operation_BJ.masked_fill(idle_BJ.gather(1, order_BJ), NONE)]
        for operation, flag_B in (
            (GREY, parameters.grey_B & (channels > 1)),
            (BLUR, parameters.blur_B),
            (SOLARISE, parameters.solarise_B),
        ):
            operations.append(torch.where(flag_B, operation, NONE)[:, None])
        sigma_B1 = parameters.sigma_B[:, None]
        # In float64: rounded to float32, the threshold of 128 of 255 would lie beyond that byte in float64 images.
        threshold_B1 = torch.full_like(sigma_B1, parameters.solarise_threshold, dtype=torch.float64)
        operation_BS = torch.cat(operations, dim=1)
        return cls(
            operation_BS,
            torch.cat([value_BJ, torch.zeros_like(sigma_B1), sigma_B1, threshold_B1], dim=1),
            torch.full((operation_BS.shape[1],), parameters.blur_radius),
        )

    @classmethod
    def nothing(cls, batch: int) -> ColourPlan:
        """The plan that leaves all of a batch as it is: no steps."""
        return cls(
            torch.zeros(batch, 0, dtype=torch.int64),
            torch.zeros(batch, 0, dtype=torch.float64),
            torch.zeros(0, dtype=torch.int64),
        )

    def then(self, other: ColourPlan) -> ColourPlan:
        """This plan and the other after it, for the same samples."""
        return ColourPlan(
            torch.cat([self.operation_BS, other.operation_BS], dim=1),
            torch.cat([self.value_BS, other.value_BS], dim=1),
            torch.cat([self.radius_S, other.radius_S]),
        )

    @property
    def idle(self) -> bool:
        """Whether no sample meets any operation."""
        return bool((self.operation_BS == NONE).all())
