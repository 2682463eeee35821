"""How far a few labels go: classifiers of frozen features that are told the classes of a few images only.

Shape legend: N train images, n of them with a label, M test images, D feature dimensions, K classes, R classes ranked
best first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Doc

from unmask.evaluation.features import Features, comparable_labels
from unmask.evaluation.metrics import Score, rank_classes, score_ranking

Classifier = Literal["logistic", "simpleshot"]
Normalisation = Literal["CL2N", "L2N", "UN"]
TOLERANCE = 1e-6  # scikit-learn's 1e-4 stops so early that what is found depends on where the search began
MAX_ITERATIONS = 5000


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Which labels are given, how often they are drawn, and who learns from them."""

    shares: Annotated[tuple[float, ...], Doc("Shares of the labels, of every class alike. [SimCLR: 0.01 and 0.1]")] = (
        0.01,
        0.1,
    )
    shots: Annotated[tuple[int, ...], Doc("Numbers of labelled images of every class. [MSN: 1, 2 and 5]")] = (1, 2, 5)
    seeds: Annotated[int, Doc("Draws of the labels; two or more give an interval.")] = 5
    classifiers: Annotated[
        tuple[Classifier, ...],
        Doc("logistic: logistic regression. simpleshot: the nearest class mean. [Wang et al. 2019]"),
    ] = ("logistic", "simpleshot")
    normalisation: Annotated[
        Normalisation,
        Doc("Features of both: CL2N centred and of length 1, L2N of length 1, UN as they are. [SimpleShot's names]"),
    ] = "CL2N"
    cs: Annotated[
        tuple[float, ...],
        Doc("Inverse strengths of the L2 penalty that are tried, in scikit-learn's scale (larger: weaker)."),
    ] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    default_c: Annotated[
        float,
        Doc(
            "The strength where a class has one label only and none can be held out; far below it, rare classes vanish."
        ),
    ] = 10.0
    folds: Annotated[
        int, Doc("Folds of the cross-validation that chooses the strength; at most the images of the rarest class.")
    ] = 5

    def __post_init__(self) -> None:
        if not self.shares and not self.shots:
            raise ValueError("few-shot evaluation needs a share of the labels or a number of shots")
        if any(not 0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares of labels must be above 0 and at most 1, got {self.shares}")
        if any(shots < 1 for shots in self.shots) or self.seeds < 1:
            raise ValueError(
                f"few-shot evaluation needs at least one image a class and one seed, got {self.shots} and {self.seeds}"
            )
        if not self.classifiers:
            raise ValueError("few-shot evaluation needs a classifier: logistic or simpleshot")
        if not self.cs or min(*self.cs, self.default_c) <= 0:
            raise ValueError(f"the strengths C must all be above 0, got {self.cs} and {self.default_c}")
        if self.folds < 2:
            raise ValueError(f"cross-validation needs at least two folds, got {self.folds}")


@dataclass(frozen=True)
class Spread:
    """The mean of a figure over draws of the labels, and the 95 % Student-t interval of that mean, in percent.

    The interval says how far the choice of labelled images moves the mean, and nothing about another test set. None
    with one draw.
    """

    mean: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Mean and interval of one percentage a draw. The interval is cut to what is possible, 0 to 100."""
        mean = fmean(values)
        if len(values) < 2:
            return cls(mean, None)
        half = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return cls(mean, (max(0.0, mean - half), min(100.0, mean + half)))

    def as_dict(self) -> dict[str, float | list[float] | None]:
        """Plain values for JSON."""
        return {"mean": self.mean, "interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True, kw_only=True)
class FewShotResult:
    """What one classifier made of one budget of labels: a score for every draw. Without scores, `reason` says why.

    `budget` is a share ("1 %") or a number of images of every class ("5-shot"), `labels` how many labels a draw has.
    `cs` are the strengths C that logistic regression used, one a draw; SimpleShot has none.
    """

    budget: str
    classifier: Classifier
    labels: int
    scores: tuple[Score, ...]
    cs: tuple[float, ...] = ()
    reason: str = ""

    @property
    def top1(self) -> Spread | None:
        """Top-1 accuracy over the draws."""
        return Spread.of([score.top1 for score in self.scores]) if self.scores else None

    @property
    def mean_class(self) -> Spread | None:
        """Mean accuracy of the classes over the draws."""
        return Spread.of([score.mean_class for score in self.scores]) if self.scores else None

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "budget": self.budget,
            "classifier": self.classifier,
            "labels": self.labels,
            "top1": None if self.top1 is None else self.top1.as_dict(),
            "mean_class": None if self.mean_class is None else self.mean_class.as_dict(),
            "scores": [score.as_dict() for score in self.scores],
            "cs": list(self.cs),
            "reason": self.reason,
        }


def label_share(labels_N: Int64[Tensor, " N"], share: float, seed: int) -> Int64[Tensor, " n"]:
    """Positions, in ascending order, of the images that keep their label when a share of every class does.

    A class of c images keeps share x c labels, rounded to the nearest (a half goes up), but at least one. Every class
    is rounded for itself, so the whole may miss share x N by up to half an image a class. In return a smaller share
    is a part of any larger one with the same seed, and so is `n_shot`; with largest remainders a class could lose a
    label when the share grows. The choice depends on the seed and on the labels in their order, on nothing else.
    Raises ValueError for a share that is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of labels must be above 0 and at most 1, got {share}")
    place_N, size_N = _places(labels_N, seed)
    kept_N = (share * size_N.double() + 0.5).long().clamp(min=1)
    return torch.nonzero(place_N < kept_N)[:, 0]


def n_shot(labels_N: Int64[Tensor, " N"], n: int, seed: int) -> Int64[Tensor, " n"]:
    """Positions, in ascending order, of n images of every class.

    With the same seed fewer shots are a part of more. Raises ValueError where a class has fewer than n images.
    """
    if n < 1:
        raise ValueError(f"at least one image of every class is needed, got {n}")
    place_N, size_N = _places(labels_N, seed)
    smallest = int(size_N.min())
    if smallest < n:
        raise ValueError(f"{n} images of every class are asked for, but the smallest class has {smallest}")
    return torch.nonzero(place_N < n)[:, 0]


def _places(labels_N: Int64[Tensor, " N"], seed: int) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
    """For every image its place (from 0) in a random order of its class, and how many images the class has."""
    _, class_N, size_K = torch.unique(labels_N, return_inverse=True, return_counts=True)
    shuffled_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(seed))
    by_class_N = shuffled_N[class_N[shuffled_N].argsort(stable=True)]
    start_K = size_K.cumsum(0) - size_K
    place_N = torch.empty_like(class_N)
    place_N[by_class_N] = torch.arange(len(labels_N)) - start_K[class_N[by_class_N]]
    return place_N, size_K[class_N]


