"""How uint8 crops become the float views a method sees: flip, window, colour, normalise, on the device.

Geometry is decided first and is the same for every view that shares it; colour differs between views.
Everything is drawn from the CPU generator that is passed in, so a batch looks the same on every device; masks
have a generator of their own, on the device (`generators` makes both).

Shape legend: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from unmask.colour.groups import change_in_groups
from unmask.colour.plan import ColourConfig, ColourPlan, sample_colour
from unmask.masking import Mask


@dataclass(frozen=True)
class Views:
    """What a method's losses see of one batch; methods that need more derive their own kind.

    `online` feeds the trained network and `target` the target network, both normalised; `target` is None for
    methods whose target is the online view itself, and is simply the second view for Siamese methods. `mask_BN` tells
    which patches of the online view are hidden; None for methods that hide nothing. `hidden` is their number where all
    samples hide equally many and it is known without asking the device (`masked_count`); None where it is not.
    """

    online: Float[Tensor, "B C H W"]
    target: Float[Tensor, "B C H W"] | None = None
    mask_BN: Mask | None = None
    hidden: int | None = None


def generators(seed: int | None, device: torch.device | str) -> tuple[torch.Generator, torch.Generator]:
    """A CPU generator (flips, shifts, colour) and one on `device` (masks), independent of each other.

    None takes a seed from torch's global state. The device's seed is drawn rather than shared: on a CPU one
    seed for both would make masks depend on flips.
    """
    if seed is None:
        seed = int(torch.randint(2**63 - 1, ()))
    host = torch.Generator().manual_seed(seed)
    other_seed = int(torch.randint(2**63 - 1, (), generator=host))
    return host, torch.Generator(device).manual_seed(other_seed)


def flip(images_BCHW: Shaped[Tensor, "B C H W"], flags_B: Bool[Tensor, " B"]) -> Shaped[Tensor, "B C H W"]:
    """Mirror the flagged samples left to right; flags may live on another device."""
    flags_B111 = flags_B.to(images_BCHW.device, non_blocking=True)[:, None, None, None]
    return torch.where(flags_B111, images_BCHW.flip(-1), images_BCHW)


def random_flip(
    images_BCHW: Shaped[Tensor, "B C H W"], generator: torch.Generator, p: float = 0.5
) -> Shaped[Tensor, "B C H W"]:
    """Mirror each sample left to right with probability `p`."""
    return flip(images_BCHW, _flip_flags(images_BCHW, generator, p))


def window(
    images_BCHW: Shaped[Tensor, "B C H W"], offsets_B2: Int64[Tensor, "B 2"], height: int, width: int
) -> Shaped[Tensor, "B C {height} {width}"]:
    """Cut one `height` x `width` window from each sample, its top left corner at that sample's (row, column).

    Windows must lie inside the images. Offsets that live on the CPU are checked (ValueError); others are not,
    because looking at them would wait for the device.
    """
    H, W = images_BCHW.shape[2:]
    if height > H or width > W:
        raise ValueError(f"images of {H}x{W} pixels do not hold a window of {height}x{width}")
    if offsets_B2.device.type == "cpu" and len(offsets_B2):
        last_2 = torch.tensor([H - height, W - width])
        if bool(((offsets_B2 < 0) | (offsets_B2 > last_2)).any()):
            raise ValueError(
                f"window offsets must lie within 0..{H - height} rows and 0..{W - width} columns "
                f"for a {height}x{width} window in {H}x{W} images"
            )
    top_B, left_B = offsets_B2.to(images_BCHW.device, non_blocking=True).unbind(dim=1)
    windows = images_BCHW.unfold(2, height, 1).unfold(3, width, 1)  # a view: [B, C, tops, lefts, height, width]
    return windows[torch.arange(len(images_BCHW), device=images_BCHW.device), :, top_B, left_B]


def random_shift(batch: int, max_shift: int, generator: torch.Generator) -> Int64[Tensor, "{batch} 2"]:
    """Row and column offsets, independent and uniform on 0..`max_shift` pixels, both ends included."""
    return torch.randint(max_shift + 1, (batch, 2), generator=generator, device=generator.device)


def to_float(images_BCHW: UInt8[Tensor, "B C H W"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "B C H W"]:
    """Bytes to values in [0, 1]."""
    return images_BCHW.to(dtype).div_(255)


def normalise(
    images_BCHW: Float[Tensor, "B C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "B C H W"]:
    """(images - mean) / std by channel.

    Mean and std are rounded to float32 before they take the images' type, as the authors' float32 buffers
    are; in float64 this decides the last eight digits. Raises ValueError when their number is not that of the
    channels.
    """
    return normalise_(images_BCHW.clone(), mean, std)


def normalise_(
    images_BCHW: Float[Tensor, "B C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "B C H W"]:
    """`normalise` in place: the images are overwritten and returned."""
    mean_C11, std_C11 = _statistics(images_BCHW, mean, std, images_BCHW.dtype)
    return images_BCHW.sub_(mean_C11).div_(std_C11)


def denormalise(
    images_BCHW: Float[Tensor, "B C H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "B C H W"]:
    """The inverse of `normalise`, clamped to [0, 1] so that predictions can be shown as pictures."""
    mean_C11, std_C11 = _statistics(images_BCHW, mean, std, images_BCHW.dtype)
    return (images_BCHW * std_C11).add_(mean_C11).clamp_(0, 1)


def shared_crop_views(
    crop_BCHW: UInt8[Tensor, "B C H W"],
    *,
    colour: ColourConfig | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: torch.Generator,
    online_colour: ColourConfig | None = None,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"] | None]:
    """Online and target view of one crop: one flip for both, colour on the target only (ConMIM).

    `colour` None means that the method has no second view (MAE, SimMIM): the target is then None. `online_colour`
    is applied before anything else, so that both views have it (BEiT).
    """
    batch, C, H, W = crop_BCHW.shape
    geometry = _Geometry(_flip_flags(crop_BCHW, generator), None, H, W)
    online_plan = _plan(online_colour, batch, C, generator)
    target_plan = None if colour is None else online_plan.then(_plan(colour, batch, C, generator))
    make = partial(_view, crop_BCHW, geometry, mean=mean, std=std)
    return make(online_plan), None if target_plan is None else make(target_plan)


def independent_view(
    crop_BCHW: UInt8[Tensor, "B C H W"],
    *,
    colour: ColourConfig | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: torch.Generator,
) -> Float[Tensor, "B C H W"]:
    """One crop with a flip and a colour of its own (Siamese methods)."""
    view_BCHW, _ = shared_crop_views(
        crop_BCHW, colour=None, online_colour=colour, mean=mean, std=std, generator=generator
    )
    return view_BCHW


def pixel_shift_views(
    master_BCHW: UInt8[Tensor, "B C H W"],
    *,
    size: tuple[int, int],
    max_shift: int,
    colour: ColourConfig | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B C {size[0]} {size[1]}"], Float[Tensor, "B C {size[0]} {size[1]}"]]:
    """Online and target window of one flipped master crop (CMAE), the target further down and right.

    The online view is the top left `size` (height, width) of the master, without colour changes. The target
    is shifted by 0..`max_shift` pixels in each direction, both ends included, and gets `colour` (None for no
    change). Raises ValueError when the master is too small for the largest shift.
    """
    height, width = size
    B, C, H, W = master_BCHW.shape
    if height + max_shift > H or width + max_shift > W:
        raise ValueError(
            f"a master crop of {H}x{W} pixels does not hold a {height}x{width} view shifted by up to {max_shift} pixels"
        )
    flip_B = _flip_flags(master_BCHW, generator)
    online = _Geometry(flip_B, None, height, width)
    target = replace(online, corner_B2=random_shift(B, max_shift, generator))
    plan = _plan(colour, B, C, generator)
    return (
        _view(master_BCHW, online, ColourPlan.nothing(B), mean=mean, std=std),
        _view(master_BCHW, target, plan, mean=mean, std=std),
    )


def _flip_flags(images_BCHW: Tensor, generator: torch.Generator, p: float = 0.5) -> Tensor:
    return torch.rand(len(images_BCHW), generator=generator, device=generator.device) < p


def _plan(config: ColourConfig | None, batch: int, channels: int, generator: torch.Generator) -> ColourPlan:
    if config is None:
        return ColourPlan.nothing(batch)
    return ColourPlan.of(sample_colour(config, batch, generator), channels=channels)


@dataclass(frozen=True)
class _Geometry:
    """Which crops are mirrored, and where in them, mirrored or not, a window of one size lies; on the CPU."""

    flip_B: Bool[Tensor, " B"]
    corner_B2: Int64[Tensor, "B 2"] | None  # None: all at the top left
    height: int
    width: int


def _view(
    crops_BCHW: Tensor, geometry: _Geometry, plan: ColourPlan, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Windows of crops, coloured and normalised; by a product, which takes half the time of a quotient."""
    mean_C11, std_C11 = _statistics(crops_BCHW, mean, std, torch.float32)
    factor_C11 = 1 / std_C11
    flip_B, corner_B2, height, width = geometry.flip_B, geometry.corner_B2, geometry.height, geometry.width
    if crops_BCHW.device.type == "cpu":
        from unmask.colour.pixels import views_of_bytes  # numba takes most of a second

        if corner_B2 is None:
            corner_B2 = torch.zeros(len(crops_BCHW), 2, dtype=torch.int64)
        return views_of_bytes(
            crops_BCHW, flip_B, corner_B2, plan, mean_C11.flatten(), factor_C11.flatten(), height=height, width=width
        )
    flipped_BCHW = flip(crops_BCHW, flip_B)
    windows_BCHW = (
        flipped_BCHW[:, :, :height, :width] if corner_B2 is None else window(flipped_BCHW, corner_B2, height, width)
    )
    return change_in_groups(to_float(windows_BCHW), plan).sub_(mean_C11).mul_(factor_C11)


def _statistics(
    images_BCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    channels = images_BCHW.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"images with {channels} channels need {channels} means and stds, got {len(mean)} and {len(std)}"
        )
    both_2C = torch.tensor([mean, std], dtype=torch.float32).to(images_BCHW.device, dtype, non_blocking=True)
    mean_C11, std_C11 = both_2C[:, :, None, None].unbind()
    return mean_C11, std_C11
