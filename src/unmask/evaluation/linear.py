"""A linear classifier on cached features, its learning rate chosen on images held out of the train set.

Shape legend: N train images, B images of a batch, D feature dimensions, K classes, G learning rates, E
epochs, J decisions an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Doc

from unmask.evaluation.features import Features, comparable_labels
from unmask.evaluation.metrics import Score, rank_classes, score_ranking
from unmask.schedule import Schedule

NORM_EPS = 1e-6  # of the batch norm before MAE's linear head
SCORED_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """The quick linear probe: SGD with momentum and a cosine schedule on features computed once."""

    epochs: Annotated[int, Doc("Passes over the cached train features.")] = 50
    batch_size: Annotated[int, Doc("Features of one SGD step; all of them where there are fewer.")] = 256
    lrs: Annotated[
        tuple[float, ...],
        Doc("Peak learning rates tried in one pass. [a grid as in DINOv2's linear evaluation]"),
    ] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    momentum: Annotated[float, Doc("SGD's momentum.")] = 0.9
    held_out: Annotated[float, Doc("Share of the train set on which the learning rate is chosen.")] = 0.1

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"a linear probe needs at least one epoch and one image a batch, "
                f"got {self.epochs} and {self.batch_size}"
            )
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"the learning rates to try must all be above 0, got {self.lrs}")
        if not 0 < self.held_out <= 0.5:
            raise ValueError(f"held_out must be above 0 and at most 0.5, got {self.held_out}")


@dataclass(frozen=True)
class ProbeEpoch:
    """One epoch of training: mean cross-entropy and share of right decisions in percent of the batches trained on."""

    epoch: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class LinearResult:
    """Score on the test set, the peak learning rate it was reached with, and the training that led to it.

    `sweep` pairs every learning rate tried with its accuracy in percent on the held-out train images; empty
    when the protocol fixes the learning rate.
    """

    score: Score
    lr: float
    curve: tuple[ProbeEpoch, ...]
    sweep: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Objective:
    """What heads are trained for, given logits [B, G, K] and the images' targets.

    `loss` is the loss of every image under every head [B, G]. `right` says which decisions are right [B, G, J]: one an
    image where it has one class, one a class where it has several.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    right: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Heads:
    """G linear classifiers trained side by side on features normalised by `norm`, and their curves."""

    norm: nn.BatchNorm1d
    weight_GKD: Float[Tensor, "G K D"]
    bias_GK: Float[Tensor, "G K"]
    loss_EG: Float[Tensor, "E G"]
    accuracy_EG: Float[Tensor, "E G"]

    @torch.no_grad()
    def __call__(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B G K"]:
        """Logits of every classifier, on the classifiers' device."""
        return _logits(self.norm(x_BD.to(self.weight_GKD.device)), self.weight_GKD, self.bias_GK)

    def curve(self, head: int) -> tuple[ProbeEpoch, ...]:
        """The training of one classifier, epoch by epoch."""
        history = zip(self.loss_EG[:, head].tolist(), self.accuracy_EG[:, head].tolist(), strict=True)
        return tuple(ProbeEpoch(epoch, loss, accuracy) for epoch, (loss, accuracy) in enumerate(history))


@dataclass(frozen=True)
class LinearFit:
    """A linear classifier of cached features, the only one of `heads`; `lr` and `sweep` as in `LinearResult`."""

    heads: Heads
    lr: float
    sweep: tuple[tuple[float, float], ...]


def quick_linear(
    train: Features,
    test: Features,
    config: LinearConfig,
    seed: int,
    *,
    device: torch.device | str = "cpu",
) -> LinearResult:
    """Linear accuracy of cached features: `fit_linear` on the train set, scored on the test set.

    The test set has no part in the choice of the rate. Raises ValueError for features that cannot be compared (see
    `comparable_labels`).
    """
    labels_N, test_labels_M, class_count = comparable_labels(train, test)
    fit = fit_linear(train.x_ND, labels_N, class_count, config, seed, device=device)
    ranked_MR = torch.cat([rank_classes(fit.heads(x_BD)[:, 0].cpu()) for x_BD in test.x_ND.split(SCORED_AT_ONCE)])
    return LinearResult(
        score=score_ranking(ranked_MR, test_labels_M, class_count=class_count),
        lr=fit.lr,
        curve=fit.heads.curve(0),
        sweep=fit.sweep,
    )


def fit_linear(
    x_ND: Float[Tensor, "N D"],
    labels_N: Int64[Tensor, " N"],
    class_count: int,
    config: LinearConfig,
    seed: int,
    *,
    device: torch.device | str = "cpu",
) -> LinearFit:
    """A linear classifier of classes 0 ... `class_count` - 1: choose a rate inside the train set, then refit on all.

    The rate with the highest accuracy on the held-out train images wins, the lowest loss among equals. The winner is
    then trained anew on the whole train set. The classifier lives on `device`. Raises ValueError for fewer than two
    images.
    """
    held_N = held_out_mask(labels_N, config.held_out, seed).to(device)
    x_ND, labels_N = x_ND.to(device), labels_N.to(device)
    tried = train_heads(x_ND[~held_N], labels_N[~held_N], class_count, config.lrs, config, seed)
    accuracies, losses = _evaluate(tried, x_ND[held_N], labels_N[held_N])
    best = max(range(len(config.lrs)), key=lambda head: (accuracies[head], -losses[head]))
    lr = config.lrs[best]
    final = train_heads(x_ND, labels_N, class_count, (lr,), config, seed)
    return LinearFit(final, lr, tuple(zip(config.lrs, accuracies, strict=True)))


def held_out_mask(labels_N: Int64[Tensor, " N"], share: float, seed: int) -> Bool[Tensor, " N"]:
    """True for about `share` of the images, at least one, spread over the classes; fixed by the seed.

    Images are shuffled, ordered by class, and every (1 / share)-th is taken, so each class gives its share up
    to one image. Raises ValueError for fewer than two images.
    """
    N = len(labels_N)
    if N < 2:
        raise ValueError("a linear probe needs at least two train images: one to train on, one to choose its rate on")
    shuffled_N = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    by_class_N = shuffled_N[labels_N[shuffled_N].argsort(stable=True)]
    count = max(1, round(N * share))
    # From the middle of each stretch: a class of one image is then rarely the one that is taken.
    places = ((torch.arange(count) + 0.5) * N / count).long()
    held_N = torch.zeros(N, dtype=torch.bool)
    held_N[by_class_N[places]] = True
    return held_N


def train_heads(
    x_ND: Float[Tensor, "N D"],
    targets_N: Int64[Tensor, " N"] | Float[Tensor, "N K"],
    class_count: int,
    lrs: tuple[float, ...],
    config: LinearConfig,
    seed: int,
    objective: Objective | None = None,
) -> Heads:
    """One linear classifier a learning rate, trained in one pass: one matrix product serves all.

    Without an objective, `targets_N` are classes and the classifiers are trained by softmax and cross-entropy.

    MAE normalises with the batch's statistics because its features come from new crops at every step. Cached
    features have one mean and one variance, known exactly; batch norm with these as its running statistics is
    the same map without the noise of the batch, at any batch size. Weights start at zero: the problem is
    convex, and a head is then the same in every grid.
    """
    objective = objective or Objective(loss=_cross_entropy, right=_right_class)
    N, D = x_ND.shape
    G = len(lrs)
    norm = fitted_norm(x_ND)
    weight_GKD = torch.zeros(G, class_count, D, device=x_ND.device, dtype=x_ND.dtype, requires_grad=True)
    bias_GK = torch.zeros(G, class_count, device=x_ND.device, dtype=x_ND.dtype, requires_grad=True)
    lr_G = torch.tensor(lrs, device=x_ND.device, dtype=x_ND.dtype)
    # A rate per head by scaling its loss: without weight decay, SGD with momentum on lr x loss at rate 1 is
    # SGD on the loss at rate lr.
    optimizer = torch.optim.SGD([weight_GKD, bias_GK], lr=1.0, momentum=config.momentum)
    cosine = Schedule(kind="cosine", start=1.0, end=0.0)
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(config.batch_size, N)
    total_steps = config.epochs * math.ceil(N / batch_size)
    step = 0
    losses, accuracies = [], []
    for _ in range(config.epochs):
        loss_G = torch.zeros_like(lr_G)
        right_G = torch.zeros(G, device=x_ND.device, dtype=torch.int64)
        for rows_B in torch.randperm(N, generator=generator).to(x_ND.device).split(batch_size):
            targets_B = targets_N[rows_B]
            logits_BGK = _logits(norm(x_ND[rows_B]), weight_GKD, bias_GK)
            loss_BG = objective.loss(logits_BGK, targets_B)
            optimizer.param_groups[0]["lr"] = cosine.at(step / total_steps)
            optimizer.zero_grad(set_to_none=True)
            (lr_G * loss_BG.mean(dim=0)).sum().backward()
            optimizer.step()
            step += 1
            loss_G += loss_BG.detach().sum(dim=0)
            right_BGJ = objective.right(logits_BGK.detach(), targets_B)
            right_G += right_BGJ.sum(dim=(0, 2))
        losses.append(loss_G.cpu() / N)
        accuracies.append(100 * right_G.cpu().double() / (N * right_BGJ.shape[2]))
    return Heads(
        norm=norm,
        weight_GKD=weight_GKD.detach(),
        bias_GK=bias_GK.detach(),
        loss_EG=torch.stack(losses),
        accuracy_EG=torch.stack(accuracies),
    )


def fitted_norm(x_ND: Float[Tensor, "N D"]) -> nn.BatchNorm1d:
    """Batch norm without affine, in eval mode, with the mean and (biased) variance of `x_ND`."""
    norm = nn.BatchNorm1d(x_ND.shape[1], eps=NORM_EPS, affine=False, device=x_ND.device, dtype=x_ND.dtype).eval()
    variance_D, mean_D = torch.var_mean(x_ND, dim=0, correction=0)
    norm.load_state_dict({"running_mean": mean_D, "running_var": variance_D, "num_batches_tracked": torch.tensor(1)})
    return norm


def _logits(
    x_BD: Float[Tensor, "B D"], weight_GKD: Float[Tensor, "G K D"], bias_GK: Float[Tensor, "G K"]
) -> Float[Tensor, "B G K"]:
    G, K = bias_GK.shape
    return F.linear(x_BD, weight_GKD.flatten(0, 1), bias_GK.flatten()).view(-1, G, K)


def _cross_entropy(logits_BGK: Float[Tensor, "B G K"], labels_B: Int64[Tensor, " B"]) -> Float[Tensor, "B G"]:
    """Cross-entropy of every image under every head."""
    B, G, _ = logits_BGK.shape
    labels_BG = labels_B[:, None].expand(B, G)
    return F.cross_entropy(logits_BGK.flatten(0, 1), labels_BG.flatten(), reduction="none").view(B, G)


def _right_class(logits_BGK: Float[Tensor, "B G K"], labels_B: Int64[Tensor, " B"]) -> Bool[Tensor, "B G 1"]:
    """Whether the best class of every image under every head is its own."""
    return (logits_BGK.argmax(dim=2) == labels_B[:, None])[..., None]


def _evaluate(
    heads: Heads, x_ND: Float[Tensor, "N D"], labels_N: Int64[Tensor, " N"]
) -> tuple[list[float], list[float]]:
    """Accuracy in percent and mean cross-entropy of every head."""
    right_G = torch.zeros(len(heads.bias_GK), device=x_ND.device, dtype=torch.int64)
    loss_G = torch.zeros(len(heads.bias_GK), device=x_ND.device)
    for x_BD, labels_B in zip(x_ND.split(SCORED_AT_ONCE), labels_N.split(SCORED_AT_ONCE), strict=True):
        logits_BGK = heads(x_BD)
        right_G += (logits_BGK.argmax(dim=2) == labels_B[:, None]).sum(dim=0)
        loss_G += _cross_entropy(logits_BGK, labels_B).sum(dim=0)
    # A head that diverged to NaN must not win a tie.
    loss_G = loss_G.nan_to_num(nan=math.inf, posinf=math.inf)
    return (100 * right_G.cpu().double() / len(x_ND)).tolist(), (loss_G / len(x_ND)).tolist()
