"""MAE's transformer decoder: visible tokens and mask tokens in, one prediction for each patch out.

Shape legend: B samples, N patches (row-major), L visible tokens with P prefix tokens first, W encoder width,
D decoder width, E output width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from timm.layers import LayerNorm, get_act_layer
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.initialise import xavier_linears_
from unmask.models.positions import sincos_positions


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Size of a transformer decoder."""

    width: Annotated[int, Doc("Width of the decoder's tokens.")] = 512
    depth: Annotated[int, Doc("Number of transformer blocks.")] = 8
    heads: Annotated[int, Doc("Attention heads of each block; must divide the width.")] = 16
    mlp_ratio: Annotated[float, Doc("Hidden width of a block's MLP by its width.")] = 4.0
    activation: Annotated[Literal["gelu", "quick_gelu"], Doc("Activation of the MLPs; CLIP's is quick_gelu.")] = "gelu"
    norm_eps: Annotated[float, Doc("Epsilon of the norms.")] = 1e-6

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("heads", self.heads)):
            if value < 1:
                raise ValueError(f"decoder {name} must be at least 1, got {value}")
        if self.width % self.heads:
            raise ValueError(f"decoder width {self.width} is not divisible by its {self.heads} heads")


class TransformerDecoder(nn.Module):
    """Linear map to the decoder's width, mask tokens at hidden places, fixed sin-cos positions, blocks, norm, linear.

    `forward` stops before the last linear layer, so that a method applies `predict` only where its loss looks.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        encoder_width: int,
        out_width: int,
        grid: tuple[int, int],
        prefix: int,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.position: Tensor
        self.register_buffer("position", sincos_positions(grid, config.width, prefix=prefix))
        norm: Any = partial(LayerNorm, eps=config.norm_eps)
        self.blocks = nn.Sequential(
            *[
                Block(
                    config.width,
                    config.heads,
                    mlp_ratio=config.mlp_ratio,
                    qkv_bias=True,
                    act_layer=get_act_layer(config.activation),
                    norm_layer=norm,
                )
                for _ in range(config.depth)
            ]
        )
        self.norm = norm(config.width)
        self.head = nn.Linear(config.width, out_width)
        xavier_linears_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible_BLW: Float[Tensor, "B L W"], mask_BN: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Decoded features of all N patches, prefix tokens dropped.

        `visible_BLW`: prefix tokens, then the visible patches in row-major order, as Encoder gives them in mode drop.
        """
        return self.norm(self.blocks(self.place(visible_BLW, mask_BN)))[:, self.prefix :]

    def place(self, visible_BLW: Float[Tensor, "B L W"], mask_BN: Bool[Tensor, "B N"]) -> Float[Tensor, "B PN D"]:
        """What enters the first block: prefix tokens, then all patches, visible or mask token, with positions."""
        tokens_BLD = self.embed(visible_BLW)
        prefix_BPD, visible_BVD = tokens_BLD.split([self.prefix, tokens_BLD.shape[1] - self.prefix], dim=1)
        # Every place reads its own visible token, or the one mask token that stands behind them all.
        last = visible_BVD.shape[1]
        source_BN = torch.where(mask_BN, last, (~mask_BN).cumsum(dim=1) - 1)
        mask_token = self.mask_token.to(visible_BVD.dtype).expand(visible_BVD.shape[0], -1, -1)
        filled = torch.cat([visible_BVD, mask_token], dim=1)
        patches_BND = filled.gather(1, source_BN[..., None].expand(-1, -1, filled.shape[-1]))
        return torch.cat([prefix_BPD, patches_BND], dim=1) + self.position.to(tokens_BLD.dtype)

    def predict(self, features: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead E"]:
        """The last linear layer, on any selection of decoded features."""
        return self.head(features)
