"""Effective rank and spread at the ends that are known, and what leaves them unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from unmask.evaluation.unlabelled import feature_std, rankme


def _random(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 1000))
def test_rankme_agrees_with_scipy_and_lies_between_one_and_full_rank(n: int, d: int, seed: int) -> None:
    x_ND = _random(n, d, seed)
    values = np.linalg.svd(x_ND.double().numpy(), compute_uv=False)
    rank = rankme(x_ND)
    assert rank == pytest.approx(math.exp(entropy(values)))
    assert 1 - 1e-9 <= rank <= min(n, d) + 1e-9


def test_rankme_of_orthogonal_directions_is_their_number() -> None:
    x_ND = torch.eye(6)[:, :4].repeat(3, 1)
    assert rankme(x_ND) == pytest.approx(4)
    assert rankme(100 * x_ND) == pytest.approx(4)


def test_rankme_of_one_direction_is_one_and_of_nothing_is_zero() -> None:
    assert rankme(torch.arange(1.0, 9.0)[:, None] * torch.ones(5)) == pytest.approx(1, abs=1e-6)
    assert rankme(torch.zeros(4, 3)) == 0


def test_feature_std_tells_collapse_from_spread() -> None:
    assert feature_std(torch.ones(50, 8)) == pytest.approx(0, abs=1e-7)
    assert feature_std(_random(4000, 64)) == pytest.approx(1, abs=0.02)
    shifted = feature_std(_random(500, 64) + 5)
    assert 0 < shifted < 0.5


def test_feature_std_ignores_the_length_of_features() -> None:
    x_ND = _random(40, 8)
    lengths_N1 = torch.linspace(0.1, 10, 40)[:, None]
    assert feature_std(x_ND * lengths_N1) == pytest.approx(feature_std(x_ND), rel=1e-6)


@pytest.mark.parametrize("measure", [rankme, feature_std])
def test_features_that_mean_nothing_are_refused(measure: Callable[[torch.Tensor], float]) -> None:
    with pytest.raises(ValueError, match=r"^features hold NaN or infinite values, so their rank and spread mean"):
        measure(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"^there are no features to measure$"):
        measure(torch.zeros(0, 4))
