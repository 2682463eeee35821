"""Two streams of tokens that look at themselves and at each other: post-norm layers as BERT has them, one a stream.

Shape legend: B samples, T tokens of the stream, S tokens of the other one, D width, h heads. Padding: True = not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.models.initialise import normal_weights_

# What BERT's configuration says where it says nothing else.
BERT_EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class CoAttentionConfig:
    """Size of the layers in which text and image meet."""

    width: Annotated[int, Doc("Width of both streams. [code]")] = 768
    depth: Annotated[int, Doc("Layers of each stream. [code]")] = 6
    heads: Annotated[int, Doc("Attention heads; must divide the width. [code]")] = 12
    mlp_ratio: Annotated[float, Doc("Hidden width of a layer's MLP by its width. [code]")] = 4.0

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("depth", self.depth), ("heads", self.heads)):
            if value < 1:
                raise ValueError(f"co-attention {name} must be at least 1, got {value}")
        if self.width % self.heads:
            raise ValueError(f"co-attention width {self.width} is not divisible by its {self.heads} heads")


class PostNormAttention(nn.Module):
    """Attention to a context, added to the tokens and normalised."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=BERT_EPS)

    def forward(
        self,
        tokens_BTD: Float[Tensor, "B T D"],
        context_BSD: Float[Tensor, "B S D"],
        padding_BS: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B T D"]:
        """Tokens after looking at the context; what is padding there is not seen."""
        query, key, value = (
            layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, source in ((self.query, tokens_BTD), (self.key, context_BSD), (self.value, context_BSD))
        )
        mixed_BhTd = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if padding_BS is None else ~padding_BS[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed_BTD = self.out(mixed_BhTd.transpose(1, 2).flatten(2))
        return self.norm(tokens_BTD + F.dropout(mixed_BTD, self.dropout, self.training))


class CoAttentionLayer(nn.Module):
    """Self-attention, attention to the other stream, MLP; a norm after each."""

    def __init__(self, config: CoAttentionConfig, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.self_attention = PostNormAttention(config.width, config.heads, dropout)
        self.cross_attention = PostNormAttention(config.width, config.heads, dropout)
        hidden = round(config.width * config.mlp_ratio)
        self.inner = nn.Linear(config.width, hidden)
        self.outer = nn.Linear(hidden, config.width)
        self.norm = nn.LayerNorm(config.width, eps=BERT_EPS)

    def forward(
        self,
        tokens_BTD: Float[Tensor, "B T D"],
        other_BSD: Float[Tensor, "B S D"],
        padding_BT: Bool[Tensor, "B T"] | None,
        other_padding_BS: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B T D"]:
        """The stream's tokens after this layer; `other_BSD` as it entered the layer."""
        tokens_BTD = self.self_attention(tokens_BTD, tokens_BTD, padding_BT)
        tokens_BTD = self.cross_attention(tokens_BTD, other_BSD, other_padding_BS)
        changed_BTD = self.outer(F.gelu(self.inner(tokens_BTD)))
        return self.norm(tokens_BTD + F.dropout(changed_BTD, self.dropout, self.training))


class Pooler(nn.Module):
    """The first token through a linear layer and a tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One feature a sample."""
        return self.dense(tokens_BTD[:, 0]).tanh()


class Fusion(nn.Module):
    """Both streams' ways into a common width, the layers in which they meet, and what is pooled from each."""

    def __init__(self, config: CoAttentionConfig, *, text_width: int, image_width: int, dropout: float) -> None:
        super().__init__()
        self.text_in = nn.Linear(text_width, config.width)
        self.image_in = nn.Linear(image_width, config.width)
        self.text_layers = nn.ModuleList(CoAttentionLayer(config, dropout) for _ in range(config.depth))
        self.image_layers = nn.ModuleList(CoAttentionLayer(config, dropout) for _ in range(config.depth))
        self.text_pooler = Pooler(config.width)
        self.image_pooler = Pooler(config.width)
        normal_weights_(self)

    def forward(
        self,
        text_BTD: Float[Tensor, "B T D"],
        image_BSD: Float[Tensor, "B S D"],
        padding_BT: Bool[Tensor, "B T"],
        depth: int | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B S D"]]:
        """Text and image after the first `depth` layers; None: after all."""
        for text_layer, image_layer in zip(self.text_layers[:depth], self.image_layers[:depth], strict=True):
            text_BTD, image_BSD = (
                text_layer(text_BTD, image_BSD, padding_BT, None),
                image_layer(image_BSD, text_BTD, None, padding_BT),
            )
        return text_BTD, image_BSD
