"""The conditional adapter against its own sentence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unmask.models.adapter import ConditionalAdapter


@torch.no_grad()
@pytest.mark.parametrize(("depth", "groups"), [(6, [3, 3]), (3, [3]), (2, [2]), (7, [3, 3, 1])])
def test_groups_of_blocks_are_mixed_and_added(depth: int, groups: list[int]) -> None:
    torch.manual_seed(0)
    adapter = ConditionalAdapter(4, depth=depth, group=3, hidden=8)
    for parameter in adapter.parameters():
        parameter.copy_(torch.randn_like(parameter))
    blocks = [torch.randn(2, 5, 4) for _ in range(depth)]
    before, after = adapter.norm_before, adapter.norm_after
    everything = F.layer_norm(torch.cat(blocks, dim=2), (4 * depth,), before.weight, before.bias, 1e-6)
    total, first = torch.zeros(2, 5, 4), 0
    for number, size in enumerate(groups):
        mixed = adapter.mixers[number](everything[..., 4 * first : 4 * (first + size)])
        total = total + mixed + adapter.mlps[number](mixed)
        first += size
    assert first == depth
    expected = F.layer_norm(total, (4,), after.weight, after.bias, 1e-6)
    torch.testing.assert_close(adapter(blocks), expected)
