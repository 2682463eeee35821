"""A colour plan carried out with torch, on any device: few large operations, each on a group of samples.

Shape legend: B samples, G samples of one group, C channels, H x W pixels, S steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.colour.plan import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    GREY,
    GREY_WEIGHTS,
    NONE,
    OPERATIONS,
    SATURATION,
    SOLARISE,
    TURNED_HUE,
    ColourPlan,
)


def change_in_groups(images_BCHW: Float[Tensor, "B C H W"], plan: ColourPlan) -> Float[Tensor, "B C H W"]:
    """The images, values in [0, 1], after all steps of the plan; the input itself where there is nothing to do.

    Before a step the samples are reordered so that those of one operation lie side by side: a group is then a slice,
    changed in place, which is several times cheaper than gathering and scattering every group. All that the device
    must know goes there in one copy, which is not waited for.
    """
    operation_BS = plan.operation_BS
    steps = [step for step in range(operation_BS.shape[1]) if bool((operation_BS[:, step] != NONE).any())]
    if not steps:
        return images_BCHW
    sample_B = torch.arange(len(images_BCHW))  # which sample each row holds
    moves, values, sizes = [], [], []
    for step in steps:
        move_B = operation_BS[sample_B, step].argsort(stable=True)
        sample_B = sample_B[move_B]
        moves.append(move_B)
        values.append(plan.value_BS[sample_B, step])
        sizes.append(operation_BS[sample_B, step].bincount(minlength=OPERATIONS).tolist())
    moves.append(sample_B.argsort())
    move_SB = torch.stack(moves).to(images_BCHW.device, non_blocking=True)
    value_SB111 = torch.stack(values).to(images_BCHW, non_blocking=True)[:, :, None, None, None]
    radii = [int(plan.radius_S[step]) for step in steps]
    for move_B, value_B111, radius, group_sizes in zip(move_SB[:-1], value_SB111, radii, sizes, strict=True):
        images_BCHW = images_BCHW.index_select(0, move_B)
        end = 0
        for operation, size in enumerate(group_sizes):
            start, end = end, end + size
            if size and operation != NONE:
                _change_(operation, images_BCHW[start:end], value_B111[start:end], radius)
    return images_BCHW.index_select(0, move_SB[-1])


def _change_(operation: int, images_GCHW: Tensor, value_G111: Tensor, radius: int) -> None:
    """One operation on a group, each sample with its own value."""
    if operation == BRIGHTNESS:
        images_GCHW.mul_(value_G111).clamp_(max=1)
    elif operation == CONTRAST:
        _contrast_(images_GCHW, value_G111)
    elif operation == SATURATION:
        _blend_(images_GCHW, _grey(images_GCHW), value_G111)
    elif operation == GREY:
        images_GCHW.copy_(_grey(images_GCHW))
    elif operation == BLUR:
        _blur_(images_GCHW, value_G111, radius)
    elif operation == SOLARISE:
        # |x - 1| from the threshold on and |x - 0| below.
        ones_GCHW = torch.ge(images_GCHW, value_G111, out=torch.empty_like(images_GCHW))
        images_GCHW.sub_(ones_GCHW).abs_()
    else:
        sixths, down = divmod(operation - TURNED_HUE, 2)
        _hue_(images_GCHW, value_G111, sixths, down=bool(down))


def _blend_(images_GCHW: Tensor, other: Tensor, factor_G111: Tensor) -> None:
    """The images moved away from, or towards, `other`."""
    torch.lerp(other, images_GCHW, factor_G111, out=images_GCHW)
    images_GCHW.clamp_(0, 1)


def _contrast_(images_GCHW: Tensor, factor_G111: Tensor) -> None:
    # The mean of the grey image is the grey value of the channel means.
    _blend_(images_GCHW, _grey(images_GCHW.mean(dim=(2, 3), keepdim=True)), factor_G111)


def _grey(images_GCHW: Tensor) -> Tensor:
    """One grey channel, [G, 1, H, W]: the weighted sum of red, green and blue, or the mean of other channels."""
    if images_GCHW.shape[1] != 3:
        return images_GCHW.mean(dim=1, keepdim=True)
    red: Tensor
    red, green, blue = images_GCHW.split(1, dim=1)
    red_weight, green_weight, blue_weight = GREY_WEIGHTS
    return red.mul(red_weight).add_(green, alpha=green_weight).add_(blue, alpha=blue_weight)


def _hue_(images_GCHW: Tensor, rest_G111: Tensor, sixths: int, *, down: bool) -> None:
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
    move_G1HW = high_G1HW.sub(low_G1HW).mul_(rest_G111)
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


def _blur_(images_GCHW: Tensor, sigma_G111: Tensor, radius: int) -> None:
    """Gaussian blur, each sample with its own sigma, across and then down; edges are mirrored.

    Mirroring needs the radius to be smaller than the image, so on tiny images the kernel is cut off there.
    """
    G, C, H, W = images_GCHW.shape
    reach_H, reach_W = min(radius, H - 1), min(radius, W - 1)
    padded = F.pad(images_GCHW, (reach_W, reach_W, reach_H, reach_H), mode="reflect")
    padded = padded.view(1, G * C, H + 2 * reach_H, W + 2 * reach_W)
    across = _gaussian(sigma_G111, reach_W).repeat_interleave(C, dim=0)[:, None, None, :]
    down = _gaussian(sigma_G111, reach_H).repeat_interleave(C, dim=0)[:, None, :, None]
    images_GCHW.copy_(F.conv2d(F.conv2d(padded, across, groups=G * C), down, groups=G * C).view(G, C, H, W))


def _gaussian(sigma_G111: Tensor, reach: int) -> Tensor:
    """Normalised Gaussian weights at -reach .. reach pixels: [G, 2 · reach + 1]."""
    offset_K = torch.arange(-reach, reach + 1, dtype=sigma_G111.dtype, device=sigma_G111.device)
    return (offset_K / sigma_G111[:, :, 0, 0]).square_().mul_(-0.5).softmax(dim=1)
