"""The quick probe is as good as a linear classifier can be, and its rate owes the test set nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from unmask.evaluation.features import Features
from unmask.evaluation.linear import LinearConfig, fitted_norm, held_out_mask, quick_linear, train_heads

QUICK = LinearConfig(epochs=15, batch_size=32, lrs=(1e-6, 1e-3, 1e-1))


def _features(n: int, seed: int, *, spread: float = 0.3, classes: int = 3, d: int = 8) -> Features:
    """Gaussian classes around fixed centres, far from zero and of unlike scales in each dimension."""
    centres_KD = torch.randn(classes, d, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(n) % classes
    x_ND = centres_KD[labels_N] + spread * torch.randn(n, d, generator=generator)
    return Features(x_ND=x_ND * torch.logspace(-2, 2, d) + 50, labels_N=labels_N, indices_N=torch.arange(n))


def _with_random_labels(features: Features, seed: int) -> Features:
    labels_N = torch.randint(3, (len(features.x_ND),), generator=torch.Generator().manual_seed(seed))
    return Features(x_ND=features.x_ND, labels_N=labels_N, indices_N=features.indices_N)


def test_separable_classes_are_all_told_apart() -> None:
    result = quick_linear(_features(150, 1), _features(90, 2), QUICK, seed=0)
    assert result.score.top1 == result.score.mean_class == 100
    assert result.score.n == 90
    assert [epoch.epoch for epoch in result.curve] == list(range(15))
    assert result.curve[-1].loss < result.curve[0].loss
    assert result.curve[-1].accuracy == 100


def test_random_labels_get_chance() -> None:
    train, test = (_with_random_labels(_features(300, seed), seed) for seed in (1, 2))
    assert 24 < quick_linear(train, test, QUICK, seed=0).score.top1 < 42


def test_same_seed_same_result_and_no_global_state() -> None:
    train, test = _features(100, 1, spread=1.5), _features(60, 2, spread=1.5)
    torch.manual_seed(1)
    first = quick_linear(train, test, QUICK, seed=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert quick_linear(train, test, QUICK, seed=4) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert quick_linear(train, test, QUICK, seed=5).curve != first.curve


def test_agrees_with_logistic_regression_on_overlapping_classes() -> None:
    train, test = _features(600, 1, spread=1.0), _features(600, 2, spread=1.0)
    assert train.labels_N is not None
    assert test.labels_N is not None
    mean_D, std_D = train.x_ND.mean(dim=0), train.x_ND.std(dim=0)
    reference = LogisticRegression(C=1e6, max_iter=2000)
    reference.fit(((train.x_ND - mean_D) / std_D).numpy(), train.labels_N.numpy())
    accuracy = 100 * reference.score(((test.x_ND - mean_D) / std_D).numpy(), test.labels_N.numpy())
    config = LinearConfig(epochs=40, batch_size=64, lrs=(0.03, 0.1))
    assert quick_linear(train, test, config, seed=0).score.top1 == pytest.approx(accuracy, abs=1)


def _needs_training(n: int, seed: int) -> Features:
    """Two classes told apart only by a small difference between strongly correlated dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(n) % 2
    common_ND = torch.randn(n, 8, generator=generator)
    other_ND = common_ND + 0.2 * torch.randn(n, 8, generator=generator)
    common_ND[:, 0] += 0.6 * labels_N
    return Features(x_ND=torch.cat([common_ND, other_ND], dim=1), labels_N=labels_N, indices_N=torch.arange(n))


def test_the_sweep_picks_a_rate_that_is_neither_too_small_nor_too_large() -> None:
    config = LinearConfig(epochs=10, batch_size=32, lrs=(1e-6, 1e-1, 1e4))
    result = quick_linear(_needs_training(1000, 1), _needs_training(1000, 2), config, seed=0)
    assert [lr for lr, _ in result.sweep] == [1e-6, 1e-1, 1e4]
    accuracies = [accuracy for _, accuracy in result.sweep]
    assert accuracies[0] < 70
    # A huge rate may match the accuracy here (a linear classifier's scale is free), but not with a better
    # loss.
    assert max(accuracies) == accuracies[1] > 85
    assert result.lr == 1e-1
    assert result.score.top1 > 85


