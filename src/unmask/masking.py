"""Which patches of an image are hidden: random and blockwise masks, drawn for a whole batch on the device.

A mask covers the patches only (never a class token), row by row from the top left; True = hidden.

Shape legend: B samples, N = rows x columns patches, V visible and M hidden patches of a sample, K proposals or masks,
H x W the patch grid, U units (squares of patches that are hidden together).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor
from typing_extensions import Doc

Mask: TypeAlias = Bool[Tensor, "B N"]
Grid: TypeAlias = tuple[int, int]

_TRIES = 10  # proposals before a blockwise mask gives up growing [BEiT]
_BLOCKS_BETWEEN_CHECKS = 8  # asking whether all samples are finished waits for the device


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How the patches to hide are chosen."""

    kind: Annotated[
        Literal["random", "blockwise"],
        Doc("`random`: units drawn uniformly [SimMIM, MAE]; `blockwise`: a union of rectangles [BEiT]."),
    ] = "random"
    ratio: Annotated[float, Doc("Share of the patches to hide; the count is rounded up to whole units.")] = 0.75
    unit: Annotated[
        int,
        Doc("Side, in patches, of the squares hidden together: 2 for 32-pixel blocks of 16-pixel patches."),
    ] = 1
    min_block_patches: Annotated[int, Doc("Blockwise: smallest area drawn for a rectangle, in patches. [BEiT]")] = 16
    min_aspect: Annotated[
        float, Doc("Blockwise: smallest height / width of a rectangle; the largest is its inverse. [BEiT]")
    ] = 0.3
    exact: Annotated[bool, Doc("Blockwise: hide random patches too until the count is met exactly. [BootMAE, SIM]")] = (
        False
    )
    max_block_patches: Annotated[
        int | None, Doc("Blockwise: largest area drawn for a rectangle, in patches; None: all that is to hide. [BEiT]")
    ] = None
    block_ratio: Annotated[
        float | None,
        Doc("Blockwise and exact: share of the patches for rectangles to hide; None: `ratio`. [BootMAE]"),
    ] = None
    roll: Annotated[
        int,
        Doc("With block_ratio: up to so many patches of the rectangles, one number a batch, are shown. [BootMAE: 3]"),
    ] = 0

    def __post_init__(self) -> None:
        if self.kind not in ("random", "blockwise"):
            raise ValueError(f"mask kind must be 'random' or 'blockwise', got '{self.kind}'")
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask ratio must lie strictly between 0 and 1, got {self.ratio}")
        if self.unit < 1:
            raise ValueError(f"mask unit must be at least 1 patch, got {self.unit}")
        if self.kind == "blockwise" and self.unit != 1:
            raise ValueError(f"mask unit applies to random masks only, got unit {self.unit} with blockwise masks")
        if self.min_block_patches < 1:
            raise ValueError(f"min_block_patches must be at least 1, got {self.min_block_patches}")
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"min_aspect must lie above 0 and be at most 1, got {self.min_aspect}")
        if self.max_block_patches is not None and self.max_block_patches < 1:
            raise ValueError(f"max_block_patches must be at least 1, got {self.max_block_patches}")
        if self.block_ratio is not None:
            if self.kind != "blockwise" or not self.exact:
                raise ValueError("block_ratio applies to exact blockwise masks only")
            if not 0 < self.block_ratio <= self.ratio:
                raise ValueError(
                    f"block_ratio must lie above 0 and be at most the ratio {self.ratio}, got {self.block_ratio}"
                )
        if self.roll < 0 or (self.roll and self.block_ratio is None):
            raise ValueError(f"roll must be 0 or more, and 0 without a block_ratio, got {self.roll}")


