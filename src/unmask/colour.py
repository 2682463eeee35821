"""Random colour changes of a batch, each sample with its own: jitter, greyscale, blur and solarisation.

Parameters are drawn on the CPU, so that they are the same on every device, and which samples an operation
concerns is known without asking the device. Each operation is torchvision's of the same name; the order
(jitter, greyscale, blur, solarise) is that of ConMIM, CMAE, BYOL and MoCo v3.

Images without exactly three channels have no saturation, hue or greyscale, and these are skipped; brightness,
contrast (around the mean over all channels), blur and solarisation work on any number of channels.

Shape legend: B samples, G samples of one group, C channels, H x W pixels, J = 4 jitter operations,
S = 7 steps (the jitter operations, greyscale, blur, solarisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import Doc

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GREY, _BLUR, _SOLARISE, _NONE = range(8)
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # red, green, blue; torchvision's rounding of ITU-R 601
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # the factors that change nothing
_CPU_CHUNK = 4  # samples that stay in a processor's cache from one operation to the next


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """Strengths and probabilities of the colour changes of one view; the defaults change nothing."""

    brightness: Annotated[float, Doc("Brightness factor is uniform in 1 ± this, at least 0.")] = 0.0
    contrast: Annotated[float, Doc("Contrast factor is uniform in 1 ± this, at least 0.")] = 0.0
    saturation: Annotated[float, Doc("Saturation factor is uniform in 1 ± this, at least 0.")] = 0.0
    hue: Annotated[float, Doc("Hue shift is uniform in ± this, in turns of the colour circle; at most 0.5.")] = 0.0
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
    low_J[:_HUE].clamp_(min=0)
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


def apply_colour(images_BCHW: Float[Tensor, "B C H W"], parameters: ColourParameters) -> Float[Tensor, "B C H W"]:
    """The images, values in [0, 1], with each sample's colour changes; the input is left as it is.

    Returns the input itself when there is nothing to do. Saturation, hue and greyscale need three channels
    and are skipped otherwise (module docstring).
    """
    operation_BS, value_BS = _plan(parameters, rgb=images_BCHW.shape[1] == 3)
    if bool((operation_BS == _NONE).all()):
        return images_BCHW
    # On a CPU a few samples at a time stay in cache through all steps; elsewhere few large kernels are
    # faster.
    chunk = _CPU_CHUNK if images_BCHW.device.type == "cpu" else len(images_BCHW)
    output_BCHW = torch.empty_like(images_BCHW, memory_format=torch.contiguous_format)
    for start in range(0, len(images_BCHW), chunk):
        part = slice(start, start + chunk)
        output_BCHW[part] = _apply_steps(
            images_BCHW[part],
            operation_BS[part],
            value_BS[part],
            blur_radius=parameters.blur_radius,
            solarise_threshold=parameters.solarise_threshold,
        )
    return output_BCHW


def _plan(parameters: ColourParameters, *, rgb: bool) -> tuple[Int64[Tensor, "B 7"], Float[Tensor, "B 7"]]:
    """Which operation each sample meets at each step (`_NONE`: nothing happens), and with which value."""
    order_BJ, factors_BJ = parameters.order_BJ, parameters.factors_BJ
    idle_BJ = (factors_BJ == torch.tensor(_NEUTRAL)) | ~parameters.jitter_B[:, None]
    if not rgb:
        idle_BJ[:, [_SATURATION, _HUE]] = True
    operations = [order_BJ.masked_fill(idle_BJ.gather(1, order_BJ), _NONE)]
    for operation, flag_B in (
        (_GREY, parameters.grey_B & rgb),
        (_BLUR, parameters.blur_B),
        (_SOLARISE, parameters.solarise_B),
    ):
        operations.append(torch.where(flag_B, operation, _NONE)[:, None])
    sigma_B1 = parameters.sigma_B[:, None]
    values = [
        factors_BJ.gather(1, order_BJ),
        torch.zeros_like(sigma_B1),
        sigma_B1,
        torch.zeros_like(sigma_B1),
    ]
    return torch.cat(operations, dim=1), torch.cat(values, dim=1)


def _apply_steps(
    images_BCHW: Float[Tensor, "B C H W"],
    operation_BS: Int64[Tensor, "B 7"],
    value_BS: Float[Tensor, "B 7"],
    *,
    blur_radius: int,
    solarise_threshold: float,
) -> Float[Tensor, "B C H W"]:
    """All steps of some samples, on a copy.

    Before a step the samples are reordered so that those of one operation lie side by side: a group is then a
    slice, changed in place, which is several times cheaper than gathering and scattering every group.
    """
    sample_B = torch.arange(len(images_BCHW))  # which sample each row holds
    for step in range(operation_BS.shape[1]):
        operation_B = operation_BS[sample_B, step]
        if bool((operation_B == _NONE).all()):
            continue
        permutation_B = operation_B.argsort(stable=True)
        sample_B = sample_B[permutation_B]
        images_BCHW = images_BCHW.index_select(0, permutation_B.to(images_BCHW.device))
        value_B111 = value_BS[sample_B, step].to(images_BCHW)[:, None, None, None]
        end = 0
        for operation, size in enumerate(operation_B.bincount(minlength=_NONE).tolist()[:_NONE]):
            start, end = end, end + size
            if size == 0:
                continue
            group_GCHW, value_G111 = images_BCHW[start:end], value_B111[start:end]
            if operation == _BRIGHTNESS:
                _brightness_(group_GCHW, value_G111)
            elif operation == _CONTRAST:
                _contrast_(group_GCHW, value_G111)
            elif operation == _SATURATION:
                _saturation_(group_GCHW, value_G111)
            elif operation == _HUE:
                _hue_(group_GCHW, value_G111)
            elif operation == _GREY:
                group_GCHW.copy_(_grey(group_GCHW))
            elif operation == _BLUR:
                group_GCHW.copy_(_blur(group_GCHW, value_G111, blur_radius))
            else:
                _solarise_(group_GCHW, solarise_threshold)
    return images_BCHW.index_select(0, sample_B.argsort().to(images_BCHW.device))


def _brightness_(images_GCHW: Tensor, factor_G111: Tensor) -> None:
    images_GCHW.mul_(factor_G111).clamp_(0, 1)


def _contrast_(images_GCHW: Tensor, factor_G111: Tensor) -> None:
    mean_GC11 = images_GCHW.mean(dim=(2, 3), keepdim=True)
    # The mean of the grey image is the grey value of the channel means.
    mean_G111 = _grey(mean_GC11) if images_GCHW.shape[1] == 3 else mean_GC11.mean(dim=1, keepdim=True)
    images_GCHW.mul_(factor_G111).add_(mean_G111 * (1 - factor_G111)).clamp_(0, 1)


def _saturation_(images_GCHW: Tensor, factor_G111: Tensor) -> None:
    grey_G1HW = _grey(images_GCHW)
    images_GCHW.mul_(factor_G111).add_(grey_G1HW.mul_(1 - factor_G111)).clamp_(0, 1)


def _grey(images_GCHW: Tensor) -> Tensor:
    """One grey channel of RGB images: [G, 1, H, W]."""
    red: Tensor
    red, green, blue = images_GCHW.split(1, dim=1)
    red_weight, green_weight, blue_weight = _GREY_WEIGHTS
    return red.mul(red_weight).add_(green, alpha=green_weight).add_(blue, alpha=blue_weight)


def _hue_(images_GCHW: Tensor, shift_G111: Tensor) -> None:
    """Turn the hue by `shift` turns with value and saturation kept.

    A channel of an HSV colour is its smallest value plus its span (largest - smallest) times a trapezoid of
    the hue, so saturation is never divided out and multiplied in again. Hue is counted in sixths of a turn
    from red.
    """
    red, green, blue = images_GCHW.unbind(dim=1)
    high, low = images_GCHW.amax(dim=1), images_GCHW.amin(dim=1)
    span = high - low
    # Choosing with 0/1 weights is several times faster on a CPU than torch.where, which branches per pixel.
    is_red, is_green = (high - red).eq_(0), (high - green).eq_(0)
    hue = (red - green).add_(span, alpha=4).lerp_((blue - red).add_(span, alpha=2), is_green)
    hue = hue.lerp_(green - blue, is_red)
    # Grey pixels have no hue: 0 / tiny is 0, and their span removes it again.
    hue.div_(span.clamp_min(torch.finfo(span.dtype).tiny)).add_(shift_G111[:, 0], alpha=6)
    hue.sub_(hue.div(6).floor_().mul_(6))
    torch.addcmul(low, span, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=red)
    torch.addcmul(low, span, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), out=green)
    torch.addcmul(low, span, (hue - 4).abs_().neg_().add_(2).clamp_(0, 1), out=blue)


def _blur(images_GCHW: Tensor, sigma_G111: Tensor, radius: int) -> Tensor:
    """Gaussian blur, each sample with its own sigma, as two grouped convolutions; edges are mirrored.

    Mirroring needs the radius to be smaller than the image, so on tiny images the kernel is cut off there.
    """
    G, C, H, W = images_GCHW.shape
    reach_H, reach_W = min(radius, H - 1), min(radius, W - 1)
    padded = F.pad(images_GCHW, (reach_W, reach_W, reach_H, reach_H), mode="reflect")
    padded = padded.view(1, G * C, H + 2 * reach_H, W + 2 * reach_W)
    across = _gaussian(sigma_G111, reach_W).repeat_interleave(C, dim=0)[:, None, None, :]
    down = _gaussian(sigma_G111, reach_H).repeat_interleave(C, dim=0)[:, None, :, None]
    return F.conv2d(F.conv2d(padded, across, groups=G * C), down, groups=G * C).view(G, C, H, W)


def _gaussian(sigma_G111: Tensor, reach: int) -> Tensor:
    """Normalised Gaussian weights at -reach .. reach pixels: [G, 2 · reach + 1]."""
    offset_K = torch.arange(-reach, reach + 1, dtype=sigma_G111.dtype, device=sigma_G111.device)
    return (offset_K / sigma_G111[:, :, 0, 0]).square_().mul_(-0.5).softmax(dim=1)


def _solarise_(images_GCHW: Tensor, threshold: float) -> None:
    # |1 - x| above the threshold and |0 - x| below.
    images_GCHW.copy_(images_GCHW.clone().ge_(threshold).sub_(images_GCHW).abs_())
