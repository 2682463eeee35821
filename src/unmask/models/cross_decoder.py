"""BootMAE's decoder: tokens of all patches attend to each other, then to features of the encoder.

Shape legend: B samples, N patches (row-major), V visible patches, L = prefix + V visible tokens, W encoder width,
D decoder width, I width inside attention, Q tokens that ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import LayerNorm, Mlp
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.initialise import xavier_linears_


@dataclass(frozen=True, kw_only=True)
class CrossDecoderConfig:
    """Size of a decoder with cross-attention."""

    width: Annotated[int, Doc("Width of the decoder's tokens.")] = 512
    depth: Annotated[int, Doc("Number of blocks.")] = 2
    heads: Annotated[
        int, Doc("Attention heads of each block; a head is width // heads wide, and need not divide the width.")
    ] = 8
    mlp_ratio: Annotated[float, Doc("Hidden width of a block's MLP by its width.")] = 4.0

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("depth", self.depth), ("heads", self.heads)):
            if value < 1:
                raise ValueError(f"decoder {name} must be at least 1, got {value}")
        if self.heads > self.width:
            raise ValueError(f"a decoder of width {self.width} cannot have {self.heads} heads")


class SelfAttention(nn.Module):
    """Tokens ask each other. Keys have no bias, which the softmax would cancel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = width // heads * heads
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(inner, width)

    def forward(self, tokens_BQD: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        query, key, value = self.qkv(tokens_BQD).chunk(3, dim=-1)
        return self.proj(_attend(query + self.q_bias, key, value + self.v_bias, self.heads))


class CrossAttention(nn.Module):
    """Tokens ask, the memory answers. Keys have no bias here, either."""

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = width // heads * heads
        self.q = nn.Linear(width, inner)
        self.kv = nn.Linear(memory_width, 2 * inner, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(inner, width)

    def forward(self, tokens_BQD: Float[Tensor, "B Q D"], memory_BLW: Float[Tensor, "B L W"]) -> Float[Tensor, "B Q D"]:
        key, value = self.kv(memory_BLW).chunk(2, dim=-1)
        return self.proj(_attend(self.q(tokens_BQD), key, value + self.v_bias, self.heads))


def _attend(query_BQI: Tensor, key_BLI: Tensor, value_BLI: Tensor, heads: int) -> Tensor:
    """What each query finds, [B, Q, I], with I split into heads."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query_BQI, key_BLI, value_BLI))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class CrossBlock(nn.Module):
    """Self-attention, cross-attention, MLP; each behind a norm and beside a shortcut."""

    def __init__(self, config: CrossDecoderConfig, memory_width: int) -> None:
        super().__init__()
        width = config.width
        self.norm_self = LayerNorm(width)
        self.attn = SelfAttention(width, config.heads)
        self.norm_query = LayerNorm(width)
        self.norm_memory = LayerNorm(memory_width)
        self.cross = CrossAttention(width, memory_width, config.heads)
        self.norm_mlp = LayerNorm(width)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(self, tokens_BQD: Float[Tensor, "B Q D"], memory_BLW: Float[Tensor, "B L W"]) -> Float[Tensor, "B Q D"]:
        tokens_BQD = tokens_BQD + self.attn(self.norm_self(tokens_BQD))
        tokens_BQD = tokens_BQD + self.cross(self.norm_query(tokens_BQD), self.norm_memory(memory_BLW))
        return tokens_BQD + self.mlp(self.norm_mlp(tokens_BQD))


class CrossDecoder(nn.Module):
    """Linear map to the decoder's width, mask tokens with positions at hidden places, blocks, norm.

    Visible tokens get no position here: they carry the encoder's.
    """

    def __init__(self, config: CrossDecoderConfig, *, encoder_width: int, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.blocks = nn.ModuleList([CrossBlock(config, encoder_width) for _ in range(config.depth)])
        self.norm = LayerNorm(config.width)
        xavier_linears_(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        visible_BLW: Float[Tensor, "B L W"],
        memory_BLW: Float[Tensor, "B L W"],
        mask_BN: Bool[Tensor, "B N"],
        position_1ND: Float[Tensor, "1 N D"],
    ) -> Float[Tensor, "B N D"]:
        """Decoded features of all N patches, prefix tokens dropped.

        `visible_BLW`: prefix tokens, then the visible patches in row-major order, as the encoder gives them in mode
        drop; `memory_BLW`: what every block's cross-attention reads, the same tokens at another depth.
        """
        tokens_BLD = self.embed(visible_BLW)
        prefix_BPD, visible_BVD = tokens_BLD.split([self.prefix, tokens_BLD.shape[1] - self.prefix], dim=1)
        # A hidden place reads some visible token, too, and then throws it away.
        source_BN1 = ((~mask_BN).cumsum(dim=1) - 1).clamp_(min=0)[..., None]
        shown_BND = visible_BVD.gather(1, source_BN1.expand(-1, -1, visible_BVD.shape[-1]))
        hidden_1ND = (self.mask_token + position_1ND).to(shown_BND.dtype)
        tokens = torch.cat([prefix_BPD, torch.where(mask_BN[..., None], hidden_1ND, shown_BND)], dim=1)
        for block in self.blocks:
            tokens = block(tokens, memory_BLW)
        return self.norm(tokens[:, self.prefix :])
