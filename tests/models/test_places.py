"""Visible tokens and stand-ins come to lie where the mask says."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.models.places import fill_places


@given(st.integers(1, 3), st.integers(2, 9), st.data())
def test_every_place_gets_its_token(batch: int, patches: int, data: st.DataObject) -> None:
    hidden = data.draw(st.integers(0, patches))
    shared = data.draw(st.booleans())
    order_BN = torch.stack([torch.tensor(data.draw(st.permutations(range(patches)))) for _ in range(batch)])
    mask_BN = order_BN < hidden
    visible = torch.randn(batch, patches - hidden, 4, dtype=torch.float64, requires_grad=True)
    stand_ins = torch.randn(1 if shared else patches, 4, dtype=torch.float64, requires_grad=True)
    filled = fill_places(visible, stand_ins, mask_BN)
    expected = stand_ins.expand(patches, 4).expand(batch, patches, 4).clone()
    expected[~mask_BN] = visible.flatten(0, 1)
    torch.testing.assert_close(filled, expected)
    weights = torch.randn_like(filled)
    leaves = (visible, stand_ins)
    found = torch.autograd.grad((filled * weights).sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), leaves))
