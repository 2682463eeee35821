"""Random colour changes of a batch, each sample with its own: jitter, greyscale, blur and solarisation.

Parameters are drawn on the CPU, so that they are the same on every device, and which samples an operation
concerns is known without asking the device. Each operation is torchvision's of the same name; the order
(jitter, greyscale, blur, solarise) is that of ConMIM, CMAE, BYOL and MoCo v3.

Images without exactly three channels have no saturation, hue or greyscale, and these are skipped; brightness,
contrast (around the mean over all channels), blur and solarisation work on any number of channels.

A processor is given one sample after another, which stays in its cache from the first step to the last; any other
device is given groups of samples that meet the same operation, which makes few and large kernels.

Shape legend: B samples, G samples of one group, C channels, H x W pixels, J = 4 jitter operations,
S = 7 steps (the jitter operations, greyscale, blur, solarisation).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from typing_extensions import Doc

from unmask.data.batch import unwritten

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GREY, _BLUR, _SOLARISE, _NONE = range(8)
_TURNED_HUE = 8  # from here on: hue by whole sixths of a turn (0 to 5), doubled, plus 1 where the rest goes down
_OPERATIONS = 20
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # red, green, blue; torchvision's rounding of ITU-R 601
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # the factors that change nothing
_SIGMAS = 5  # where a blur's weights are cut: less than a millionth of them lies beyond


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
    plan = ColourPlan.of(parameters, channels=images_BCHW.shape[1])
    if plan.idle:
        return images_BCHW
    output_BCHW = unwritten(images_BCHW.shape, images_BCHW.dtype, images_BCHW.device)
    for part in parts(images_BCHW):
        plan.apply_(output_BCHW[part].copy_(images_BCHW[part]), part)
    return output_BCHW


def parts(images_BCHW: Tensor) -> Iterator[slice]:
    """The samples of a batch in the portions that are best changed at once (module docstring)."""
    batch = len(images_BCHW)
    size = 1 if images_BCHW.device.type == "cpu" else max(batch, 1)
    return (slice(start, start + size) for start in range(0, batch, size))


@dataclass(frozen=True)
class ColourPlan:
    """Which operation each sample of a batch meets at each step, and with which value; on the CPU."""

    operation_BS: Int64[Tensor, "B 7"]
    value_BS: Float[Tensor, "B 7"]
    blur_radius: int
    solarise_threshold: float

    @classmethod
    def of(cls, parameters: ColourParameters, *, channels: int) -> ColourPlan:
        """The plan for images with this number of channels."""
        rgb = channels == 3
        order_BJ, factors_BJ = parameters.order_BJ, parameters.factors_BJ
        idle_BJ = (factors_BJ == torch.tensor(_NEUTRAL)) | ~parameters.jitter_B[:, None]
        if not rgb:
            idle_BJ[:, [_SATURATION, _HUE]] = True
        operation_BJ = order_BJ.clone()
        value_BJ = factors_BJ.gather(1, order_BJ)
        # Each kind of turn is an operation of its own, with the rest, up to half a sixth, as its value.
        is_hue_BJ = order_BJ == _HUE
        sixths_BJ = (value_BJ * 6).round()
        rest_BJ = value_BJ * 6 - sixths_BJ
        turned_BJ = _TURNED_HUE + 2 * sixths_BJ.long().remainder(6) + (rest_BJ < 0)
        operation_BJ = torch.where(is_hue_BJ, turned_BJ, operation_BJ)
        value_BJ = torch.where(is_hue_BJ, rest_BJ.abs(), value_BJ)
        operations = [operation_BJ.masked_fill(idle_BJ.gather(1, order_BJ), _NONE)]
        for operation, flag_B in (
            (_GREY, parameters.grey_B & rgb),
            (_BLUR, parameters.blur_B),
            (_SOLARISE, parameters.solarise_B),
        ):
            operations.append(torch.where(flag_B, operation, _NONE)[:, None])
        sigma_B1 = parameters.sigma_B[:, None]
        values = [value_BJ, torch.zeros_like(sigma_B1), sigma_B1, torch.zeros_like(sigma_B1)]
        return cls(
            torch.cat(operations, dim=1),
            torch.cat(values, dim=1),
            parameters.blur_radius,
            parameters.solarise_threshold,
        )

    @property
    def idle(self) -> bool:
        """Whether no sample meets any operation."""
        return bool((self.operation_BS == _NONE).all())

    def apply_(self, images_GCHW: Float[Tensor, "G C H W"], part: slice) -> None:
        """All steps of the samples `part` of the batch, in place; the images are contiguous."""
        if len(images_GCHW) > 1 or images_GCHW.device.type != "cpu":
            self._apply_in_groups_(images_GCHW, self.operation_BS[part], self.value_BS[part])
            return
        for operation, value in zip(self.operation_BS[part][0].tolist(), self.value_BS[part][0].tolist(), strict=True):
            if operation != _NONE:
                self._change_(operation, images_GCHW, value)

    def _apply_in_groups_(
        self, images_GCHW: Tensor, operation_GS: Int64[Tensor, "G 7"], value_GS: Float[Tensor, "G 7"]
    ) -> None:
        """All steps, each by groups of samples with one operation.

        Before a step the samples are reordered so that those of one operation lie side by side: a group is then a
        slice, changed in place, which is several times cheaper than gathering and scattering every group. All that
        the device must know goes there in one copy, which is not waited for.
        """
        steps = [step for step in range(operation_GS.shape[1]) if bool((operation_GS[:, step] != _NONE).any())]
        sample_G = torch.arange(len(images_GCHW))  # which sample each row holds
        moves, values, sizes = [], [], []
        for step in steps:
            move_G = operation_GS[sample_G, step].argsort(stable=True)
            sample_G = sample_G[move_G]
            moves.append(move_G)
            values.append(value_GS[sample_G, step])
            sizes.append(operation_GS[sample_G, step].bincount(minlength=_OPERATIONS).tolist())
        moves.append(sample_G.argsort())
        move_SG = torch.stack(moves).to(images_GCHW.device, non_blocking=True)
        value_SG111 = torch.stack(values).to(images_GCHW, non_blocking=True)[:, :, None, None, None]
        moved_GCHW = images_GCHW
        for move_G, value_G111, group_sizes in zip(move_SG[:-1], value_SG111, sizes, strict=True):
            moved_GCHW = moved_GCHW.index_select(0, move_G)
            end = 0
            for operation, size in enumerate(group_sizes):
                start, end = end, end + size
                if size and operation != _NONE:
                    self._change_(operation, moved_GCHW[start:end], value_G111[start:end])
        torch.index_select(moved_GCHW, 0, move_SG[-1], out=images_GCHW)

    def _change_(self, operation: int, images_GCHW: Tensor, value: Tensor | float) -> None:
        """One operation on a group, with a value for each sample ([G, 1, 1, 1]) or for all."""
        if operation == _BRIGHTNESS:
            images_GCHW.mul_(value).clamp_(max=1)
        elif operation == _CONTRAST:
            _contrast_(images_GCHW, value)
        elif operation == _SATURATION:
            _blend_(images_GCHW, _grey(images_GCHW), value)
        elif operation == _GREY:
            images_GCHW.copy_(_grey(images_GCHW))
        elif operation == _BLUR:
            _blur_(images_GCHW, value, self.blur_radius)
        elif operation == _SOLARISE:
            # |x - 1| from the threshold on and |x - 0| below.
            ones_GCHW = torch.ge(images_GCHW, self.solarise_threshold, out=torch.empty_like(images_GCHW))
            images_GCHW.sub_(ones_GCHW).abs_()
        else:
            sixths, down = divmod(operation - _TURNED_HUE, 2)
            _hue_(images_GCHW, value, sixths, down=bool(down))


def _blend_(images_GCHW: Tensor, other: Tensor, factor: Tensor | float) -> None:
    """The images moved away from, or towards, `other`."""
    torch.lerp(other, images_GCHW, factor, out=images_GCHW)
    if not isinstance(factor, float) or factor > 1:  # a mean of two values in [0, 1] lies there, too
        images_GCHW.clamp_(0, 1)


def _contrast_(images_GCHW: Tensor, factor: Tensor | float) -> None:
    mean_GC11 = images_GCHW.mean(dim=(2, 3), keepdim=True)
    # The mean of the grey image is the grey value of the channel means.
    weights = _GREY_WEIGHTS if images_GCHW.shape[1] == 3 else [1 / images_GCHW.shape[1]] * images_GCHW.shape[1]
    if isinstance(factor, float):
        # Four small operations on tensors would cost as much as the large ones.
        grey = sum(weight * mean for weight, mean in zip(weights, mean_GC11.flatten().tolist(), strict=True))
        _blend_(images_GCHW, torch.full((), grey, dtype=images_GCHW.dtype), factor)
    else:
        grey_G111 = sum(weight * mean_GC11[:, c : c + 1] for c, weight in enumerate(weights))
        assert isinstance(grey_G111, Tensor)
        _blend_(images_GCHW, grey_G111, factor)


def _grey(images_GCHW: Tensor) -> Tensor:
    """One grey channel of RGB images: [G, 1, H, W]."""
    red: Tensor
    red, green, blue = images_GCHW.split(1, dim=1)
    red_weight, green_weight, blue_weight = _GREY_WEIGHTS
    return red.mul(red_weight).add_(green, alpha=green_weight).add_(blue, alpha=blue_weight)


def _hue_(images_GCHW: Tensor, rest: Tensor | float, sixths: int, *, down: bool) -> None:
    """Turn the hue by whole sixths of a turn and by a rest of up to half a sixth, with value and saturation kept.

    An RGB colour runs round a hexagon with its hue: at any place one channel is the largest, one the smallest, and
    one moves from one to the other. Two sixths exchange the channels, three mirror them between largest and smallest.
    For a rest upwards, red moves by the rest times the span (largest - smallest), up while blue is the largest and
    down while green is; by less than that just before and after, as far as green still has to go. That is
    clamp(red - green + clamp(green, smallest + move, largest - move), smallest, largest): of the six cases, none is
    told apart, and nothing is divided by saturation, which may be 0. The other channels follow in a circle; downwards
    the circle turns the other way.
    """
    high_G1HW, low_G1HW = images_GCHW.amax(dim=1, keepdim=True), images_GCHW.amin(dim=1, keepdim=True)
    move_G1HW = high_G1HW.sub(low_G1HW).mul_(rest)
    change_GCHW = torch.clamp(images_GCHW, low_G1HW + move_G1HW, high_G1HW - move_G1HW).sub_(images_GCHW)
    if down:
        images_GCHW[:, 1:].add_(change_GCHW[:, :-1])
        images_GCHW[:, :1].add_(change_GCHW[:, -1:])
    else:
        images_GCHW[:, :-1].add_(change_GCHW[:, 1:])
        images_GCHW[:, -1:].add_(change_GCHW[:, :1])
    images_GCHW.clamp_(low_G1HW, high_G1HW)
    if sixths:
        turned_GCHW = images_GCHW.roll((sixths + 3 * (sixths % 2)) // 2, dims=1)
        images_GCHW.copy_(high_G1HW + low_G1HW - turned_GCHW if sixths % 2 else turned_GCHW)


def _blur_(images_GCHW: Tensor, sigma: Tensor | float, radius: int) -> None:
    """Gaussian blur, each sample with its own sigma, across and then down; edges are mirrored.

    Mirroring needs the radius to be smaller than the image, so on tiny images the kernel is cut off there.
    """
    G, C, H, W = images_GCHW.shape
    if isinstance(sigma, float):
        radius = min(radius, math.ceil(_SIGMAS * sigma))
        sigma_G111 = torch.tensor(sigma, dtype=images_GCHW.dtype).view(1, 1, 1, 1)
    else:
        sigma_G111 = sigma
    reach_H, reach_W = min(radius, H - 1), min(radius, W - 1)
    padded = F.pad(images_GCHW, (reach_W, reach_W, reach_H, reach_H), mode="reflect")
    across_GK, down_GK = _gaussian(sigma_G111, reach_W), _gaussian(sigma_G111, reach_H)
    if isinstance(sigma, float):
        # A weighted sum of shifted images: thrice as fast as a processor's convolution of three channels.
        blurred = _weighted_sum([padded[..., k : k + W] for k in range(2 * reach_W + 1)], across_GK[0].tolist())
        _weighted_sum([blurred[:, :, k : k + H] for k in range(2 * reach_H + 1)], down_GK[0].tolist(), out=images_GCHW)
        return
    padded = padded.view(1, G * C, H + 2 * reach_H, W + 2 * reach_W)
    across = across_GK.repeat_interleave(C, dim=0)[:, None, None, :]
    down = down_GK.repeat_interleave(C, dim=0)[:, None, :, None]
    images_GCHW.copy_(F.conv2d(F.conv2d(padded, across, groups=G * C), down, groups=G * C).view(G, C, H, W))


def _weighted_sum(terms: list[Tensor], weights: list[float], out: Tensor | None = None) -> Tensor:
    total = torch.mul(terms[0], weights[0], out=out)
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total.add_(term, alpha=weight)
    return total


def _gaussian(sigma_G111: Tensor, reach: int) -> Tensor:
    """Normalised Gaussian weights at -reach .. reach pixels: [G, 2 · reach + 1]."""
    offset_K = torch.arange(-reach, reach + 1, dtype=sigma_G111.dtype, device=sigma_G111.device)
    return (offset_K / sigma_G111[:, :, 0, 0]).square_().mul_(-0.5).softmax(dim=1)
