"""TEC's conditional adapter: what all blocks of an encoder say, mixed for the teacher at hand.

Shape legend: B samples, L tokens, D width, G groups of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.layers import LayerNorm, Mlp
from torch import Tensor, nn

from unmask.models.initialise import xavier_linears_


class ConditionalAdapter(nn.Module):
    """One norm over all blocks' outputs side by side; each group of `group` blocks is mixed by a linear layer and a
    residual MLP of hidden width `hidden`; their sum is normed. The last group is smaller where `group` does not divide
    the number of blocks."""

    def __init__(self, width: int, *, depth: int, group: int, hidden: int) -> None:
        super().__init__()
        self.sizes = [width * min(group, depth - first) for first in range(0, depth, group)]
        self.norm_before = LayerNorm(width * depth)
        self.mixers = nn.ModuleList(nn.Linear(size, width) for size in self.sizes)
        self.mlps = nn.ModuleList(Mlp(width, hidden_features=hidden) for _ in self.sizes)
        self.norm_after = LayerNorm(width)
        xavier_linears_(self)

    def forward(self, blocks: Sequence[Float[Tensor, "B L D"]]) -> Float[Tensor, "B L D"]:
        """The mix of what all blocks gave, first block first."""
        groups = self.norm_before(torch.cat(list(blocks), dim=-1)).split(self.sizes, dim=-1)
        mixed_GBLD = [mixer(group) for mixer, group in zip(self.mixers, groups, strict=True)]
        adapted_GBLD = [mlp(mixed) + mixed for mlp, mixed in zip(self.mlps, mixed_GBLD, strict=True)]
        return self.norm_after(torch.stack(adapted_GBLD).sum(dim=0))
