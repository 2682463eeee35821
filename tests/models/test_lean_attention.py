"""Lean attention gives timm's numbers and gradients, and touches nothing but timm's plain kinds."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.beit import Attention as BeitAttention
from torch import Tensor, nn

from unmask.models.lean_attention import LeanAttention, LeanBeitAttention, lean_attention_

WIDTH, HEADS, TOKENS = 12, 3, 7


def twins(attention: nn.Module) -> tuple[nn.Module, nn.Module]:
    """timm's module with random weights in float64, and a lean copy."""
    torch.manual_seed(0)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    lean = copy.deepcopy(attention.double())
    lean_attention_(lean)
    return attention, lean


def gradients(module: nn.Module, tokens: Tensor, **context: Tensor) -> list[Tensor]:
    """Outputs, and gradients of inputs and of all parameters and contexts."""
    tokens = tokens.clone().requires_grad_()
    leaves = [tokens, *module.parameters(), *(value for value in context.values() if value.requires_grad)]
    out = module(tokens, **context)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_plain_vit_attends_as_timm_does(batch: int) -> None:
    plain, lean = twins(Attention(WIDTH, HEADS, qkv_bias=True))
    assert isinstance(lean, LeanAttention)
    assert list(lean.state_dict()) == list(plain.state_dict())
    tokens = torch.randn(batch, TOKENS, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(gradients(lean, tokens), gradients(plain, tokens))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("trainable", [True, False])
def test_beit_attends_as_timm_does(batch: int, trainable: bool) -> None:
    plain, lean = twins(BeitAttention(WIDTH, HEADS, qkv_bias=True))
    assert isinstance(lean, LeanBeitAttention)
    tokens = torch.randn(batch, TOKENS, WIDTH, dtype=torch.float64)
    bias = torch.randn(HEADS, TOKENS, TOKENS, dtype=torch.float64).requires_grad_(trainable)
    before = bias.detach().clone()
    found = gradients(lean, tokens, shared_rel_pos_bias=bias)
    torch.testing.assert_close(found, gradients(plain, tokens, shared_rel_pos_bias=bias))
    assert torch.equal(bias, before), "the bias is no scratch memory"


def test_beit_without_a_bias_or_with_one_an_image() -> None:
    plain, lean = twins(BeitAttention(WIDTH, HEADS))
    tokens = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(lean(tokens), plain(tokens))
    bias = torch.randn(2, HEADS, TOKENS, TOKENS, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        gradients(lean, tokens, shared_rel_pos_bias=bias), gradients(plain, tokens, shared_rel_pos_bias=bias)
    )


def test_other_kinds_stay_as_they_are() -> None:
    normed = Attention(WIDTH, HEADS, qk_norm=True, norm_layer=nn.LayerNorm)
    windowed = BeitAttention(WIDTH, HEADS, window_size=(2, 3))
    lean_attention_(nn.ModuleList([normed, windowed]))
    assert type(normed) is Attention
    assert type(windowed) is BeitAttention


def test_one_matrix_of_probabilities_is_kept() -> None:
    _, lean = twins(BeitAttention(WIDTH, HEADS, qkv_bias=True))
    bias = torch.randn(HEADS, TOKENS, TOKENS, dtype=torch.float64, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        lean(torch.randn(2, TOKENS, WIDTH, dtype=torch.float64), shared_rel_pos_bias=bias)
    assert kept.count(2 * HEADS * TOKENS * TOKENS) == 1
