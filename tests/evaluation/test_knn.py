"""Weighted kNN agrees with a plain loop and with scikit-learn, and behaves at its edges."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from unmask.evaluation import knn as knn_module
from unmask.evaluation.features import Features
from unmask.evaluation.knn import KnnConfig, knn, neighbours


def _features(n: int, d: int, classes: int, seed: int) -> Features:
    """Random features around a random centre for each class; every class occurs."""
    centres_KD = torch.randn(classes, d, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=generator)])
    x_ND = centres_KD[labels_N] + 1.5 * torch.randn(n, d, generator=generator)
    return Features(x_ND=x_ND, labels_N=labels_N, indices_N=torch.arange(n))


def _loop(train: Features, test: Features, k: int, temperature: float) -> tuple[float, float]:
    """Top-1 and top-5 accuracy by a loop over the test images, in plain Python and float64."""
    assert train.labels_N is not None
    assert test.labels_N is not None
    x = train.x_ND.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    top1 = top5 = 0
    for query, label in zip(test.x_ND.double().numpy(), test.labels_N.tolist(), strict=True):
        similarities = x @ (query / np.linalg.norm(query))
        votes: dict[int, float] = defaultdict(float)
        for neighbour in np.argsort(-similarities)[:k]:
            votes[int(train.labels_N[neighbour])] += math.exp(similarities[neighbour] / temperature)
        ranked = sorted(votes, key=lambda c: -votes[c])
        top1 += ranked[0] == label
        top5 += label in ranked[:5]
    return 100 * top1 / len(test.x_ND), 100 * top5 / len(test.x_ND)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(6, 60),
    st.integers(2, 8),
    st.integers(6, 9),
    st.integers(1, 30),
    st.floats(0.05, 2),
    st.integers(0, 99),
)
def test_agrees_with_a_plain_loop(n: int, d: int, classes: int, k: int, temperature: float, seed: int) -> None:
    train, test = _features(n + classes, d, classes, seed + 1), _features(40, d, classes, seed + 1000)
    score = knn(train, test, KnnConfig(k=k, temperature=temperature))
    top1, top5 = _loop(train, test, k, temperature)
    assert score.top1 == pytest.approx(top1)
    assert score.top5 == pytest.approx(top5)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_agrees_with_scikit_learn(k: int) -> None:
    train, test = _features(200, 6, 4, 1), _features(150, 6, 4, 2)
    assert train.labels_N is not None
    assert test.labels_N is not None
    classifier = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
    )
    classifier.fit(train.x_ND.numpy(), train.labels_N.numpy())
    reference = 100 * classifier.score(test.x_ND.numpy(), test.labels_N.numpy())
    score = knn(train, test, KnnConfig(k=k))
    assert score.top1 == pytest.approx(reference)
    assert score.top5 is None
    assert score.n == 150


def test_more_neighbours_than_train_images_are_all_train_images() -> None:
    train, test = _features(12, 4, 3, 1), _features(30, 4, 3, 2)
    assert knn(train, test, KnnConfig(k=1000)) == knn(train, test, KnnConfig(k=12))


def test_chunks_do_not_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = _features(50, 4, 7, 1), _features(33, 4, 7, 2)
    whole_score, whole = knn(train, test, KnnConfig()), neighbours(train.x_ND, test.x_ND, 5)
    monkeypatch.setattr(knn_module, "SIMILARITIES_AT_ONCE", 250)
    monkeypatch.setattr(knn_module, "VOTES_AT_ONCE", 30)
    assert knn(train, test, KnnConfig()) == whole_score
    indices_Mk, similarities_Mk = neighbours(train.x_ND, test.x_ND, 5)
    assert torch.equal(indices_Mk, whole[0])
    torch.testing.assert_close(similarities_Mk, whole[1])


def test_the_length_of_features_does_not_matter() -> None:
    train, test = _features(60, 5, 3, 1), _features(40, 5, 3, 2)
    long = Features(x_ND=1000 * test.x_ND, labels_N=test.labels_N, indices_N=test.indices_N)
    assert knn(train, long, KnnConfig()) == knn(train, test, KnnConfig())


def test_neighbours_find_themselves_first() -> None:
    x_ND = _features(30, 6, 3, 1).x_ND
    indices_Mk, similarities_Mk = neighbours(x_ND, x_ND, 4)
    assert indices_Mk[:, 0].tolist() == list(range(30))
    torch.testing.assert_close(similarities_Mk[:, 0], torch.ones(30))
    assert (similarities_Mk.diff(dim=1) <= 0).all()


def test_separated_classes_are_all_told_apart_even_at_a_tiny_temperature() -> None:
    labels_N = torch.arange(40) % 4
    features = Features(x_ND=torch.eye(4)[labels_N], labels_N=labels_N, indices_N=torch.arange(40))
    score = knn(features, features, KnnConfig(k=5, temperature=1e-4))
    assert score.top1 == score.mean_class == 100


def test_a_class_without_a_vote_is_not_right_by_chance() -> None:
    labels_N = torch.arange(8)
    train = Features(x_ND=torch.eye(8), labels_N=labels_N, indices_N=labels_N)
    test = Features(x_ND=torch.eye(8).roll(1, dims=0), labels_N=labels_N, indices_N=labels_N)
    assert knn(train, test, KnnConfig(k=1)).top5 == 0


def test_random_labels_get_chance() -> None:
    generator = torch.Generator().manual_seed(5)
    train, test = (
        Features(
            x_ND=_features(400, 8, 4, seed).x_ND,
            labels_N=torch.randint(4, (400,), generator=generator),
            indices_N=torch.arange(400),
        )
        for seed in (1, 2)
    )
    assert 18 < knn(train, test, KnnConfig()).top1 < 32


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^kNN needs at least one neighbour, got k = 0$"):
        KnnConfig(k=0)
    with pytest.raises(ValueError, match=r"^the temperature of kNN must be above 0, got 0.0$"):
        KnnConfig(temperature=0.0)