def random_mask(
    batch: int,
    grid: Grid,
    ratio: float,
    *,
    unit: int = 1,
    generator: torch.Generator | None = None,
    device: torch.device | str,
) -> Mask:
    """Hide ceil(units · ratio) of the `unit` x `unit` squares of every sample, all choices equally likely.

    The count is that of SimMIM (0.6 of 7x7 squares is 30) and of MAE (0.75 of 196 patches is 147).
    `generator` must live on `device`; None draws from torch's global state. Raises ValueError when the grid
    does not divide into squares, or when no patch or every patch would be hidden.
    """
    hidden = _hidden_units(grid, ratio, unit)
    rows, columns = grid[0] // unit, grid[1] // unit
    noise_BU = torch.rand(batch, rows * columns, generator=generator, device=device)
    mask_BU = torch.zeros_like(noise_BU, dtype=torch.bool)
    mask_BU.scatter_(1, noise_BU.topk(hidden, dim=1, sorted=False).indices, True)
    return mask_BU.view(batch, rows, 1, columns, 1).expand(-1, -1, unit, -1, unit).reshape(batch, grid[0] * grid[1])


def blockwise_mask(
    batch: int,
    grid: Grid,
    target: int,
    *,
    min_patches: int = 16,
    max_patches: int | None = None,
    min_aspect: float = 0.3,
    exact: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str,
) -> Mask:
    """Hide a union of rectangles, up to `target` patches, as BEiT does (Bao et al. 2022, its code).

    A rectangle's area is uniform between `min_patches` and what is still to hide (at most `max_patches`), its
    log aspect uniform within ±log `min_aspect`, its place uniform; it must be smaller than the grid in both
    directions and is kept when it hides at least one new patch and no more than what is still to hide. A
    sample is finished when the target is met or ten proposals in a row failed, so counts vary: on a 14x14
    grid with target 75 they lie between about 68 and 75, with mean 74.5. `exact` then hides random patches
    until every sample has `target` of them. Where BEiT would leave a sample without any hidden patch (tiny
    grids), one random patch is hidden, because losses divide by the count. On grids too small for
    `min_patches` areas start lower: at `target`, or at half the largest rectangle that fits.

    `generator` must live on `device`; None draws from torch's global state. The device is waited for once in
    eight rectangles. Raises ValueError for a grid with a single row or column and for a target outside 1 .. N
    - 1.
    """
    rows, columns = grid
    if min(grid) < 2:
        raise ValueError(f"blockwise masks need a grid of at least 2x2 patches, got {rows}x{columns}")
    if not 0 < target < rows * columns:
        raise ValueError(
            f"a blockwise mask on a grid of {rows}x{columns} can hide 1 to {rows * columns - 1} patches, not {target}"
        )
    largest = target if max_patches is None else min(max_patches, target)
    smallest = min(min_patches, target, max(1, (rows - 1) * (columns - 1) // 2))
    target_B = torch.full((batch,), target, device=device)
    mask_BN = _union_of_boxes(
        target_B, grid, rounds=target, largest=largest, smallest=smallest, min_aspect=min_aspect, generator=generator
    )
    priority_BN = mask_BN + torch.rand(mask_BN.shape, generator=generator, device=device)
    if exact:
        top_BN = torch.zeros_like(mask_BN)
        return top_BN.scatter_(1, priority_BN.topk(target, dim=1, sorted=False).indices, True)
    # Hiding the patch of highest priority changes nothing in a sample that already hides one.
    return mask_BN.scatter_(1, priority_BN.argmax(dim=1, keepdim=True), True)


def disjoint_masks(
    batch: int,
    grid: Grid,
    ratio: float,
    count: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str,
) -> Bool[Tensor, "B K N"]:
    """`count` masks of every sample, each hiding ceil(N · ratio) patches, none showing a patch of another (ExtreMA).

    `generator` must live on `device`; None draws from torch's global state. Raises ValueError when so many masks do
    not fit into the grid.
    """
    rows, columns = grid
    visible = rows * columns - _hidden_units(grid, ratio, 1)
    if count < 1:
        raise ValueError(f"there must be at least 1 mask, got {count}")
    if count * visible > rows * columns:
        raise ValueError(
            f"{count} masks that each show {visible} patches do not fit into {rows * columns} patches without overlap"
        )
    order_BN = torch.rand(batch, rows * columns, generator=generator, device=device).argsort(dim=1)
    shown_BKV = order_BN[:, : count * visible].unflatten(1, (count, visible))
    masks_BKN = torch.ones(batch, count, rows * columns, dtype=torch.bool, device=device)
    return masks_BKN.scatter_(2, shown_BKV, False)


def fill_mask(mask_BN: Mask, hidden: int, *, max_roll: int = 0, generator: torch.Generator | None = None) -> Mask:
    """Hide exactly `hidden` patches of every sample: those of `mask_BN` and, beside them, random others (BootMAE).

    Of 0 .. `max_roll` one number is drawn for the whole batch: so many random patches of each sample's mask are shown,
    and as many more others hidden in their place. BootMAE's authors call it a roll of the order of patches; they give
    no reason. Patches of the mask beyond `hidden` are shown, too. Raises ValueError for a count outside 1 .. N - 1.
    """
    patches = mask_BN.shape[1]
    if not 0 < hidden < patches:
        raise ValueError(f"of {patches} patches 1 to {patches - 1} can be hidden, not {hidden}")
    noise_BN = torch.rand(mask_BN.shape, generator=generator, device=mask_BN.device)
    rank_BN = (mask_BN + noise_BN).argsort(dim=1, descending=True).argsort(dim=1)
    most = min(max_roll, patches - hidden)
    roll = torch.randint(most + 1, (), generator=generator, device=mask_BN.device)
    return (rank_BN >= roll) & (rank_BN < roll + hidden)


def sample_mask(
    config: MaskConfig,
    batch: int,
    grid: Grid,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str,
) -> Mask:
    """Draw the masks of one batch as `config` says, on a patch grid of (rows, columns)."""
    if config.kind == "random":
        return random_mask(batch, grid, config.ratio, unit=config.unit, generator=generator, device=device)
    patches, blocks_alone = grid[0] * grid[1], config.block_ratio is None
    target = _round_up(patches * config.ratio)
    mask_BN = blockwise_mask(
        batch,
        grid,
        target if config.block_ratio is None else _round_up(patches * config.block_ratio),
        min_patches=config.min_block_patches,
        max_patches=config.max_block_patches,
        min_aspect=config.min_aspect,
        exact=config.exact and blocks_alone,
        generator=generator,
        device=device,
    )
    return mask_BN if blocks_alone else fill_mask(mask_BN, target, max_roll=config.roll, generator=generator)


@dataclass(frozen=True, kw_only=True)
class VaryingMaskConfig:
    """Masks that hide another share of every image, none of some (iBOT)."""

    kind: Annotated[
        Literal["random", "blockwise"],
        Doc("`blockwise`: a union of rectangles; `random`: patches drawn uniformly. [iBOT]"),
    ] = "blockwise"
    ratios: Annotated[
        tuple[float, ...], Doc("Shares of the patches to hide, one chosen for each image with equal chance. [iBOT]")
    ] = (0.0, 0.3)
    spreads: Annotated[
        tuple[float, ...], Doc("For each of `ratios`: the share is uniform within ± this around it. [iBOT]")
    ] = (0.0, 0.2)
    min_aspect: Annotated[
        float, Doc("Blockwise: smallest height / width of a rectangle; the largest is its inverse. [iBOT]")
    ] = 0.3

    def __post_init__(self) -> None:
        if self.kind not in ("random", "blockwise"):
            raise ValueError(f"mask kind must be 'random' or 'blockwise', got '{self.kind}'")
        if not self.ratios or len(self.ratios) != len(self.spreads):
            raise ValueError(f"mask ratios and spreads must be as many, got {len(self.ratios)} and {len(self.spreads)}")
        for ratio, spread in zip(self.ratios, self.spreads, strict=True):
            if not 0 <= spread <= ratio or ratio + spread >= 1:
                raise ValueError(f"mask ratio ± spread must lie in [0, 1), got {ratio} ± {spread}")
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"min_aspect must lie above 0 and be at most 1, got {self.min_aspect}")


def varying_mask(
    config: VaryingMaskConfig,
    batch: int,
    grid: Grid,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str,
) -> Mask:
    """Masks of iBOT (Zhou et al. 2022, its code): each image has its own share of hidden patches, 0 where so drawn.

    An image chooses one of `ratios` and a share within ± its spread; floor(N · share) patches are its target.
    Blockwise masks grow as BEiT's (`blockwise_mask`) from rectangles of at least (shorter side // 3)² patches, and may
    end below the target, on tiny grids even empty; random ones meet it. `generator` must live on `device`; None draws
    from torch's global state.
    """
    rows, columns = grid
    choice_B = torch.randint(len(config.ratios), (batch,), generator=generator, device=device)
    deviation_B = 2 * torch.rand(batch, generator=generator, device=device) - 1
    ratio_2R = torch.tensor([config.ratios, config.spreads], device=device)
    ratio_B, spread_B = ratio_2R[:, choice_B]
    # Blind to the last bits of a product such as 10 · 0.7, as `_round_up` is.
    target_B = (rows * columns * (ratio_B + spread_B * deviation_B) + 1e-4).floor().long()
    if config.kind == "random":
        rank_BN = torch.rand(batch, rows * columns, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
        return rank_BN < target_B[:, None]
    most = math.floor(rows * columns * max(map(sum, zip(config.ratios, config.spreads, strict=True))) + 1e-4)
    return _union_of_boxes(
        target_B,
        grid,
        rounds=most,
        largest=most,
        smallest=(min(grid) // 3) ** 2,
        min_aspect=config.min_aspect,
        generator=generator,
    )


def masked_count(config: MaskConfig, grid: Grid) -> int | None:
    """How many patches every sample of a (rows, columns) grid hides; None where samples may differ."""
    if config.kind == "random":
        return _hidden_units(grid, config.ratio, config.unit) * config.unit**2
    return _round_up(grid[0] * grid[1] * config.ratio) if config.exact else None


def visible_indices(mask_BN: Mask, *, hidden: int | None = None) -> Int64[Tensor, "B V"]:
    """The visible patches of every sample, in ascending order.

    `hidden` is the number of hidden patches where the caller knows it (`masked_count`): the count is then
    trusted and the device is not waited for. Raises ValueError when samples hide different numbers of
    patches.
    """
    visible = mask_BN.shape[1] - _count(mask_BN, hidden)
    return mask_BN.to(torch.uint8).argsort(dim=1, stable=True)[:, :visible]


def hidden_indices(mask_BN: Mask, *, hidden: int | None = None) -> Int64[Tensor, "B M"]:
    """The hidden patches of every sample, in ascending order; otherwise as `visible_indices`."""
    return mask_BN.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : _count(mask_BN, hidden)]


def hidden_positions(mask_BN: Mask, *, hidden: int | None = None) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Positions of each sample's hidden patches, and which of them truly are: samples that hide fewer than the one that
    hides most are filled up with visible ones. `hidden` as in `visible_indices`."""
    most = int(mask_BN.sum(dim=1).max()) if hidden is None else hidden
    positions_BM = hidden_indices(mask_BN, hidden=most)
    return positions_BM, mask_BN.gather(1, positions_BM)


def take_hidden(
    values_BN: Shaped[Tensor, "B N ..."], mask_BN: Mask, *, hidden: int | None = None
) -> Shaped[Tensor, "_ ..."]:
    """The values of all hidden patches, sample by sample: `values_BN[mask_BN]`.

    That expression waits for the device, to learn how many there are. Where every sample hides `hidden` patches
    (`masked_count`; trusted) this does not.
    """
    if hidden is None:
        return values_BN[mask_BN]
    places_BM = hidden_indices(mask_BN, hidden=hidden)
    first_B1 = mask_BN.shape[1] * torch.arange(len(mask_BN), device=mask_BN.device)[:, None]
    return values_BN.flatten(0, 1).index_select(0, (places_BM + first_B1).flatten())


def _count(mask_BN: Mask, hidden: int | None) -> int:
    """How many patches every sample hides: what the caller knows, else what the device says."""
    if hidden is not None:
        return hidden
    fewest, most = (int(bound) for bound in torch.stack(mask_BN.sum(dim=1).aminmax()).tolist())
    if fewest != most:
        raise ValueError(f"all samples of a batch must hide equally many patches to drop them, got {fewest} to {most}")
    return most


def _union_of_boxes(
    target_B: Int64[Tensor, " B"],
    grid: Grid,
    *,
    rounds: int,
    largest: int,
    smallest: int,
    min_aspect: float,
    generator: torch.Generator | None,
) -> Mask:
    """Rectangles added to every sample until its own target is met or ten proposals in a row failed (BEiT's loop).

    `rounds`: the largest target; every round hides at least one more patch of each unfinished sample.
    """
    rows, columns = grid
    mask_BHW = torch.zeros(len(target_B), rows, columns, dtype=torch.bool, device=target_B.device)
    count_B = torch.zeros_like(target_B)
    active_B = target_B > 0
    for block in range(rounds):
        if block and block % _BLOCKS_BETWEEN_CHECKS == 0 and not bool(active_B.any()):
            break
        room_B = (target_B - count_B).clamp_(max=largest)
        box_BKHW = _propose_boxes(room_B, grid, smallest, min_aspect, generator)
        new_BK = (box_BKHW & ~mask_BHW[:, None]).sum(dim=(2, 3))
        good_BK = (new_BK > 0) & (new_BK <= room_B[:, None]) & active_B[:, None]
        # The mask changes only on success, so the ten tries can be judged together; argmax finds the first
        # good one.
        first_B1 = good_BK.int().argmax(dim=1, keepdim=True)
        active_B = good_BK.any(dim=1)
        chosen_BHW = box_BKHW.gather(1, first_B1[:, :, None, None].expand(-1, 1, rows, columns)).squeeze(1)
        mask_BHW |= chosen_BHW & active_B[:, None, None]
        count_B = mask_BHW.sum(dim=(1, 2))
        active_B &= count_B < target_B
    return mask_BHW.flatten(1)


def _propose_boxes(
    room_B: Int64[Tensor, " B"],
    grid: Grid,
    smallest: int,
    min_aspect: float,
    generator: torch.Generator | None,
) -> Bool[Tensor, "B K H W"]:
    """Ten random rectangles a sample; one that does not fit inside the grid comes out empty."""
    rows, columns = grid
    device = room_B.device
    area_u, aspect_u, top_u, left_u = torch.rand(4, len(room_B), _TRIES, generator=generator, device=device).unbind()
    # As the authors' `uniform(min, room)`, this also works downwards, when there is less room than the
    # smallest area.
    area_BK = smallest + (room_B[:, None] - smallest) * area_u
    aspect_BK = ((2 * aspect_u - 1) * -math.log(min_aspect)).exp_()
    height_BK = (area_BK * aspect_BK).sqrt_().round_()
    width_BK = (area_BK / aspect_BK).sqrt_().round_()
    fits_BK = (height_BK < rows) & (width_BK < columns)
    top_BK = (top_u * (rows - height_BK + 1)).floor_()
    left_BK = (left_u * (columns - width_BK + 1)).floor_()
    row_H = torch.arange(rows, device=device)
    column_W = torch.arange(columns, device=device)
    in_rows_BKH = (row_H >= top_BK[..., None]) & (row_H < (top_BK + height_BK)[..., None])
    in_columns_BKW = (column_W >= left_BK[..., None]) & (column_W < (left_BK + width_BK)[..., None])
    inside_BKHW = in_rows_BKH[..., :, None] & in_columns_BKW[..., None, :]
    return inside_BKHW & fits_BK[..., None, None]


def _hidden_units(grid: Grid, ratio: float, unit: int) -> int:
    rows, columns = grid
    if rows % unit or columns % unit:
        raise ValueError(f"a grid of {rows}x{columns} patches does not divide into squares of {unit}x{unit} patches")
    units = rows * columns // unit**2
    hidden = _round_up(units * ratio)
    if not 0 < hidden < units:
        raise ValueError(
            f"a mask ratio of {ratio} would hide {max(hidden, 0)} of {units} squares of patches; "
            "at least one must be hidden and one visible"
        )
    return hidden


def _round_up(count: float) -> int:
    """Ceiling, blind to the last bits of a product such as 10 · 0.7 = 7.000000000000001."""
    return math.ceil(count - 1e-9)
