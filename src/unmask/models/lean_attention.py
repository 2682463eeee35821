"""timm's attention with fewer passes over memory: the same numbers, the same parameters, another forward.

The gradient of queries, keys and values is stacked where the linear layer wants it, instead of being turned and copied;
and where a trainable bias of relative positions stands in the way of torch's fused attention on a CPU, the
probabilities are the only matrix of L x L that is kept.

timm's own classes stay what they are for everybody else: `lean_attention_` changes the class of the modules it is
given, whose state dicts and names remain timm's.

Shape legend: B images, L tokens, D width, h heads, d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.beit import Attention as BeitAttention
from torch import Tensor, nn


def lean_attention_(network: nn.Module) -> None:
    """Give every attention of `network` that is exactly timm's plain kind its lean forward."""
    for part in network.modules():
        attention: Any = part
        kind: Any = type(part)
        if kind is Attention and _is_plain(attention):
            attention.__class__ = LeanAttention
        elif kind is BeitAttention and attention.relative_position_bias_table is None:
            attention.__class__ = LeanBeitAttention


def _is_plain(attention: Attention) -> bool:
    idle = (attention.q_norm, attention.k_norm, attention.norm)
    return attention.fused_attn and attention.gate is None and all(type(norm) is nn.Identity for norm in idle)


def heads_apart(packed_BLK: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`parts` tensors [B, h, L, d] of one linear layer's output; their gradients come back side by side."""
    return tuple(part.transpose(1, 2) for part in packed_BLK.unflatten(-1, (parts, heads, -1)).unbind(2))


class LeanAttention(Attention):
    """Multi-head self-attention of a plain ViT."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [B, L, D] to tokens [B, L, D]."""
        q, k, v = heads_apart(self.qkv(x), 3, self.num_heads)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class LeanBeitAttention(BeitAttention):
    """Multi-head self-attention of BEiT, whose bias of relative positions, if any, all blocks share."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Tokens [B, L, D] and a bias [h, L, L] or [B, h, L, L] to tokens [B, L, D]."""
        biases: Any = (self.q_bias, self.k_bias, self.v_bias)
        bias = None if self.q_bias is None else torch.cat(biases)
        q, k, v = heads_apart(F.linear(x, self.qkv.weight, bias), 3, self.num_heads)
        dropout = self.attn_drop.p if self.training else 0.0
        if _stands_in_the_way(q, shared_rel_pos_bias) and not dropout:
            mixed = _BiasedAttention.apply(q, k, v, shared_rel_pos_bias, self.scale)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=shared_rel_pos_bias, dropout_p=dropout)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def _stands_in_the_way(query: Tensor, bias: Tensor | None) -> bool:
    """Whether torch would spell attention out here: on a CPU, because of a bias [h, L, L] that takes a gradient."""
    return (
        bias is not None
        and bias.ndim == 3
        and bias.requires_grad
        and torch.is_grad_enabled()
        and query.device.type == "cpu"
        and query.dtype == bias.dtype
        and not torch.compiler.is_compiling()
    )


class _BiasedAttention(torch.autograd.Function):
    """softmax(q k' scale + bias) v; bias and scale join the product of queries and keys, the softmax is in place."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        B, h, _, _ = q.shape
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))
        weights = bias.repeat(B, 1, 1)  # becomes the logits, then the probabilities
        torch.baddbmm(weights, q, k.transpose(1, 2), alpha=scale, out=weights)
        torch.softmax(weights, dim=-1, out=weights)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v).unflatten(0, (B, h))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        (gradient,) = gradients
        sizes = gradient.shape[:2]
        gradient = gradient.flatten(0, 1)
        of_v = torch.bmm(weights.transpose(1, 2), gradient)
        of_weights = torch.bmm(gradient, v.transpose(1, 2))
        of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_q = torch.bmm(of_logits, k).mul_(ctx.scale)
        of_k = torch.bmm(of_logits.transpose(1, 2), q).mul_(ctx.scale)
        of_q, of_k, of_v, of_bias = (part.unflatten(0, sizes) for part in (of_q, of_k, of_v, of_logits))
        return of_q, of_k, of_v, of_bias.sum(dim=0), None