def subset(features: Features, positions_n: Int64[Tensor, " n"]) -> Features:
    """The features at these positions, in this order, with their labels."""
    return replace(
        features,
        x_ND=features.x_ND[positions_n],
        labels_N=None if features.labels_N is None else features.labels_N[positions_n],
        indices_N=features.indices_N[positions_n],
    )


def few_shot(train: Features, test: Features, config: FewShotConfig, seed: int) -> tuple[FewShotResult, ...]:
    """Scores on `test` of classifiers that know the classes of a few train images: a result a budget and classifier.

    Draw i takes the labels by seed + i, so budgets are nested within a draw and both classifiers see the same labels.
    The mean that centres features is that of all train images: it needs no label. A budget that the data cannot give
    has no scores but a reason. Raises ValueError for features that cannot be compared (see `comparable_labels`) and
    when no budget can be given.
    """
    comparable_labels(train, test)
    assert train.labels_N is not None
    centre_D = train.x_ND.double().mean(dim=0)
    budgets: list[tuple[str, Callable[[int], Tensor]]] = [
        *((f"{100 * share:g} %", partial(label_share, train.labels_N, share)) for share in config.shares),
        *((f"{shots}-shot", partial(n_shot, train.labels_N, shots)) for shots in config.shots),
    ]
    results = []
    for name, draw in budgets:
        try:
            draws = [subset(train, draw(seed + number)) for number in range(config.seeds)]
        except ValueError as error:
            draws, reason = [], str(error)
        else:
            reason = ""
        for classifier in config.classifiers:
            scores, cs = [], []
            for number, few in enumerate(draws):
                if classifier == "simpleshot":
                    scores.append(simpleshot(few, test, centre_D, config.normalisation))
                else:
                    score, c = logistic(few, test, centre_D, config, seed + number)
                    scores.append(score)
                    cs.append(c)
            results.append(
                FewShotResult(
                    budget=name,
                    classifier=classifier,
                    labels=len(draws[0].x_ND) if draws else 0,
                    scores=tuple(scores),
                    cs=tuple(cs),
                    reason=reason,
                )
            )
    if not any(result.scores for result in results):
        raise ValueError(f"no budget of labels can be given: {results[0].reason}")
    return tuple(results)


