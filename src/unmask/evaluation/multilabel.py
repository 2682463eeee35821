"""Images of several classes each: average precision and F1, and a linear probe with a yes or no for every class.

Shape legend: N train images, M test images, D feature dimensions, K classes, B images of a batch, G learning rates, J
decisions an image (here one a class), R resamples, P images of one class.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unmask.data.multilabel import rarest_class
from unmask.evaluation.features import check_finite
from unmask.evaluation.linear import (
    SCORED_AT_ONCE,
    Heads,
    LinearConfig,
    Objective,
    ProbeEpoch,
    held_out_mask,
    train_heads,
)
from unmask.evaluation.metrics import RESAMPLES

THRESHOLD = 0.5
WEIGHTS_AT_ONCE = 2**22


@dataclass(frozen=True)
class MultiLabelScore:
    """How well the classes of `n` test images were found; everything in percent.

    `mean_ap` is the mean over the classes of `ap`, the average precision of each: how far the images of a class stand
    before the others when they are ranked by its probability. `micro_f1` counts all decisions (above 0.5: yes)
    together, `macro_f1` is the mean of the F1 of the classes. A class without a test image has no average precision
    (None) and is in neither mean. `interval` is the 95 % bootstrap interval of `mean_ap` for drawing another test set
    of this size, not for training again.
    """

    mean_ap: float
    ap: tuple[float | None, ...]
    micro_f1: float
    macro_f1: float
    interval: tuple[float, float]
    n: int

    def as_dict(self) -> dict[str, float | int | list[float] | list[float | None]]:
        """The score as JSON takes it: plain numbers and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class MultiLabelResult:
    """Score on the test set, the peak learning rate it was reached with, and the training that led to it.

    In `curve` the loss is that of an image, summed over its K decisions, and the accuracy the percentage of right
    decisions. `sweep` pairs every learning rate tried with its mean average precision, in percent, on the held-out
    train images.
    """

    score: MultiLabelScore
    lr: float
    curve: tuple[ProbeEpoch, ...]
    sweep: tuple[tuple[float, float], ...]


