"""InfoNCE with a queue against the authors' table of logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.objectives.contrastive import queue_infonce


def _slow(online: Tensor, target: Tensor, queue: Tensor, temperature: float) -> float:
    """One query at a time, as the paper writes it."""
    terms = []
    for query, key in zip(F.normalize(online, dim=-1), F.normalize(target, dim=-1), strict=True):
        own = math.exp(float(query @ key) / temperature)
        others = [math.exp(float(query @ column) / temperature) for column in queue.T]
        terms.append(-math.log(own / (own + sum(others))))
    return sum(terms) / len(terms)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.floats(0.07, 1.0), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_it_is_the_papers_sum_for_each_set_of_keys(
    batch: int, sets: int, length: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    online, targets, queue = draw(batch, 5), draw(sets, batch, 5), F.normalize(draw(5, length), dim=0)
    found = queue_infonce(online, targets, queue, temperature)
    expected = [_slow(online, target, queue, temperature) for target in targets]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_no_gradient_reaches_the_keys_and_chance_is_the_logarithm_of_all() -> None:
    online = torch.ones(2, 3, requires_grad=True)
    targets = torch.ones(1, 2, 3, requires_grad=True)
    loss = queue_infonce(online, targets, F.normalize(torch.ones(3, 7), dim=0), 0.2).sum()
    assert loss.item() == pytest.approx(math.log(8))
    loss.backward()
    assert targets.grad is None
    assert online.grad is not None


def test_the_sum_over_a_long_queue_is_exact_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    online, targets = torch.randn(4, 16, generator=generator), torch.randn(1, 4, 16, generator=generator)
    queue = F.normalize(torch.randn(16, 5000, generator=generator), dim=0)
    exact = queue_infonce(online, targets, queue, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = queue_infonce(online, targets, queue, 0.2)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2e-3, atol=0)


def test_extreme_logits_stay_finite() -> None:
    online = torch.tensor([[1.0, 0.0]])
    loss = queue_infonce(online, -online[None], online.T.clone(), 1e-3)
    assert loss.item() == pytest.approx(2000)
