"""MAE's transformer decoder: visible tokens and mask tokens in, one prediction for each patch out.

What the loss does not need is not computed: before the first block all mask tokens of a place are alike, so their
queries, keys and values are computed once for all samples; and the last block gives only the places that are asked for,
while it attends to all.

Shape legend: B samples, N patches (row-major), L visible tokens with P prefix tokens first, M hidden patches of a
sample, T = P + N, W encoder width, D decoder width, E output width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import LayerNorm, get_act_layer
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.masking import hidden_indices, visible_indices
from unmask.models.initialise import xavier_linears_
from unmask.models.lean_attention import heads_apart, lean_attention_
from unmask.models.places import fill_places
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
        lean_attention_(self.blocks)
        self.norm = norm(config.width)
        self.head = nn.Linear(config.width, out_width)
        xavier_linears_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible_BLW: Float[Tensor, "B L W"], mask_BN: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Decoded features of all N patches, prefix tokens dropped.

        `visible_BLW`: prefix tokens, then the visible patches in row-major order, as Encoder gives them in mode drop.
        """
        tokens_BTD = self._first_block(*self._apart(visible_BLW, mask_BN), mask_BN)
        return self.norm(self.blocks[1:](tokens_BTD))[:, self.prefix :]

    def hidden(self, visible_BLW: Float[Tensor, "B L W"], mask_BN: Bool[Tensor, "B N"]) -> Float[Tensor, "B M D"]:
        """Decoded features of the hidden patches alone, in row-major order; otherwise as `forward`."""
        tokens_BTD = self._first_block(*self._apart(visible_BLW, mask_BN), mask_BN)
        hidden_BM = hidden_indices(mask_BN, hidden=self._hidden_count(visible_BLW, mask_BN)) + self.prefix
        if len(self.blocks) < 2:
            return self.norm(_rows(tokens_BTD, hidden_BM))
        return self.norm(_only(self.blocks[-1], self.blocks[1:-1](tokens_BTD), hidden_BM))

    def place(self, visible_BLW: Float[Tensor, "B L W"], mask_BN: Bool[Tensor, "B N"]) -> Float[Tensor, "B T D"]:
        """What enters the first block: prefix tokens, then all patches, visible or mask token, with positions."""
        return self._whole(*self._apart(visible_BLW, mask_BN), mask_BN)

    def _hidden_count(self, visible_BLW: Tensor, mask_BN: Tensor) -> int:
        return mask_BN.shape[1] + self.prefix - visible_BLW.shape[1]

    def _apart(self, visible_BLW: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Visible tokens [B, L, D] and the mask token of every place [N, D], with their positions."""
        tokens_BLD = self.embed(visible_BLW)
        position_TD = self.position[0].to(tokens_BLD.dtype)
        visible_BV = visible_indices(mask_BN, hidden=self._hidden_count(visible_BLW, mask_BN))
        prefix_BP = torch.arange(self.prefix, device=mask_BN.device).expand(len(mask_BN), -1)
        places_BL = torch.cat([prefix_BP, visible_BV + self.prefix], dim=1)
        mask_token_ND = self.mask_token[0].to(tokens_BLD.dtype) + position_TD[self.prefix :]
        return tokens_BLD + F.embedding(places_BL, position_TD), mask_token_ND

    def _whole(self, visible_BLD: Tensor, stand_in_ND: Tensor, mask_BN: Tensor) -> Tensor:
        """Prefix tokens, then all patches in order."""
        patches_BND = fill_places(visible_BLD[:, self.prefix :], stand_in_ND, mask_BN)
        return torch.cat([visible_BLD[:, : self.prefix], patches_BND], dim=1)

    def _first_block(self, visible_BLD: Tensor, stand_in_ND: Tensor, mask_BN: Tensor) -> Tensor:
        """The first block on the whole; queries, keys and values of mask tokens are shared by all samples."""
        tokens_BTD = self._whole(visible_BLD, stand_in_ND, mask_BN)
        if not len(self.blocks):
            return tokens_BTD
        block: Any = self.blocks[0]
        visible, stand_in = (block.attn.qkv(block.norm1(tokens)) for tokens in (visible_BLD, stand_in_ND))
        packed = self._whole(visible, stand_in, mask_BN)
        query, key, value = heads_apart(packed, 3, block.attn.num_heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return _rest(block, tokens_BTD, mixed)

    def predict(self, features: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead E"]:
        """The last linear layer, on any selection of decoded features."""
        return self.head(features)


def _rows(tokens_BTD: Tensor, places_BM: Int64[Tensor, "B M"]) -> Tensor:
    """The tokens at these places of each sample."""
    return tokens_BTD.gather(1, places_BM[..., None].expand(-1, -1, tokens_BTD.shape[-1]))


def _only(block: Any, tokens_BTD: Tensor, places_BM: Tensor) -> Tensor:
    """What a block of ours gives at these places: they ask, all places answer."""
    attention, width = block.attn, tokens_BTD.shape[-1]
    normed = block.norm1(tokens_BTD)
    weight, bias = (part.split([width, 2 * width]) for part in (attention.qkv.weight, attention.qkv.bias))
    (query,) = heads_apart(F.linear(_rows(normed, places_BM), weight[0], bias[0]), 1, attention.num_heads)
    key, value = heads_apart(F.linear(normed, weight[1], bias[1]), 2, attention.num_heads)
    return _rest(block, _rows(tokens_BTD, places_BM), F.scaled_dot_product_attention(query, key, value))


def _rest(block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
    """A block of ours from behind its attention; it has neither dropout nor layer scale."""
    tokens = tokens + block.attn.proj(mixed.transpose(1, 2).flatten(2))
    return tokens + block.mlp(block.norm2(tokens))
