"""Class attention: only the class token changes, and it sees every token in any order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.models.class_attention import ClassAttention


def _attention(depth: int = 2) -> ClassAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ClassAttention(24, 3, depth=depth, mlp_ratio=2.0, layer_scale=0.5).double()


def _tokens(length: int = 7) -> Tensor:
    return torch.randn(2, length, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_one_block_is_its_formula() -> None:
    """u = [cls; x]; cls += g1 * proj(softmax(q k / sqrt(d)) v); cls += g2 * mlp(norm(cls))."""
    attention, tokens = _attention(depth=1), _tokens()
    block = attention.blocks[0].eval()
    cls = attention.class_token.expand(2, -1, -1)
    u = F.layer_norm(torch.cat([cls, tokens], dim=1), (24,), eps=1e-6)
    heads = [values.unflatten(2, (3, 8)).transpose(1, 2) for values in (block.attn.q(u[:, :1]), block.attn.k(u))]
    weights = (heads[0] @ heads[1].transpose(2, 3) / 8**0.5).softmax(dim=-1)
    mixed = (weights @ block.attn.v(u).unflatten(2, (3, 8)).transpose(1, 2)).transpose(1, 2).flatten(2)
    cls = cls + 0.5 * block.attn.proj(mixed)
    hidden = F.gelu(block.mlp.fc1(F.layer_norm(cls, (24,), eps=1e-6)))
    torch.testing.assert_close(attention(tokens), cls + 0.5 * block.mlp.fc2(hidden))


@torch.no_grad()
def test_the_order_of_tokens_does_not_matter_but_each_of_them_does() -> None:
    attention, tokens = _attention(), _tokens()
    feature = attention(tokens)
    assert feature.shape == (2, 1, 24)
    torch.testing.assert_close(attention(tokens.flip(1)), feature)
    for position in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, position] *= -1
        assert not torch.allclose(attention(changed), feature)


def test_gradients_reach_tokens_and_weights() -> None:
    attention, tokens = _attention(), _tokens().requires_grad_()
    attention(tokens).square().sum().backward()
    assert tokens.grad is not None
    assert bool((tokens.grad.abs().sum(dim=2) > 0).all())
    assert all(parameter.grad is not None for parameter in attention.parameters())
