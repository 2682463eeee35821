"""Accuracies and intervals agree with the known libraries, and intervals hold what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from unmask.evaluation.metrics import (
    bootstrap_interval,
    mean_class_accuracy,
    rank_classes,
    score_ranking,
    top_k_accuracy,
    wilson_interval,
)


@st.composite
def classified(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores without ties and labels in which every class occurs."""
    classes = draw(st.integers(2, 9))
    n = draw(st.integers(classes, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores_NK = torch.rand(n, classes, generator=generator, dtype=torch.float64)
    extra = torch.randint(classes, (n - classes,), generator=generator)
    return scores_NK, torch.cat([torch.arange(classes), extra])


@settings(max_examples=60, deadline=None)
@given(classified(), st.integers(1, 5))
def test_top_k_accuracy_agrees_with_scikit_learn_and_torchmetrics(
    data: tuple[torch.Tensor, torch.Tensor], k: int
) -> None:
    scores_NK, labels_N = data
    classes = scores_NK.shape[1]
    k = min(k, classes)
    ours = top_k_accuracy(rank_classes(scores_NK), labels_N, k)
    theirs = multiclass_accuracy(scores_NK, labels_N, num_classes=classes, average="micro", top_k=k)
    assert ours == pytest.approx(100 * theirs.item(), abs=1e-4)
    if classes > 2 and k < classes:
        reference = top_k_accuracy_score(labels_N, scores_NK.numpy(), k=k, labels=np.arange(classes))
        assert ours == pytest.approx(100 * reference)


@settings(max_examples=60, deadline=None)
@given(classified())
def test_mean_class_accuracy_agrees_with_torchmetrics_when_every_class_is_tested(
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    scores_NK, labels_N = data
    theirs = multiclass_accuracy(scores_NK, labels_N, num_classes=scores_NK.shape[1], average="macro")
    assert mean_class_accuracy(scores_NK.argmax(dim=1), labels_N) == pytest.approx(100 * theirs.item(), abs=1e-4)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
def test_mean_class_accuracy_ignores_classes_without_test_images_as_scikit_learn_does(
    pairs: list[tuple[int, int]],
) -> None:
    predicted_N, labels_N = torch.tensor(pairs).T
    ours = mean_class_accuracy(predicted_N, labels_N)
    assert ours == pytest.approx(100 * balanced_accuracy_score(labels_N, predicted_N))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_agrees_with_scipy(n: int, share: float, confidence: float) -> None:
    hits = round(share * n)
    reference = binomtest(hits, n).proportion_ci(confidence_level=confidence, method="wilson")
    low, high = wilson_interval(hits, n, confidence)
    assert low == pytest.approx(100 * reference.low, abs=1e-9)
    assert high == pytest.approx(100 * reference.high, abs=1e-9)
    assert 0 <= low <= 100 * hits / n + 1e-9
    assert 100 * hits / n - 1e-9 <= high <= 100


def test_wilson_interval_holds_the_truth_at_the_stated_rate() -> None:
    truth, n, trials = 0.7, 200, 2000
    hits_T = np.random.default_rng(0).binomial(n, truth, size=trials)
    inside = [low <= 100 * truth <= high for low, high in (wilson_interval(int(hits), n) for hits in hits_T)]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_bootstrap_interval_holds_the_truth_at_about_the_stated_rate() -> None:
    recalls_K = np.array([0.9, 0.6, 0.3])
    shares_K = np.array([0.6, 0.3, 0.1])
    rng = np.random.default_rng(0)
    inside = []
    for trial in range(400):
        labels_N = rng.choice(3, size=300, p=shares_K)
        right_N = rng.random(300) < recalls_K[labels_N]
        predicted_N = torch.from_numpy(np.where(right_N, labels_N, (labels_N + 1) % 3))
        low, high = bootstrap_interval(predicted_N, torch.from_numpy(labels_N), seed=trial, resamples=300)
        inside.append(low <= 100 * recalls_K.mean() <= high)
    assert 0.90 <= np.mean(inside) <= 0.98


def test_bootstrap_agrees_with_resampling_the_images_one_by_one() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=150)
    predicted = np.where(rng.random(150) < 0.5, labels, rng.integers(4, size=150))
    means = []
    for _ in range(2000):
        rows = rng.integers(150, size=150)
        means.append(100 * balanced_accuracy_score(labels[rows], predicted[rows]))
    low, high = bootstrap_interval(torch.from_numpy(predicted), torch.from_numpy(labels), resamples=4000)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=1)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=1)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    predicted_N, labels_N = torch.arange(90) % 4, torch.arange(90) % 3
    assert bootstrap_interval(predicted_N, labels_N, seed=3) == bootstrap_interval(predicted_N, labels_N, seed=3)
    assert bootstrap_interval(predicted_N, labels_N, seed=3) != bootstrap_interval(predicted_N, labels_N, seed=4)


def test_ties_go_to_the_lower_class() -> None:
    assert rank_classes(torch.tensor([[0.0, 1.0, 0.0, 1.0]])).tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize(("classes", "has_top5"), [(5, False), (6, True)])
def test_top5_needs_six_classes(classes: int, has_top5: bool) -> None:
    scores_NK = torch.eye(classes).roll(1, dims=1)
    score = score_ranking(rank_classes(scores_NK), torch.arange(classes), class_count=classes)
    assert (score.top5 is not None) is has_top5
    assert score.top1 == 0


def test_score_as_dict_survives_json() -> None:
    score = score_ranking(torch.tensor([[0, 1], [1, 0], [1, 0]]), torch.tensor([0, 1, 0]), class_count=2)
    restored = json.loads(json.dumps(score.as_dict()))
    assert restored == score.as_dict()
    assert restored["top1"] == pytest.approx(200 / 3)
    assert restored["top5"] is None
    assert restored["mean_class"] == pytest.approx(75)
    assert restored["n"] == 3
    assert restored["interval"][0] < restored["top1"] < restored["interval"][1]
