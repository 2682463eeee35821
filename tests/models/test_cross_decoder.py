"""The decoder with cross-attention against a plain loop, and who sees whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.models.cross_decoder import CrossAttention, CrossBlock, CrossDecoder, CrossDecoderConfig, SelfAttention

# 3 heads do not divide a width of 16: each is 5 wide.
CONFIG = CrossDecoderConfig(width=16, depth=2, heads=3, mlp_ratio=2.0)


def _decoder(prefix: int = 1) -> CrossDecoder:
    generator = torch.Generator().manual_seed(0)
    decoder = CrossDecoder(CONFIG, encoder_width=12, prefix=prefix).double()
    with torch.no_grad():
        for value in decoder.parameters():
            value.add_(torch.randn(value.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return decoder


def _inputs(prefix: int = 1, patches: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask_BN = torch.tensor([[True, False, True, False, False, True], [False, True, True, True, False, False]])
    visible, memory = torch.randn(2, 2, prefix + 3, 12, generator=generator, dtype=torch.float64)
    position = torch.randn(1, patches, 16, generator=generator, dtype=torch.float64)
    return visible, memory, mask_BN, position


@torch.no_grad()
def test_cross_attention_is_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = CrossAttention(16, 12, 3).double()
    torch.nn.init.normal_(attention.v_bias, generator=generator)
    tokens_QD = torch.randn(4, 16, generator=generator, dtype=torch.float64)
    memory_LW = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    key_weight, value_weight = attention.kv.weight.chunk(2)
    rows = []
    for token_D in tokens_QD:
        found = []
        for head in range(3):
            part = slice(5 * head, 5 * head + 5)
            query = attention.q(token_D)[part]
            logits = torch.stack([query @ (key_weight @ memory)[part] for memory in memory_LW]) / 5**0.5
            values = torch.stack([(value_weight @ memory + attention.v_bias)[part] for memory in memory_LW])
            found.append(logits.softmax(0) @ values)
        rows.append(attention.proj(torch.cat(found)))
    torch.testing.assert_close(attention(tokens_QD[None], memory_LW[None])[0], torch.stack(rows))


@torch.no_grad()
def test_self_attention_is_cross_attention_to_oneself() -> None:
    """Keys and values of the tokens themselves; a bias of all keys would change nothing."""
    generator = torch.Generator().manual_seed(0)
    attention, cross = SelfAttention(16, 3).double(), CrossAttention(16, 16, 3).double()
    for bias in (attention.q_bias, attention.v_bias):
        torch.nn.init.normal_(bias, generator=generator)
    cross.load_state_dict(
        {
            "q.weight": attention.qkv.weight[:15],
            "q.bias": attention.q_bias,
            "kv.weight": attention.qkv.weight[15:],
            "v_bias": attention.v_bias,
            "proj.weight": attention.proj.weight,
            "proj.bias": attention.proj.bias,
        }
    )
    tokens = torch.randn(2, 4, 16, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(attention(tokens), cross(tokens, tokens))


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_visible_tokens_keep_their_places_and_hidden_ones_get_a_position(prefix: int) -> None:
    decoder = _decoder(prefix)
    visible, memory, mask_BN, position = _inputs(prefix)
    embedded = decoder.embed(visible)
    rows = []
    for sample in range(2):
        row, seen = [*embedded[sample, :prefix]], prefix
        for patch in range(6):
            if mask_BN[sample, patch]:
                row.append(decoder.mask_token[0, 0] + position[0, patch])
            else:
                row.append(embedded[sample, seen])
                seen += 1
        rows.append(torch.stack(row))
    tokens = torch.stack(rows)
    for block in decoder.blocks:
        tokens = block(tokens, memory)
    expected = decoder.norm(tokens)[:, prefix:]
    torch.testing.assert_close(decoder(visible, memory, mask_BN, position), expected)


@torch.no_grad()
def test_a_block_is_three_shortcuts() -> None:
    block = _decoder().blocks[0]
    assert isinstance(block, CrossBlock)
    _, memory, _, _ = _inputs()
    tokens = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    first = tokens + block.attn(block.norm_self(tokens))
    second = first + block.cross(block.norm_query(first), block.norm_memory(memory))
    torch.testing.assert_close(block(tokens, memory), second + block.mlp(block.norm_mlp(second)))


@torch.no_grad()
def test_the_order_of_the_memory_changes_nothing() -> None:
    decoder = _decoder()
    visible, memory, mask_BN, position = _inputs()
    once = decoder(visible, memory, mask_BN, position)
    torch.testing.assert_close(decoder(visible, memory.flip(1), mask_BN, position), once)
    assert not torch.allclose(decoder(visible, memory + 1e-3 * memory**2, mask_BN, position), once)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 0}, "decoder width must be at least 1, got 0"),
        ({"depth": 0}, "decoder depth must be at least 1, got 0"),
        ({"heads": 0}, "decoder heads must be at least 1, got 0"),
        ({"width": 4, "heads": 5}, "a decoder of width 4 cannot have 5 heads"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        CrossDecoderConfig(**changes)
