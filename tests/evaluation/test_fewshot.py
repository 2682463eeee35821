"""Few labels are drawn fairly and nested, and the classifiers that get them agree with scikit-learn."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from unmask.evaluation.features import Features
from unmask.evaluation.fewshot import (
    FewShotConfig,
    Normalisation,
    Spread,
    few_shot,
    label_share,
    logistic,
    n_shot,
    normalised,
    simpleshot,
    subset,
)

QUICK = FewShotConfig(shares=(0.1,), shots=(1, 3), seeds=3, cs=(0.1, 10.0), folds=3)
LABELS = st.lists(st.integers(0, 6), min_size=2, max_size=200).map(torch.tensor)


def _features(n: int, seed: int, *, classes: int = 4, d: int = 6, spread: float = 1.0) -> Features:
    """Gaussian classes, far from zero, in a random order."""
    centres_KD = 1.5 * torch.randn(classes, d, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels_N = (torch.arange(n) % classes)[torch.randperm(n, generator=generator)]
    x_ND = centres_KD[labels_N] + spread * torch.randn(n, d, generator=generator) + 5
    return Features(x_ND=x_ND, labels_N=labels_N, indices_N=torch.arange(n))


def _few(features: Features, n: int, seed: int) -> Features:
    assert features.labels_N is not None
    return subset(features, n_shot(features.labels_N, n, seed))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(0.001, 1), st.integers(0, 99))
def test_a_share_is_the_same_of_every_class_and_leaves_none_out(
    labels_N: torch.Tensor, share: float, seed: int
) -> None:
    kept = label_share(labels_N, share, seed)
    assert torch.equal(kept, kept.unique())
    for label in labels_N.unique():
        size = int((labels_N == label).sum())
        assert int((labels_N[kept] == label).sum()) == max(1, math.floor(share * size + 0.5))
    assert torch.equal(kept, label_share(labels_N, share, seed))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 99))
def test_less_is_a_part_of_more_with_the_same_seed(labels_N: torch.Tensor, one: float, other: float, seed: int) -> None:
    few, many = (set(label_share(labels_N, share, seed).tolist()) for share in sorted((one, other)))
    assert few <= many
    smallest = int(labels_N.bincount()[labels_N.unique()].min())
    shots = [set(n_shot(labels_N, n, seed).tolist()) for n in range(1, smallest + 1)]
    assert all(fewer < more for fewer, more in pairwise(shots))
    assert shots[0] <= few


def test_shots_are_so_many_of_every_class() -> None:
    labels_N = torch.tensor([3, 1, 1, 3, 3, 8, 8, 1, 8, 8])
    assert labels_N[n_shot(labels_N, 3, 0)].sort().values.tolist() == [1, 1, 1, 3, 3, 3, 8, 8, 8]
    assert n_shot(labels_N, 2, 0).tolist() != n_shot(labels_N, 2, 2).tolist()


def test_every_image_is_drawn_as_often_as_its_classmates() -> None:
    labels_N = torch.tensor([0] * 3 + [1] * 7)
    counts_N = torch.zeros(10)
    for seed in range(1000):
        counts_N[n_shot(labels_N, 1, seed)] += 1
    torch.testing.assert_close(counts_N / 1000, torch.tensor([1 / 3] * 3 + [1 / 7] * 7), atol=0.04, rtol=0)


def test_the_draw_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    label_share(torch.tensor([0, 1, 0, 1]), 0.5, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_budgets_that_make_no_sense_are_refused() -> None:
    labels_N = torch.tensor([0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"^3 images of every class are asked for, but the smallest class has 2$"):
        n_shot(labels_N, 3, 0)
    with pytest.raises(ValueError, match=r"^at least one image of every class is needed, got 0$"):
        n_shot(labels_N, 0, 0)
    with pytest.raises(ValueError, match=r"^a share of labels must be above 0 and at most 1, got 1.5$"):
        label_share(labels_N, 1.5, 0)


def test_a_subset_keeps_what_belongs_together() -> None:
    features = replace(_features(20, 1), indices_N=torch.arange(20) + 100, classes=("a", "b", "c", "d"))
    some = subset(features, torch.tensor([7, 2]))
    assert features.labels_N is not None
    assert some.labels_N is not None
    assert torch.equal(some.x_ND, features.x_ND[[7, 2]])
    assert torch.equal(some.labels_N, features.labels_N[[7, 2]])
    assert some.indices_N.tolist() == [107, 102]
    assert some.classes == features.classes
    assert subset(replace(features, labels_N=None), torch.tensor([1])).labels_N is None


@pytest.mark.parametrize("normalisation", ["CL2N", "L2N", "UN"])
def test_simpleshot_is_the_nearest_centroid_of_scikit_learn(normalisation: Normalisation) -> None:
    train, test = _features(120, 1), _features(200, 2)
    few = _few(train, 4, 0)
    centre_D = train.x_ND.double().mean(dim=0)

    def prepared(features: Features) -> np.ndarray:
        x = features.x_ND.double().numpy()
        x = x - centre_D.numpy() if normalisation == "CL2N" else x
        return x if normalisation == "UN" else normalize(x)

    assert few.labels_N is not None
    assert test.labels_N is not None
    reference = NearestCentroid().fit(prepared(few), few.labels_N.numpy())
    accuracy = 100 * reference.score(prepared(test), test.labels_N.numpy())
    score = simpleshot(few, test, centre_D, normalisation)
    assert score.top1 == pytest.approx(accuracy)
    assert 40 < accuracy < 100
    np.testing.assert_allclose(normalised(test.x_ND, centre_D, normalisation).numpy(), prepared(test), atol=1e-12)


def test_the_ways_to_normalise_differ_where_features_are_far_from_zero() -> None:
    train, test = _features(120, 1), _features(400, 2)
    centre_D = train.x_ND.double().mean(dim=0)
    few = _few(train, 2, 0)
    scores = [simpleshot(few, test, centre_D, kind).top1 for kind in ("CL2N", "L2N", "UN")]
    assert len(set(scores)) == 3


def test_logistic_regression_chooses_as_a_grid_search_does() -> None:
    train, test = _features(200, 1, spread=2.5), _features(300, 2, spread=2.5)
    few = _few(train, 12, 0)
    centre_D = train.x_ND.double().mean(dim=0)
    config = FewShotConfig(cs=(0.001, 0.1, 1.0, 100.0))
    score, c = logistic(few, test, centre_D, config, seed=3)
    assert few.labels_N is not None
    assert test.labels_N is not None
    search = GridSearchCV(
        LogisticRegression(tol=1e-6, max_iter=5000),
        {"C": list(config.cs)},
        cv=StratifiedKFold(5, shuffle=True, random_state=3),
        scoring="accuracy",
    ).fit(normalised(few.x_ND, centre_D, "CL2N").numpy(), few.labels_N.numpy())
    accuracies = dict(zip(config.cs, search.cv_results_["mean_test_score"], strict=True))
    # Folds of unlike sizes weigh images differently in a mean of means: allow for one image.
    assert accuracies[c] >= max(accuracies.values()) - 1 / len(few.x_ND)
    assert min(accuracies.values()) < max(accuracies.values())
    reference = LogisticRegression(C=c, tol=1e-6, max_iter=5000)
    reference.fit(normalised(few.x_ND, centre_D, "CL2N").numpy(), few.labels_N.numpy())
    accuracy = reference.score(normalised(test.x_ND, centre_D, "CL2N").numpy(), test.labels_N.numpy())
    assert score.top1 == pytest.approx(100 * accuracy)


def test_a_class_with_one_label_leaves_nothing_to_choose_by() -> None:
    train, test = _features(80, 1), _features(80, 2)
    centre_D = train.x_ND.double().mean(dim=0)
    assert logistic(_few(train, 1, 0), test, centre_D, QUICK, seed=0)[1] == QUICK.default_c
    assert logistic(_few(train, 2, 0), test, centre_D, QUICK, seed=0)[1] in QUICK.cs


def test_two_classes_and_names_that_stand_in_another_order() -> None:
    train, test = _features(60, 1, classes=2, spread=0.2), _features(60, 2, classes=2, spread=0.2)
    assert test.labels_N is not None
    named = replace(train, classes=("a", "b"))
    swapped = replace(test, classes=("b", "a"), labels_N=1 - test.labels_N)
    for result in few_shot(named, swapped, QUICK, seed=0):
        assert result.top1 is not None
        assert result.top1.mean > 98


def test_every_budget_and_classifier_has_a_result() -> None:
    train, test = _features(120, 1), _features(200, 2)
    results = few_shot(train, test, QUICK, seed=5)
    names = [(result.budget, result.classifier) for result in results]
    assert names == [(b, c) for b in ("10 %", "1-shot", "3-shot") for c in ("logistic", "simpleshot")]
    assert [result.labels for result in results] == [12, 12, 4, 4, 12, 12]
    for result in results:
        assert len(result.scores) == QUICK.seeds
        assert len(result.cs) == (QUICK.seeds if result.classifier == "logistic" else 0)
        assert result.top1 is not None
        assert result.mean_class is not None
        assert result.top1.mean == pytest.approx(np.mean([score.top1 for score in result.scores]))
        assert result.mean_class.mean == pytest.approx(np.mean([score.mean_class for score in result.scores]))
    # Draws differ from each other, and are those of the seeds that follow the first.
    assert len({score.top1 for score in results[3].scores}) > 1
    assert few_shot(train, test, QUICK, seed=5) == results
    later = few_shot(train, test, QUICK, seed=6)
    assert later[3].scores[:2] == results[3].scores[1:]
    centre_D = train.x_ND.double().mean(dim=0)
    assert results[3].scores[1] == simpleshot(_few(train, 1, 6), test, centre_D, "CL2N")


def test_more_labels_help() -> None:
    train, test = _features(400, 1), _features(400, 2)
    config = replace(QUICK, shares=(1.0,), shots=(1, 10))
    for classifier in ("logistic", "simpleshot"):
        means = [
            result.top1.mean
            for result in few_shot(train, test, config, seed=0)
            if result.classifier == classifier and result.top1 is not None
        ]
        assert means[1] < means[2] <= means[0] + 3


def test_a_budget_beyond_the_data_says_why() -> None:
    train, test = _features(40, 1), _features(40, 2)
    results = few_shot(train, test, replace(QUICK, shots=(2, 11)), seed=0)
    assert [bool(result.scores) for result in results] == [True, True, True, True, False, False]
    assert results[-1].reason == "11 images of every class are asked for, but the smallest class has 10"
    assert results[-1].top1 is None
    assert results[-1].as_dict()["top1"] is None
    assert results[0].reason == ""
    with pytest.raises(ValueError, match=r"^no budget of labels can be given: 11 images of every class are asked for"):
        few_shot(train, test, replace(QUICK, shares=(), shots=(11,)), seed=0)


def test_results_survive_json() -> None:
    results = few_shot(_features(60, 1), _features(40, 2), QUICK, seed=0)
    for result in results:
        assert json.loads(json.dumps(result.as_dict())) == result.as_dict()
    top1 = results[0].as_dict()["top1"]
    assert isinstance(top1, dict)
    assert top1["interval"][0] <= top1["mean"] <= top1["interval"][1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-3))
def test_the_interval_is_students(values: list[float]) -> None:
    reference = ttest_1samp(values, 0).confidence_interval(0.95)
    spread = Spread.of(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.interval == pytest.approx((max(0, reference.low), min(100, reference.high)), abs=1e-6)


def test_the_interval_holds_the_truth_at_the_stated_rate() -> None:
    rng = np.random.default_rng(0)
    intervals = [Spread.of(list(rng.normal(60, 5, size=5))).interval for _ in range(2000)]
    assert 0.93 <= np.mean([low <= 60 <= high for low, high in filter(None, intervals)]) <= 0.97


def test_one_draw_has_no_interval() -> None:
    assert Spread.of([40.0]) == Spread(40.0, None)
    assert Spread.of([40.0]).as_dict() == {"mean": 40.0, "interval": None}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shares": (), "shots": ()}, r"^few-shot evaluation needs a share of the labels or a number of shots$"),
        ({"shares": (0.1, 0.0)}, r"^shares of labels must be above 0 and at most 1, got \(0.1, 0.0\)$"),
        ({"shots": (0,)}, r"^few-shot evaluation needs at least one image a class and one seed, got \(0,\) and 5$"),
        ({"seeds": 0}, r"^few-shot evaluation needs at least one image a class and one seed, got \(1, 2, 5\) and 0$"),
        ({"classifiers": ()}, r"^few-shot evaluation needs a classifier: logistic or simpleshot$"),
        ({"cs": (1.0, -1.0)}, r"^the strengths C must all be above 0, got \(1.0, -1.0\) and 10.0$"),
        ({"folds": 1}, r"^cross-validation needs at least two folds, got 1$"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, tuple[float, ...]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FewShotConfig(**changes)  # type: ignore[arg-type]


def test_features_that_cannot_be_compared_are_refused() -> None:
    train, test = _features(40, 1), _features(40, 2)
    with pytest.raises(ValueError, match=r"^the train images have no labels"):
        few_shot(replace(train, labels_N=None), test, QUICK, seed=0)
    train.x_ND[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"^1 of 40 images have features with NaN"):
        few_shot(train, test, QUICK, seed=0)
