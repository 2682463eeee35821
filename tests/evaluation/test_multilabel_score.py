"""Scores of several classes an image agree with the known libraries; the probe is as good as a linear one can be."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from unmask.evaluation import multilabel
from unmask.evaluation.linear import LinearConfig, fitted_norm
from unmask.evaluation.multilabel import multilabel_linear, score_multilabel

QUICK = LinearConfig(epochs=15, batch_size=32, lrs=(1e-6, 1e-2, 3e-1))


@st.composite
def found(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, with ties, and targets of which at least one is 1."""
    n, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    steps = draw(st.sampled_from([3, 10, 10**6]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    share = draw(st.sampled_from([0.05, 0.4, 0.9]))
    targets_NK = (torch.rand(n, classes, generator=generator) < share).float()
    targets_NK[0, 0] = 1
    return torch.randint(steps + 1, (n, classes), generator=generator) / steps, targets_NK


@settings(max_examples=100, deadline=None)
@given(found())
def test_average_precision_agrees_with_scikit_learn_and_torchmetrics(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    probabilities_NK, targets_NK = data
    score = score_multilabel(probabilities_NK, targets_NK, resamples=20)
    present = [k for k in range(targets_NK.shape[1]) if targets_NK[:, k].any()]
    reference = {k: 100 * average_precision_score(targets_NK[:, k], probabilities_NK[:, k]) for k in present}
    assert [k for k, ap in enumerate(score.ap) if ap is not None] == present
    assert {k: score.ap[k] for k in present} == pytest.approx(reference)
    assert score.mean_ap == pytest.approx(np.mean(list(reference.values())))
    assert score.n == len(targets_NK)
    if len(present) > 1:
        theirs = multilabel_average_precision(
            probabilities_NK[:, present], targets_NK[:, present].long(), num_labels=len(present)
        )
        assert score.mean_ap == pytest.approx(100 * theirs.item(), rel=1e-4)


@settings(max_examples=100, deadline=None)
@given(found())
def test_f1_agrees_with_scikit_learn_and_torchmetrics(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    probabilities_NK, targets_NK = data
    score = score_multilabel(probabilities_NK, targets_NK, resamples=20)
    chosen_NK = (probabilities_NK > 0.5).numpy()
    present = targets_NK.any(dim=0).numpy()
    micro = f1_score(targets_NK.numpy(), chosen_NK, average="micro", zero_division=0)
    assert score.micro_f1 == pytest.approx(100 * micro)
    macro = np.mean([f1_score(targets_NK[:, k], chosen_NK[:, k], zero_division=0) for k in np.flatnonzero(present)])
    assert score.macro_f1 == pytest.approx(100 * macro)
    if present.all() and len(present) > 1:
        for average, ours in (("micro", score.micro_f1), ("macro", score.macro_f1)):
            theirs = multilabel_f1_score(
                probabilities_NK, targets_NK.long(), num_labels=len(present), average=average, threshold=0.5
            )
            assert ours == pytest.approx(100 * theirs.item(), abs=1e-3)


def test_perfect_and_constant_answers() -> None:
    targets_NK = torch.tensor([[1.0, 0], [1, 1], [0, 0], [0, 1]])
    perfect = score_multilabel(targets_NK, targets_NK)
    assert (perfect.mean_ap, perfect.micro_f1, perfect.macro_f1) == (100, 100, 100)
    assert perfect.interval == (100, 100)
    constant = score_multilabel(torch.full((4, 2), 0.3), targets_NK)
    # Nothing ranks the images, so precision is the share of images that have the class; nothing is above 0.5.
    assert constant.ap == (50, 50)
    assert (constant.micro_f1, constant.macro_f1) == (0, 0)


def _predicted(n: int, seed: int, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets_NK = (torch.rand(n, classes, generator=generator) < torch.linspace(0.05, 0.5, classes)).float()
    logits_NK = 1.5 * targets_NK + torch.randn(n, classes, generator=generator)
    return torch.sigmoid(logits_NK), targets_NK


def test_the_interval_is_that_of_drawing_images_one_by_one() -> None:
    probabilities_NK, targets_NK = _predicted(120, 0)
    rng = np.random.default_rng(1)
    means = []
    for _ in range(600):
        rows = rng.integers(120, size=120)
        drawn = targets_NK[rows].numpy()
        has = drawn.any(axis=0)
        means.append(100 * average_precision_score(drawn[:, has], probabilities_NK[rows].numpy()[:, has]))
    score = score_multilabel(probabilities_NK, targets_NK, resamples=3000)
    assert score.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1.2)
    assert score.interval[0] < score.mean_ap < score.interval[1]


def test_the_interval_holds_the_truth_at_about_the_stated_rate() -> None:
    truth = score_multilabel(*_predicted(100_000, 10**6), resamples=1).mean_ap
    intervals = [score_multilabel(*_predicted(400, seed), resamples=200).interval for seed in range(200)]
    assert 0.88 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99


def test_the_bootstrap_is_a_function_of_its_seed_and_not_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _predicted(50, 0)
    whole = score_multilabel(*data, seed=3).interval
    assert score_multilabel(*data, seed=4).interval != whole
    monkeypatch.setattr(multilabel, "WEIGHTS_AT_ONCE", 350)
    assert score_multilabel(*data, seed=3).interval == whole


def test_resamples_without_any_class_are_left_out() -> None:
    targets_NK = torch.zeros(4, 2)
    targets_NK[0, 0] = 1
    score = score_multilabel(torch.tensor([[0.9, 0.1]] + 3 * [[0.2, 0.3]]), targets_NK)
    assert score.ap == (100, None)
    assert score.interval == (100, 100)


def test_a_score_survives_json() -> None:
    score = score_multilabel(torch.tensor([[0.9, 0.1], [0.6, 0.3]]), torch.tensor([[1.0, 0], [0, 0]]), resamples=50)
    restored = json.loads(json.dumps(score.as_dict()))
    assert restored == score.as_dict()
    assert restored["ap"] == [100, None]


def test_a_test_set_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no test image has any class, so there is nothing to find$"):
        score_multilabel(torch.rand(5, 2), torch.zeros(5, 2))


def _images(
    n: int, seed: int, *, spread: float = 1.0, classes: int = 4, d: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that are the sum of the directions of an image's classes, far from zero and of unlike scales."""
    directions_KD = 2 * torch.randn(classes, d, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    targets_NK = (torch.rand(n, classes, generator=generator) < 0.3).float()
    x_ND = targets_NK @ directions_KD + spread * torch.randn(n, d, generator=generator)
    return x_ND * torch.logspace(-2, 2, d) + 50, targets_NK


def test_separable_classes_are_all_found() -> None:
    result = multilabel_linear(*_images(300, 1, spread=0.1), *_images(200, 2, spread=0.1), QUICK, seed=0)
    assert result.score.mean_ap > 99.5
    assert result.score.micro_f1 > 98
    assert result.score.n == 200
    assert [epoch.epoch for epoch in result.curve] == list(range(15))
    assert result.curve[-1].loss < result.curve[0].loss
    assert result.curve[-1].accuracy > 98


def test_what_features_do_not_show_is_found_by_chance() -> None:
    (x_ND, targets_NK), (test_x_MD, test_targets_MK) = _images(400, 1), _images(400, 2)
    shuffled_N = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    result = multilabel_linear(x_ND, targets_NK, test_x_MD, test_targets_MK[shuffled_N], QUICK, seed=0)
    assert result.score.mean_ap == pytest.approx(100 * test_targets_MK.mean().item(), abs=8)


def test_agrees_with_a_logistic_regression_for_every_class() -> None:
    (x_ND, targets_NK), (test_x_MD, test_targets_MK) = _images(800, 1, spread=2.0), _images(800, 2, spread=2.0)
    norm = fitted_norm(x_ND)
    precisions = []
    for k in range(4):
        reference = LogisticRegression(C=1e6, max_iter=2000).fit(norm(x_ND).numpy(), targets_NK[:, k].numpy())
        probabilities_M = reference.predict_proba(norm(test_x_MD).numpy())[:, 1]
        precisions.append(100 * average_precision_score(test_targets_MK[:, k], probabilities_M))
    config = LinearConfig(epochs=40, batch_size=64, lrs=(0.03, 0.1))
    result = multilabel_linear(x_ND, targets_NK, test_x_MD, test_targets_MK, config, seed=0)
    assert min(precisions) < 80
    assert max(precisions) < 99
    assert result.score.ap == pytest.approx(precisions, abs=1)


def test_the_probe_takes_the_steps_of_sgd_on_the_summed_losses() -> None:
    x_ND, targets_NK = _images(40, 1)
    config = LinearConfig(epochs=6, batch_size=40, lrs=(0.05,))
    result = multilabel_linear(x_ND, targets_NK, x_ND, targets_NK, config, seed=0)
    layer = nn.Linear(8, 4)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    x_ND = fitted_norm(x_ND)(x_ND)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 6))
        optimizer.zero_grad()
        logits_NK = layer(x_ND)
        loss = nn.functional.binary_cross_entropy_with_logits(logits_NK, targets_NK, reduction="sum") / 40
        assert result.curve[step].loss == pytest.approx(loss.item(), rel=1e-4)
        right = ((logits_NK > 0) == (targets_NK > 0)).float().mean().item()
        assert result.curve[step].accuracy == pytest.approx(100 * right)
        loss.backward()
        optimizer.step()
    reference = score_multilabel(torch.sigmoid(layer(x_ND)).detach(), targets_NK)
    assert result.score.mean_ap == pytest.approx(reference.mean_ap, abs=0.1)


def test_the_sweep_picks_a_rate_that_is_neither_too_small_nor_diverged() -> None:
    config = LinearConfig(epochs=10, batch_size=32, lrs=(1e-8, 1e-1, 1e38))
    result = multilabel_linear(*_images(600, 1), *_images(300, 2), config, seed=0)
    assert [lr for lr, _ in result.sweep] == [1e-8, 1e-1, 1e38]
    assert result.sweep[2][1] == 0
    assert result.lr == 1e-1
    assert result.sweep[1][1] == max(precision for _, precision in result.sweep)


def test_the_test_set_has_no_part_in_the_choice() -> None:
    train, (x_MD, targets_MK) = _images(200, 1), _images(100, 2)
    honest = multilabel_linear(*train, x_MD, targets_MK, QUICK, seed=0)
    misled = multilabel_linear(*train, x_MD, 1 - targets_MK, QUICK, seed=0)
    assert (honest.lr, honest.sweep, honest.curve) == (misled.lr, misled.sweep, misled.curve)
    assert misled.score != honest.score
    assert multilabel_linear(*train, x_MD, targets_MK, QUICK, seed=0) == honest
    assert multilabel_linear(*train, x_MD, targets_MK, QUICK, seed=1).curve != honest.curve


def test_held_out_images_without_a_class_leave_the_choice_to_the_loss() -> None:
    x_ND, targets_NK = _images(60, 1)
    targets_NK[:] = 0
    targets_NK[:2] = 1
    config = LinearConfig(epochs=3, batch_size=32, lrs=(1e-3, 1e-2), held_out=0.02)
    seeds = [multilabel_linear(x_ND, targets_NK, x_ND, targets_NK, config, seed=seed) for seed in range(4)]
    unsure = [result for result in seeds if all(precision == 0 for _, precision in result.sweep)]
    assert unsure
    assert all(result.lr == 1e-2 for result in unsure)


def test_broken_features_are_refused() -> None:
    (x_ND, targets_NK), test = _images(30, 1), _images(30, 2)
    x_ND[4, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^1 of 30 images have features with NaN or infinite values"):
        multilabel_linear(x_ND, targets_NK, *test, QUICK, seed=0)
    with pytest.raises(ValueError, match=r"^a linear probe needs at least two train images"):
        multilabel_linear(*_images(1, 1), *test, QUICK, seed=0)
