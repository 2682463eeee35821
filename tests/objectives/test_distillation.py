"""Distillation objectives against numpy, where their gradients go, and what they see of other ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forked_ranks import as_ranks
from unmask.objectives.distillation import cosine_distance, unigrad


def _features(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 5), width=st.integers(1, 6), seed=st.integers(0, 1000))
def test_cosine_distance_is_the_squared_distance_on_the_sphere(batch: int, width: int, seed: int) -> None:
    prediction, target = _features(batch, width, seed=seed), _features(batch, width, seed=seed + 1)
    p, t = (values.numpy() / np.linalg.norm(values.numpy(), axis=1, keepdims=True) for values in (prediction, target))
    expected = ((p - t) ** 2).sum(axis=1).mean()
    assert cosine_distance(prediction, target).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert cosine_distance(3 * prediction, target / 7).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cosine_distance_lies_between_0_and_4_and_takes_any_shape() -> None:
    features = _features(2, 3, 5, seed=0)
    assert cosine_distance(features, features).item() == pytest.approx(0, abs=1e-12)
    assert cosine_distance(features, -features).item() == pytest.approx(4)


def _unigrad(p: np.ndarray, t: np.ndarray, weight: float) -> tuple[float, float]:
    """The formula, token by token."""
    tokens, width = p.shape
    correlation = sum(np.outer(row, row) for row in t) / tokens
    positive = sum(((a - b) ** 2).sum() for a, b in zip(p, t, strict=True)) / tokens
    negative = sum(row @ correlation @ row for row in p) / tokens
    return positive / width, weight * negative / width


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 7), width=st.integers(1, 5), weight=st.floats(0, 2), seed=st.integers(0, 1000))
def test_unigrad_is_its_formula(tokens: int, width: int, weight: float, seed: int) -> None:
    prediction, target = _features(tokens, width, seed=seed), _features(tokens, width, seed=seed + 1)
    found = [term.item() for term in unigrad(prediction, target, weight)]
    assert found == pytest.approx(_unigrad(prediction.numpy(), target.numpy(), weight), rel=1e-10, abs=1e-14)


def test_unigrads_gradient_pulls_to_the_target_and_away_from_where_targets_lie() -> None:
    """2 (p - t) / (T D), and 2 * weight * C p / (T D)."""
    prediction, target = _features(4, 3, seed=0).requires_grad_(), _features(4, 3, seed=1).requires_grad_()
    positive, negative = unigrad(prediction, target, 0.5)
    (pull,) = torch.autograd.grad(positive, prediction, retain_graph=True)
    (push,) = torch.autograd.grad(negative, prediction)
    torch.testing.assert_close(pull, (2 * (prediction - target) / 12).detach())
    torch.testing.assert_close(push, (prediction @ (target.T @ target / 4) / 12).detach())
    assert not positive.requires_grad or torch.autograd.grad(positive, target, allow_unused=True)[0] is None


@pytest.mark.parametrize(
    "objective", [cosine_distance, lambda p, t: sum(unigrad(p, t, 0.02))], ids=["cosine", "unigrad"]
)
def test_targets_take_no_gradient_and_halves_are_compared_in_float32(
    objective: Callable[[Tensor, Tensor], Tensor],
) -> None:
    prediction, target = _features(4, 3, seed=0).requires_grad_(), _features(4, 3, seed=1).requires_grad_()
    loss = objective(prediction, target)
    loss.backward()
    assert loss.dtype == torch.float64
    assert prediction.grad is not None
    assert target.grad is None
    halves = [features.detach().bfloat16() for features in (prediction, target)]
    assert objective(halves[0], halves[1]).dtype == torch.float32
    assert torch.equal(objective(halves[0], halves[1]), objective(halves[0].float(), halves[1].float()))


def _half(rank: int, folder: Path) -> None:
    """Half of the tokens on each of two ranks; the gradient of what they give together is saved."""
    prediction = _features(8, 3, seed=0)[4 * rank : 4 * rank + 4].requires_grad_()
    target = _features(8, 3, seed=1)[4 * rank : 4 * rank + 4]
    sum(unigrad(prediction, target, 0.5)).backward()
    assert prediction.grad is not None
    torch.save(prediction.grad, folder / f"{rank}.pt")


def test_two_ranks_give_the_gradients_of_one_with_all_tokens(tmp_path: Path) -> None:
    as_ranks(2, _half, tmp_path)
    prediction = _features(8, 3, seed=0).requires_grad_()
    sum(unigrad(prediction, _features(8, 3, seed=1), 0.5)).backward()
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    # Ranks average their gradients.
    torch.testing.assert_close(torch.cat(halves) / 2, prediction.grad)