def test_the_test_set_has_no_part_in_the_choice() -> None:
    train, test = _features(200, 1, spread=1.2), _features(60, 2, spread=1.2)
    assert test.labels_N is not None
    wrong = Features(x_ND=test.x_ND, labels_N=(test.labels_N + 1) % 3, indices_N=test.indices_N)
    honest, misled = quick_linear(train, test, QUICK, seed=0), quick_linear(train, wrong, QUICK, seed=0)
    assert (honest.lr, honest.sweep, honest.curve) == (misled.lr, misled.sweep, misled.curve)
    assert misled.score.top1 < honest.score.top1


def test_heads_trained_together_are_the_heads_trained_alone() -> None:
    train = _features(90, 1, spread=1.0)
    assert train.labels_N is not None
    lrs = (1e-3, 1e-2, 1e-1)
    x_ND = train.x_ND.double()
    together = train_heads(x_ND, train.labels_N, 3, lrs, QUICK, seed=7)
    for head, lr in enumerate(lrs):
        alone = train_heads(x_ND, train.labels_N, 3, (lr,), QUICK, seed=7)
        torch.testing.assert_close(together.weight_GKD[head], alone.weight_GKD[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(together.bias_GK[head], alone.bias_GK[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(together.loss_EG[:, head], alone.loss_EG[:, 0])
        assert torch.equal(together.accuracy_EG[:, head], alone.accuracy_EG[:, 0])


def test_a_head_takes_the_steps_of_sgd_with_momentum_at_its_own_rate() -> None:
    train = _features(40, 1, spread=1.0)
    assert train.labels_N is not None
    config = LinearConfig(epochs=6, batch_size=40, lrs=(0.05,))
    heads = train_heads(train.x_ND, train.labels_N, 3, (10.0, 0.05), config, seed=0)
    layer = nn.Linear(8, 3)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    x_ND = fitted_norm(train.x_ND)(train.x_ND)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 6))
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x_ND), train.labels_N).backward()
        optimizer.step()
    torch.testing.assert_close(heads.weight_GKD[1], layer.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(heads.bias_GK[1], layer.bias.detach(), rtol=1e-4, atol=1e-6)


def test_a_dimension_that_never_changes_does_no_harm() -> None:
    train, test = _features(90, 1), _features(60, 2)
    train.x_ND[:, 0] = test.x_ND[:, 0] = 3.0
    assert quick_linear(train, test, QUICK, seed=0).score.top1 == 100


def test_normalised_train_features_have_mean_zero_and_variance_one() -> None:
    x_ND = _features(100, 1).x_ND.double()
    normalised_ND = fitted_norm(x_ND)(x_ND)
    torch.testing.assert_close(normalised_ND.mean(dim=0), torch.zeros(8, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        normalised_ND.std(dim=0, correction=0), torch.ones(8, dtype=torch.float64), atol=1e-2, rtol=0
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.integers(1, 10), st.sampled_from([0.05, 0.1, 0.3, 0.5]), st.integers(0, 99))
def test_held_out_images_are_the_share_of_every_class(n: int, classes: int, share: float, seed: int) -> None:
    labels_N = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    held_N = held_out_mask(labels_N, share, seed)
    assert torch.equal(held_N, held_out_mask(labels_N, share, seed))
    assert held_N.sum() == max(1, round(n * share))
    for label in range(classes):
        members_N = labels_N == label
        assert abs(int(held_N[members_N].sum()) - share * int(members_N.sum())) < 2


def test_held_out_images_follow_the_seed() -> None:
    labels_N = torch.zeros(100, dtype=torch.int64)
    assert not torch.equal(held_out_mask(labels_N, 0.1, 0), held_out_mask(labels_N, 0.1, 1))


def test_bad_settings_and_too_few_images_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^a linear probe needs at least one epoch and one image a batch, got 0 and 4$"
    ):
        LinearConfig(epochs=0, batch_size=4)
    with pytest.raises(ValueError, match=r"^the learning rates to try must all be above 0, got \(\)$"):
        LinearConfig(lrs=())
    with pytest.raises(ValueError, match=r"^held_out must be above 0 and at most 0.5, got 0.9$"):
        LinearConfig(held_out=0.9)
    with pytest.raises(ValueError, match=r"^a linear probe needs at least two train images"):
        held_out_mask(torch.tensor([0]), 0.1, 0)
    broken = _features(30, 1)
    broken.x_ND[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"^1 of 30 images have features with NaN or infinite values"):
        quick_linear(broken, _features(30, 2), QUICK, seed=0)
