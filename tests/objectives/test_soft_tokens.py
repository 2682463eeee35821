"""Soft targets against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.masking import hidden_positions
from unmask.objectives.soft_tokens import multi_choice_loss, patch_similarity


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    patches=st.integers(1, 6),
    codes=st.integers(2, 5),
    omega=st.floats(0, 1),
    temperature=st.floats(0.1, 3),
    seed=st.integers(0, 1000),
)
def test_the_loss_is_the_papers_formula(
    batch: int, patches: int, codes: int, omega: float, temperature: float, seed: int
) -> None:
    """Target by target, with numbers of hidden patches that differ."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, patches, 4, dtype=torch.float64, generator=generator)
    logits = torch.randn(batch, patches, codes, dtype=torch.float64, generator=generator)
    p = torch.randn(batch, patches, codes, dtype=torch.float64, generator=generator).softmax(dim=-1)
    mask = torch.rand(batch, patches, generator=generator) < 0.5
    mask[seed % batch, seed % patches] = True

    terms = []
    for b, j in mask.nonzero().tolist():
        cosines = [float(features[b, j] @ f / features[b, j].norm() / f.norm()) for f in features[b]]
        weights = [math.exp(cosine / temperature) for cosine in cosines]
        norm = math.log(sum(math.exp(value) for value in logits[b, j].tolist()))
        for code in range(codes):
            mixed = sum(w * float(p[b, i, code]) for i, w in enumerate(weights)) / sum(weights)
            target = (1 - omega) * float(p[b, j, code]) + omega * mixed
            terms.append(-target * (float(logits[b, j, code]) - norm))
    expected = sum(terms) / int(mask.sum())

    positions, hidden = hidden_positions(mask)
    similarity = patch_similarity(features, positions, temperature)
    gathered = logits.gather(1, positions[..., None].expand(-1, -1, codes))
    loss = multi_choice_loss(gathered, p, similarity, positions, hidden, omega)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_hidden_positions_come_first_and_are_told_apart_from_what_fills_up() -> None:
    mask_BN = torch.tensor([[False, True, False, True], [False, False, False, True]])
    positions_BM, hidden_BM = hidden_positions(mask_BN)
    assert positions_BM[0].tolist() == [1, 3]
    assert positions_BM[1, 0] == 3
    assert hidden_BM.tolist() == [[True, True], [True, False]]


def test_a_row_of_similarity_sums_to_one_and_is_largest_at_home() -> None:
    features = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[4, 0], [2, 3]])
    similarity_BMN = patch_similarity(features, positions, 1.0)
    torch.testing.assert_close(similarity_BMN.sum(dim=2), torch.ones(2, 2))
    assert torch.equal(similarity_BMN.argmax(dim=2), positions)
