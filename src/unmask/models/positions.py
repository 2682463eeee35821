"""Fixed two-dimensional sine-cosine positions, as in MAE's authors' code.

Shape legend: N patches (row-major), P prefix tokens, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
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
