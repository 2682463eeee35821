"""CaiT's class attention (Touvron et al. 2021): a class token that only listens, after the trunk.

Shape legend: B samples, L tokens of the trunk, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers import LayerNorm
from timm.models.cait import LayerScaleBlockClassAttn
from torch import Tensor, nn

from unmask.models.initialise import xavier_linears_


class ClassAttention(nn.Module):
    """One feature an image: a class token attends to the tokens, which stay as they are, in a few blocks."""

    def __init__(self, width: int, heads: int, *, depth: int, mlp_ratio: float, layer_scale: float) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(
            LayerScaleBlockClassAttn(
                width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=LayerNorm, init_values=layer_scale
            )
            for _ in range(depth)
        )
        xavier_linears_(self)
        nn.init.normal_(self.class_token, std=0.02)

    def forward(self, tokens_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B 1 D"]:
        """The class token after the last block, before any final norm; give it tokens before the final norm, too."""
        class_B1D = self.class_token.to(tokens_BLD.dtype).expand(len(tokens_BLD), -1, -1)
        for block in self.blocks:
            class_B1D = block(tokens_BLD, class_B1D)
        return class_B1D
