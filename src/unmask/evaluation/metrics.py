"""Accuracies of a classifier on a test set, with the uncertainty that a finite test set leaves.

Shape legend: N test images, K classes, R classes ranked best first.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

RANKS = 5
RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """How well the classes of `n` test images were told apart; every accuracy and interval in percent.

    `top1` is the share of images whose best class is right; `top5` that of images whose class is among the
    best five, None with fewer than six classes. `mean_class` weighs every class of the test set alike.
    `interval` is the 95 % Wilson interval of `top1`, `mean_class_interval` the 95 % bootstrap interval of
    `mean_class`: both for drawing another test set of this size, not for training again.
    """

    top1: float
    top5: float | None
    mean_class: float
    interval: tuple[float, float]
    mean_class_interval: tuple[float, float]
    n: int

    def as_dict(self) -> dict[str, float | int | list[float] | None]:
        """The score as JSON takes it: plain numbers, intervals as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def gap_noise(first: Score, second: Score) -> float:
    """Half the 95 % interval of the difference of two top-1 accuracies, in points, as if on independent test sets.

    Scores on the same images are usually treated so here: that makes the noise too wide, never too narrow.
    """
    variance = sum(score.top1 * (100 - score.top1) / score.n for score in (first, second))
    return 1.96 * math.sqrt(variance)


def rank_classes(scores_NK: Float[Tensor, "N K"], ranks: int = RANKS) -> Int64[Tensor, "N R"]:
    """The classes with the highest scores, best first; R = min(ranks, K). A tie goes to the lower class."""
    return scores_NK.sort(dim=1, descending=True, stable=True).indices[:, :ranks]


def top_k_accuracy(ranked_NR: Int64[Tensor, "N R"], labels_N: Int64[Tensor, " N"], k: int) -> float:
    """Percentage of images whose label is among the first `k` ranked classes; -1 there is no class."""
    hits = int((ranked_NR[:, :k] == labels_N[:, None]).any(dim=1).sum())
    return 100 * hits / len(labels_N)


def mean_class_accuracy(predicted_N: Int64[Tensor, " N"], labels_N: Int64[Tensor, " N"]) -> float:
    """Mean over the classes present in `labels_N` of the percentage of their images predicted right.

    scikit-learn's balanced accuracy. torchmetrics' macro accuracy also counts, as 0, a class that is
    predicted but has no test image, which would punish a test set for what it does not hold.
    """
    hits_K, counts_K = _class_counts(predicted_N, labels_N)
    return float(np.mean(100 * hits_K / counts_K))


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share hits / n, in percent (1927, no continuity correction)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 100 / (1 + z * z / n)
    # Rounding may leave the ends of the possible range by one part in 1e16.
    return max(0.0, scale * (centre - half)), min(100.0, scale * (centre + half))


def bootstrap_interval(
    predicted_N: Int64[Tensor, " N"],
    labels_N: Int64[Tensor, " N"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean_class_accuracy`, in percent, from `resamples` seeded resamples.

    An image counts only through its class and whether it was right, so drawing N images anew is drawing the
    counts of these 2K cells from a multinomial: the same distribution, without ever touching N images.
    Classes that a resample misses are left out of its mean. Like every percentile bootstrap it has no width
    where all are right (or wrong).
    """
    hits_K, counts_K = _class_counts(predicted_N, labels_N)
    n = int(counts_K.sum())
    cells_2K = np.concatenate([hits_K, counts_K - hits_K]) / n
    drawn_R2K = np.random.default_rng(seed).multinomial(n, cells_2K, size=resamples)
    right_RK, wrong_RK = np.split(drawn_R2K, 2, axis=1)
    total_RK = right_RK + wrong_RK
    recall_RK = right_RK / np.maximum(total_RK, 1)
    means_R = 100 * recall_RK.sum(axis=1) / (total_RK > 0).sum(axis=1)
    low, high = np.quantile(means_R, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def score_ranking(
    ranked_NR: Int64[Tensor, "N R"], labels_N: Int64[Tensor, " N"], *, class_count: int, seed: int = 0
) -> Score:
    """The Score of ranked classes (see `rank_classes`) where `class_count` could be chosen from.

    `seed` draws the bootstrap's resamples.
    """
    predicted_N = ranked_NR[:, 0]
    n = len(labels_N)
    return Score(
        top1=top_k_accuracy(ranked_NR, labels_N, 1),
        top5=top_k_accuracy(ranked_NR, labels_N, RANKS) if class_count > RANKS else None,
        mean_class=mean_class_accuracy(predicted_N, labels_N),
        interval=wilson_interval(int((predicted_N == labels_N).sum()), n),
        mean_class_interval=bootstrap_interval(predicted_N, labels_N, seed=seed),
        n=n,
    )


def _class_counts(predicted_N: Int64[Tensor, " N"], labels_N: Int64[Tensor, " N"]) -> tuple[np.ndarray, np.ndarray]:
    """For every class of `labels_N`: how many of its images are right, and how many there are."""
    labels = labels_N.numpy()
    _, positions, counts_K = np.unique(labels, return_inverse=True, return_counts=True)
    right_N = predicted_N.numpy() == labels
    return np.bincount(positions, weights=right_N, minlength=len(counts_K)), counts_K
