"""A queue of keys of earlier batches, which serve as negatives (MoCo, He et al., arXiv 1911.05722).

Shape legend: D key width, Q keys of the queue, G keys of all ranks together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The newest Q keys, in columns; where it is not filled yet, random directions (the authors' start)."""

    def __init__(self, width: int, length: int) -> None:
        """`length` Q needs not be a multiple of the batch: what is newest goes where what is oldest was."""
        super().__init__()
        if length < 1:
            raise ValueError(f"a queue must hold at least 1 key, got {length}")
        self.keys_DQ: Tensor
        self.position: Tensor
        self.register_buffer("keys_DQ", F.normalize(torch.randn(width, length), dim=0))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys_GD: Float[Tensor, "G D"]) -> None:
        """Put keys in, in order, for the oldest ones. Of more keys than the queue holds, the last ones stay."""
        length = self.keys_DQ.shape[1]
        skipped = max(0, len(keys_GD) - length)
        places_G = torch.arange(skipped, len(keys_GD), device=self.keys_DQ.device)
        self.keys_DQ.index_copy_(1, (self.position + places_G) % length, keys_GD[skipped:].T.to(self.keys_DQ.dtype))
        self.position.add_(len(keys_GD)).remainder_(length)