def simpleshot(few: Features, test: Features, centre_D: Float[Tensor, " D"], normalisation: Normalisation) -> Score:
    """Score of SimpleShot: the class whose mean of normalised features is nearest (Wang et al. 2019, section 3).

    Means are not brought to length 1 again, as in the authors' code. There `centre_D` is the mean of base classes,
    which do not exist here. Raises ValueError for features that cannot be compared (see `comparable_labels`).
    """
    labels_N, test_labels_M, class_count = comparable_labels(few, test)
    x_ND = normalised(few.x_ND, centre_D, normalisation)
    mean_KD = torch.zeros(class_count, x_ND.shape[1], dtype=x_ND.dtype).index_add_(0, labels_N, x_ND)
    mean_KD /= labels_N.bincount()[:, None]
    test_MD = normalised(test.x_ND, centre_D, normalisation)
    # The squared distance, without the square of the feature, which is the same for all classes.
    nearness_MK = 2 * test_MD @ mean_KD.T - mean_KD.square().sum(dim=1)
    return score_ranking(rank_classes(nearness_MK), test_labels_M, class_count=class_count)


def logistic(
    few: Features, test: Features, centre_D: Float[Tensor, " D"], config: FewShotConfig, seed: int
) -> tuple[Score, float]:
    """Score of multinomial logistic regression with an L2 penalty, and the strength C it was fitted with.

    C is the one with the highest accuracy in stratified cross-validation among the few labelled images, folds drawn by
    `seed`; the lowest loss decides among equals. With a class of one image nothing can be held out of it, and C is
    `config.default_c`. Raises ValueError for features that cannot be compared (see `comparable_labels`).
    """
    labels_N, test_labels_M, class_count = comparable_labels(few, test)
    x = normalised(few.x_ND, centre_D, config.normalisation).numpy()
    test_x = normalised(test.x_ND, centre_D, config.normalisation).numpy()
    if x.shape[1] > x.shape[0]:
        # The solution lies in the span of the few images: fewer dimensions, the same classifier.
        basis, _ = np.linalg.qr(x.T)
        x, test_x = x @ basis, test_x @ basis
    labels = labels_N.numpy()
    folds = min(config.folds, int(np.bincount(labels).min()))
    c = _choose_c(x, labels, config.cs, folds, seed) if folds > 1 else config.default_c
    probabilities_MK = torch.from_numpy(_fitted(x, labels, c).predict_proba(test_x))
    return score_ranking(rank_classes(probabilities_MK), test_labels_M, class_count=class_count), c


def normalised(
    x_ND: Float[Tensor, "N D"], centre_D: Float[Tensor, " D"], normalisation: Normalisation
) -> Float[Tensor, "N D"]:
    """Features in float64: CL2N less `centre_D` and then of length 1, L2N of length 1, UN as they are."""
    x_ND = x_ND.double()
    if normalisation == "UN":
        return x_ND
    return F.normalize(x_ND - centre_D if normalisation == "CL2N" else x_ND, dim=1)


def _choose_c(x: np.ndarray, labels: np.ndarray, cs: tuple[float, ...], folds: int, seed: int) -> float:
    """The strength with most right answers on held-out folds, the least loss among equals."""
    right, loss = dict.fromkeys(cs, 0), dict.fromkeys(cs, 0.0)
    for kept, held in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, labels):
        for c in cs:
            log_probabilities = _fitted(x[kept], labels[kept], c).predict_log_proba(x[held])
            right[c] += int((log_probabilities.argmax(axis=1) == labels[held]).sum())
            loss[c] -= float(log_probabilities[np.arange(len(held)), labels[held]].sum())
    return max(cs, key=lambda c: (right[c], -loss[c]))


def _fitted(x: np.ndarray, labels: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=TOLERANCE, max_iter=MAX_ITERATIONS).fit(x, labels)
