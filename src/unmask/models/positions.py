"""Absolute positions: fixed two-dimensional sine-cosine ones, and how any follow images of another size.

Shape legend: N patches (row-major), P prefix tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def _sincos_1d(positions_N: Tensor, width: int) -> Tensor:
    frequencies = 1.0 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions_N[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions(grid: tuple[int, int], width: int, *, prefix: int = 1) -> Float[Tensor, "1 PN D"]:
    """Positions [1, prefix + N, width]: zeros for prefix tokens; columns in the first half, rows in the second.

    (That columns come first is the authors' behaviour.) `width` must be divisible by 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, got {width}")
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    patches = torch.cat([_sincos_1d(columns.flatten(), width // 2), _sincos_1d(rows.flatten(), width // 2)], dim=1)
    return torch.cat([patches.new_zeros(prefix, width), patches])[None].float()


def resample_positions(
    position_1LD: Float[Tensor, "1 L D"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    prefix: int,
    way: Literal["antialias", "offset", "scale"],
) -> Float[Tensor, "1 M D"]:
    """Positions of the grid `old` (after `prefix` rows that stay) interpolated to the grid `new`, with gradient.

    antialias: timm's bicubic. offset: DINO's and iBOT's authors give bicubic interpolation the scale (n + 0.1) / old,
    which is also what its coordinates use. scale: MSN's authors give it sqrt(new patches / old patches) for both sides;
    where both sides shrink alike that is new / old, which is taken for each side.
    """
    if way == "antialias":
        return resample_abs_pos_embed(position_1LD, new_size=list(new), old_size=list(old), num_prefix_tokens=prefix)
    prefix_1PD, patches_1ND = position_1LD.split([prefix, old[0] * old[1]], dim=1)
    grid_1Drc = patches_1ND.unflatten(1, old).permute(0, 3, 1, 2)
    if way == "offset":
        factors = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
        resized = F.interpolate(grid_1Drc, scale_factor=factors, mode="bicubic")
    else:
        resized = F.interpolate(grid_1Drc, size=new, mode="bicubic")
    return torch.cat([prefix_1PD, resized.flatten(2).transpose(1, 2)], dim=1)
