"""Tokens of whole images put together from those of visible patches and stand-ins at hidden places.

Shape legend: B samples, N patches (row-major), V visible patches of a sample, R stand-ins, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def fill_places(
    visible_BVD: Float[Tensor, "B V D"], stand_ins_RD: Float[Tensor, "R D"], mask_BN: Bool[Tensor, "B N"]
) -> Float[Tensor, "B N D"]:
    """At a visible place the sample's next visible token, at a hidden one a stand-in: its place's where there are N of
    them, the only one where there is one. Every sample must hide N - V patches; the device is not asked.

    One look-up of rows, whose gradient torch adds up in a fixed order on every device.
    """
    B, V, _ = visible_BVD.shape
    N = mask_BN.shape[1]
    assert len(stand_ins_RD) in (1, N)
    device = mask_BN.device
    own_BN = (~mask_BN).cumsum(dim=1) - 1 + V * torch.arange(B, device=device)[:, None]
    standing = B * V + (torch.arange(N, device=device) if len(stand_ins_RD) == N else 0)
    rows = torch.cat([visible_BVD.flatten(0, 1), stand_ins_RD.to(visible_BVD.dtype)])
    return F.embedding(torch.where(mask_BN, standing, own_BN), rows)
