"""Measures without labels at the ends that are known, against plain loops, and what leaves them unchanged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh
from scipy.special import hyp0f1
from scipy.stats import entropy, ortho_group

from unmask.evaluation import unlabelled
from unmask.evaluation.unlabelled import (
    alignment,
    alpha_req,
    feature_std,
    lidar,
    measure_unlabelled,
    rankme,
    uniformity,
)


def _random(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _views(n: int, v: int, d: int, seed: int = 0, *, noise: float = 0.5) -> torch.Tensor:
    """Views about a random centre for each image."""
    centres_N1D = _random(n, d, seed)[:, None]
    return centres_N1D + noise * torch.randn(n, v, d, generator=torch.Generator().manual_seed(seed + 1))


def _rotation(d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.atleast_2d(ortho_group.rvs(d, random_state=seed) if d > 1 else 1.0))


def _with_spectrum(eigenvalues: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """Features [n, D] whose covariance has exactly these eigenvalues, up to a common factor, and a mean of 3."""
    d = len(eigenvalues)
    centred_ND = _random(n, d, seed).double()
    centred_ND = centred_ND - centred_ND.mean(dim=0)
    orthonormal_ND = torch.linalg.qr(centred_ND).Q
    return orthonormal_ND * eigenvalues.sqrt() @ _rotation(d, seed) + 3


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


@pytest.mark.parametrize("measure", [rankme, feature_std, alpha_req, uniformity])
def test_features_that_mean_nothing_are_refused(measure: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(ValueError, match=r"^features hold NaN or infinite values, so their rank and spread mean"):
        measure(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"^there are no features to measure$"):
        measure(torch.zeros(0, 4))


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("d", [3, 40, 150])
def test_alpha_req_finds_the_slope_of_a_power_law(slope: float, d: int) -> None:
    x_ND = _with_spectrum(torch.arange(1, d + 1, dtype=torch.float64) ** -slope, n=200)
    assert alpha_req(x_ND) == pytest.approx(slope, abs=1e-6)
    assert alpha_req(x_ND.float()) == pytest.approx(slope, abs=1e-3)


def test_alpha_req_is_fitted_to_ranks_6_to_100_with_weights_that_fall_with_the_rank() -> None:
    generator = np.random.default_rng(0)
    ranks = np.arange(1, 151)
    eigenvalues = ranks**-1.3 * np.exp(0.3 * generator.standard_normal(150))
    eigenvalues = -np.sort(-eigenvalues)
    x_ND = _with_spectrum(torch.from_numpy(eigenvalues), n=300)
    fitted = slice(5, 100)
    # numpy's weights multiply residuals before they are squared.
    reference = np.polyfit(np.log(ranks[fitted]), np.log(eigenvalues[fitted]), 1, w=ranks[fitted] ** -0.5)[0]
    assert alpha_req(x_ND) == pytest.approx(-reference, rel=1e-6)
    changed = eigenvalues.copy()
    changed[:5] *= 7
    changed[100:] /= 7
    assert alpha_req(_with_spectrum(torch.from_numpy(changed), n=300)) == pytest.approx(-reference, rel=1e-6)


def test_alpha_req_of_an_isotropic_gaussian_is_nearly_zero() -> None:
    alpha = alpha_req(_random(40_000, 32))
    assert alpha is not None
    assert 0 <= alpha < 0.05


def test_alpha_req_does_not_fit_rounding_noise() -> None:
    """A few directions, computed in float32 about a large mean: the rest of the spectrum is only rounding."""
    x_ND = (_random(500, 4) * torch.tensor([4.0, 2.0, 1.0, 0.5])) @ _random(4, 64, 1) + 100
    values = torch.linalg.svdvals((x_ND - x_ND.mean(dim=0)).double())
    assert values[10] > 0
    slope = np.polyfit(np.log([1, 2, 3, 4]), 2 * np.log(values[:4].numpy()), 1, w=np.array([1, 2, 3, 4]) ** -0.5)[0]
    assert alpha_req(x_ND) == pytest.approx(-slope, rel=1e-3)


def test_alpha_req_of_collapsed_features_is_none() -> None:
    assert alpha_req(torch.full((50, 8), 0.1)) is None
    assert alpha_req(torch.zeros(5, 3)) is None
    assert alpha_req(torch.arange(1.0, 9.0)[:, None] * torch.ones(5)) is None
    assert alpha_req(_random(1, 5)) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 40), st.integers(2, 20), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_alpha_req_ignores_rotation_scale_and_mean(n: int, d: int, scale: float, seed: int) -> None:
    x_ND = _random(n, d, seed).double()
    moved_ND = scale * (x_ND @ _rotation(d, seed) + _random(1, d, seed + 1))
    assert alpha_req(moved_ND) == pytest.approx(alpha_req(x_ND), rel=1e-6, abs=1e-9)


def _lidar_by_loops(views: np.ndarray, delta: float) -> float:
    """The definition, by sums over images and views and a generalised eigenproblem."""
    n, v, d = views.shape
    mean = views.reshape(-1, d).mean(axis=0)
    between, within = np.zeros((d, d)), delta * np.eye(d)
    for image in views:
        own = image.mean(axis=0)
        between += np.outer(own - mean, own - mean) / n
        for view in image:
            within += np.outer(view - own, view - own) / (n * v)
    return math.exp(entropy(eigh(between, within, eigvals_only=True).clip(min=0)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 20), st.integers(2, 5), st.integers(1, 12), st.sampled_from([1e-4, 1e-2, 1.0]), st.integers(0, 99)
)
def test_lidar_is_its_definition(n: int, v: int, d: int, delta: float, seed: int) -> None:
    views_NVD = _views(n, v, d, seed).double()
    rank = lidar(views_NVD, delta)
    assert rank == pytest.approx(_lidar_by_loops(views_NVD.numpy(), delta), rel=1e-5)
    assert 1 - 1e-9 <= rank <= min(n - 1, d) + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_lidar_ignores_rotation_and_without_regularisation_any_change_of_basis(d: int, seed: int) -> None:
    views_NVD = _views(40, 4, d, seed).double()
    assert lidar(views_NVD @ _rotation(d, seed) + 7) == pytest.approx(lidar(views_NVD), rel=1e-6)
    basis_DD = _rotation(d, seed) * torch.logspace(-1, 1, d) @ _rotation(d, seed + 1)
    assert lidar(views_NVD @ basis_DD, 1e-12) == pytest.approx(lidar(views_NVD, 1e-12), rel=1e-5)


def test_lidar_counts_directions_of_images_and_not_those_of_noise() -> None:
    """Images differ in three directions, views in thirteen others, more widely: RankMe is taken in by the noise."""
    centres_ND = torch.cat([_random(3000, 3), torch.zeros(3000, 13)], dim=1)
    noise_NVD = torch.randn(3000, 10, 16, generator=torch.Generator().manual_seed(1))
    views_NVD = centres_ND[:, None] + noise_NVD * torch.tensor([0.01] * 3 + [2.0] * 13)
    assert lidar(views_NVD) == pytest.approx(3, abs=0.1)
    assert rankme(views_NVD.flatten(0, 1)) > 14


def test_lidar_of_isotropic_images_is_the_width() -> None:
    assert lidar(_views(20_000, 2, 8)) == pytest.approx(8, rel=0.01)


def test_lidar_of_collapsed_features_is_zero_or_one() -> None:
    assert lidar(torch.full((30, 4, 8), 0.1)) == 0
    assert lidar(torch.zeros(3, 2, 4)) == 0
    line_NVD = torch.arange(1.0, 31.0)[:, None, None] * torch.ones(1, 4, 8)
    assert lidar(line_NVD) == pytest.approx(1, abs=1e-6)
    with pytest.raises(AssertionError):
        lidar(line_NVD, 0.0)


def _pairs(x_ND: torch.Tensor) -> list[float]:
    unit = x_ND.double().numpy() / np.linalg.norm(x_ND.double().numpy(), axis=1, keepdims=True)
    return [float(((a - b) ** 2).sum()) for a, b in combinations(unit, 2)]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 25), st.integers(2, 6), st.floats(0.5, 3), st.integers(0, 999))
def test_uniformity_agrees_with_a_loop_over_pairs(n: int, d: int, t: float, seed: int) -> None:
    x_ND = _random(n, d, seed)
    reference = math.log(np.mean([math.exp(-t * square) for square in _pairs(x_ND)]))
    assert uniformity(x_ND, t) == pytest.approx(reference, rel=1e-9)
    lengths_N1 = torch.linspace(0.1, 10, n)[:, None]
    assert uniformity(lengths_N1 * x_ND.double() @ _rotation(d, seed), t) == pytest.approx(reference, rel=1e-6)


def test_uniformity_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = _random(33, 5)
    whole = uniformity(x_ND)
    monkeypatch.setattr(unlabelled, "COMPARED_AT_ONCE", 4)
    assert uniformity(x_ND) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("d", [2, 8, 64])
def test_uniformity_of_the_even_sphere_is_the_papers_bound(d: int) -> None:
    """Proposition 1 of Wang and Isola: log 0F1(D / 2, t^2) - 2 t."""
    assert uniformity(_random(4000, d)) == pytest.approx(math.log(hyp0f1(d / 2, 4)) - 4, abs=0.03)


def test_uniformity_of_collapse_is_zero_and_of_orthogonal_features_minus_four() -> None:
    assert uniformity(torch.ones(20, 4)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(5)) == pytest.approx(-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(2, 6), st.integers(1, 8), st.integers(0, 999))
def test_alignment_agrees_with_a_loop_over_pairs(n: int, v: int, d: int, seed: int) -> None:
    views_NVD = _views(n, v, d, seed)
    reference = np.mean([square for image in views_NVD for square in _pairs(image)])
    assert alignment(views_NVD) == pytest.approx(reference, rel=1e-9, abs=1e-12)
    assert 0 <= alignment(views_NVD) <= 4
    turned_NVD = 7 * views_NVD.double() @ _rotation(d, seed)
    assert alignment(turned_NVD) == pytest.approx(reference, rel=1e-6, abs=1e-12)


def test_alignment_at_its_ends() -> None:
    same_NVD = _random(10, 4)[:, None].repeat(1, 3, 1)
    assert alignment(same_NVD) == pytest.approx(0, abs=1e-12)
    assert alignment(torch.stack([same_NVD[:, 0], -same_NVD[:, 0]], dim=1)) == pytest.approx(4)
    assert alignment(torch.randn(2000, 2, 64, generator=torch.Generator().manual_seed(0))) == pytest.approx(2, abs=0.02)


def test_all_measures_at_once_are_each_alone() -> None:
    views_NVD = _views(30, 3, 6)
    score = measure_unlabelled(views_NVD)
    assert (score.images, score.views) == (30, 3)
    every_ND = views_NVD.reshape(90, 6)
    assert score.rankme == rankme(every_ND)
    assert score.alpha_req == alpha_req(every_ND)
    assert score.feature_std == feature_std(every_ND)
    assert score.lidar == lidar(views_NVD)
    assert score.alignment == alignment(views_NVD)
    assert score.uniformity == pytest.approx(np.mean([uniformity(views_NVD[:, view]) for view in range(3)]))
    assert json.loads(json.dumps(score.as_dict())) == score.as_dict()
    assert measure_unlabelled(views_NVD.flip(0, 1)).as_dict() == pytest.approx(score.as_dict())


def test_collapse_shows_in_every_measure_and_survives_json() -> None:
    score = measure_unlabelled(torch.ones(10, 2, 4))
    assert (score.alpha_req, score.lidar) == (None, 0)
    assert score.rankme == pytest.approx(1, abs=1e-6)
    assert (score.uniformity, score.alignment, score.feature_std) == pytest.approx((0, 0, 0), abs=1e-6)
    assert json.loads(json.dumps(score.as_dict()))["alpha_req"] is None


@pytest.mark.parametrize("measure", [lidar, alignment, measure_unlabelled])
def test_views_that_cannot_be_compared_are_refused(measure: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(ValueError, match=r"at least two of both are needed, got 1 views of 5 images$"):
        measure(torch.rand(5, 1, 3))
    with pytest.raises(
        ValueError, match=r"^views are compared with each other and so are images: .* 4 views of 1 images$"
    ):
        measure(torch.rand(1, 4, 3))
    with pytest.raises(ValueError, match=r"^features hold NaN"):
        measure(torch.full((3, 2, 2), torch.inf))
    with pytest.raises(ValueError, match=r"^there are no features to measure$"):
        measure(torch.rand(0, 2, 3))


def test_uniformity_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^uniformity compares images with each other, so it needs at least two$"):
        uniformity(torch.rand(1, 4))