def score_multilabel(
    probabilities_MK: Float[Tensor, "M K"],
    targets_MK: Float[Tensor, "M K"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> MultiLabelScore:
    """The score of each image's probability of each class; targets are 1 where the image has the class, else 0.

    Images of equal probability are ranked as one, as in scikit-learn. The interval is a percentile bootstrap over
    images, drawn by `seed`. Raises ValueError when no test image has any class.
    """
    assert torch.isfinite(probabilities_MK).all()
    probabilities, targets = probabilities_MK.double().numpy(), targets_MK.numpy() > 0
    if not targets.any():
        raise ValueError("no test image has any class, so there is nothing to find")
    tested = targets.any(axis=0)
    ap_K = _average_precisions(probabilities, targets, np.ones((len(targets), 1), dtype=np.int32))[0]
    chosen = probabilities > THRESHOLD
    hits_K, sizes_K = (chosen & targets).sum(axis=0), chosen.sum(axis=0) + targets.sum(axis=0)
    return MultiLabelScore(
        mean_ap=100 * float(np.nanmean(ap_K)),
        ap=tuple(None if math.isnan(ap) else 100 * ap for ap in ap_K.tolist()),
        micro_f1=100 * float(2 * hits_K.sum() / sizes_K.sum()),
        macro_f1=100 * float(np.mean(2 * hits_K[tested] / sizes_K[tested])),
        interval=_bootstrap(probabilities, targets, seed, resamples),
        n=len(targets),
    )


def multilabel_linear(
    train_x_ND: Float[Tensor, "N D"],
    train_targets_NK: Float[Tensor, "N K"],
    test_x_MD: Float[Tensor, "M D"],
    test_targets_MK: Float[Tensor, "M K"],
    config: LinearConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> MultiLabelResult:
    """Score of a linear classifier of cached features with a sigmoid for every class.

    As in `quick_linear` the test set has no part in the choice of the learning rate: the one with the highest mean
    average precision on held-out train images wins, the lowest loss among equals, and is trained anew on the whole
    train set. Losses of the classes are summed, so a class learns as fast as it would alone, however many there are.
    Raises ValueError for features with NaN, fewer than two train images and a test set without classes.
    """
    assert train_x_ND.shape[1] == test_x_MD.shape[1]
    assert train_targets_NK.shape[1] == test_targets_MK.shape[1]
    check_finite(train_x_ND)
    check_finite(test_x_MD)
    K = train_targets_NK.shape[1]
    groups_N = torch.from_numpy(rarest_class(train_targets_NK.numpy()))
    held_N = held_out_mask(groups_N, config.held_out, seed)
    x_ND, targets_NK, held_on_device_N = train_x_ND.to(device), train_targets_NK.to(device), held_N.to(device)
    objective = Objective(loss=_binary_cross_entropy, right=_right_decisions)
    tried = train_heads(x_ND[~held_on_device_N], targets_NK[~held_on_device_N], K, config.lrs, config, seed, objective)
    precisions, losses = _evaluate(tried, train_x_ND[held_N], train_targets_NK[held_N])
    best = max(range(len(config.lrs)), key=lambda head: (precisions[head], -losses[head]))
    lr = config.lrs[best]
    final = train_heads(x_ND, targets_NK, K, (lr,), config, seed, objective)
    return MultiLabelResult(
        score=score_multilabel(torch.sigmoid(_logits(final, test_x_MD)[:, 0]), test_targets_MK),
        lr=lr,
        curve=final.curve(0),
        sweep=tuple(zip(config.lrs, precisions, strict=True)),
    )


def _logits(heads: Heads, x_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N G K"]:
    return torch.cat([heads(x_BD).cpu() for x_BD in x_ND.split(SCORED_AT_ONCE)])


def _binary_cross_entropy(logits_BGK: Float[Tensor, "B G K"], targets_BK: Float[Tensor, "B K"]) -> Float[Tensor, "B G"]:
    """Cross-entropy of all decisions about every image under every head."""
    targets_BGK = targets_BK[:, None].expand_as(logits_BGK)
    return F.binary_cross_entropy_with_logits(logits_BGK, targets_BGK, reduction="none").sum(dim=2)


def _right_decisions(logits_BGK: Float[Tensor, "B G K"], targets_BK: Float[Tensor, "B K"]) -> Bool[Tensor, "B G J"]:
    return (logits_BGK > 0) == (targets_BK[:, None] > 0)


def _evaluate(
    heads: Heads, x_ND: Float[Tensor, "N D"], targets_NK: Float[Tensor, "N K"]
) -> tuple[list[float], list[float]]:
    """Mean average precision in percent and mean loss of every head; 0 and infinity where a head has diverged."""
    logits_NGK = _logits(heads, x_ND)
    losses_G = _binary_cross_entropy(logits_NGK, targets_NK).mean(dim=0).nan_to_num(nan=math.inf, posinf=math.inf)
    targets, once = targets_NK.numpy() > 0, np.ones((len(x_ND), 1), dtype=np.int32)
    precisions = []
    for logits_NK in logits_NGK.unbind(dim=1):
        usable = targets.any() and bool(torch.isfinite(logits_NK).all())
        ap_K = _average_precisions(logits_NK.double().numpy(), targets, once)[0] if usable else np.zeros(1)
        precisions.append(100 * float(np.nanmean(ap_K)))
    return precisions, losses_G.tolist()


def _average_precisions(scores_NK: np.ndarray, targets_NK: np.ndarray, weights_NR: NDArray[np.int32]) -> np.ndarray:
    """Average precision [R, K], each image counted as often as its weight says; NaN where no image has the class.

    The mean, over the images of a class, of the precision among all images that score no less (equal ones together).
    """
    R = weights_NR.shape[1]
    result_RK = np.full((R, scores_NK.shape[1]), np.nan)
    for k in np.flatnonzero(targets_NK.any(axis=0)):
        order_N = np.argsort(-scores_NK[:, k], kind="stable")
        ranked_N = -scores_NK[order_N, k]
        places_P = np.flatnonzero(targets_NK[order_N, k])
        # The last image that scores as high, among all images and among those of the class.
        ends_P = np.searchsorted(ranked_N, ranked_N[places_P], side="right") - 1
        own_ends_P = np.searchsorted(places_P, ends_P, side="right") - 1
        all_PR = weights_NR[order_N].cumsum(axis=0)[ends_P]
        weights_PR = weights_NR[order_N[places_P]]
        own_PR = weights_PR.cumsum(axis=0)
        precision_PR = own_PR[own_ends_P] / np.maximum(all_PR, 1)
        total_R = own_PR[-1]
        sums_R = (weights_PR * precision_PR).sum(axis=0)
        np.divide(sums_R, total_R, out=result_RK[:, k], where=total_R > 0)
    return result_RK


def _bootstrap(scores_NK: np.ndarray, targets_NK: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """Percentile interval of the mean average precision. Classes that a resample misses are left out of its mean."""
    generator = np.random.default_rng(seed)
    N = len(targets_NK)
    at_once = max(1, WEIGHTS_AT_ONCE // N)
    means: list[float] = []
    for start in range(0, resamples, at_once):
        drawn = [
            np.bincount(generator.integers(N, size=N), minlength=N) for _ in range(min(at_once, resamples - start))
        ]
        ap_RK = _average_precisions(scores_NK, targets_NK, np.stack(drawn, axis=1).astype(np.int32))
        found_R = (~np.isnan(ap_RK)).sum(axis=1)
        # A resample of few images may have no class at all, and then no mean.
        means += (100 * np.nansum(ap_RK, axis=1)[found_R > 0] / found_R[found_R > 0]).tolist()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
