"""Weighted nearest neighbours on frozen features: the evaluation with nothing to train and nothing to tune.

Shape legend: N train images, M test images, D feature dimensions, k neighbours, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Doc

from unmask.evaluation.features import Features, comparable_labels
from unmask.evaluation.metrics import RANKS, Score, rank_classes, score_ranking

SIMILARITIES_AT_ONCE = 2**24  # 64 MB of float32
VOTES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """How neighbours vote; the defaults are those of DINO's evaluation (Caron et al. 2021)."""

    k: Annotated[int, Doc("Neighbours that vote; all train images where there are fewer. [DINO: 20]")] = 20
    temperature: Annotated[
        float, Doc("A neighbour of cosine similarity s has exp(s / temperature) votes. [DINO: 0.07]")
    ] = 0.07

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"kNN needs at least one neighbour, got k = {self.k}")
        if not self.temperature > 0:
            raise ValueError(f"the temperature of kNN must be above 0, got {self.temperature}")


def neighbours(
    train_ND: Float[Tensor, "N D"],
    query_MD: Float[Tensor, "M D"],
    k: int,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Int64[Tensor, "M k"], Float[Tensor, "M k"]]:
    """The positions of every query's nearest train features and their cosine similarities, nearest first.

    Gives min(k, N) neighbours. Similarities are computed on `device` a few queries at a time, so memory does
    not grow with M; both results are on the CPU. A query that is itself among the train features finds itself
    first.
    """
    train_DN = F.normalize(train_ND.to(device), dim=1).T
    k = min(k, len(train_ND))
    found = [
        (F.normalize(chunk_ND.to(device), dim=1) @ train_DN).topk(k, dim=1)
        for chunk_ND in query_MD.split(max(1, SIMILARITIES_AT_ONCE // len(train_ND)))
    ]
    indices_Mk = torch.cat([indices.cpu() for _, indices in found])
    return indices_Mk, torch.cat([similarities.cpu() for similarities, _ in found])


def knn(
    train: Features,
    test: Features,
    config: KnnConfig,
    *,
    device: torch.device | str = "cpu",
) -> Score:
    """Score of weighted kNN: the min(k, N) neighbours by cosine similarity vote for their own class.

    A class with no vote is never a prediction, so a class far down a short list cannot be right by chance.
    Raises ValueError for features that cannot be compared (see `comparable_labels`).
    """
    train_labels_N, test_labels_M, class_count = comparable_labels(train, test)
    indices_Mk, similarities_Mk = neighbours(train.x_ND, test.x_ND, config.k, device=device)
    rows = max(1, VOTES_AT_ONCE // class_count)
    ranked_MR = torch.cat(
        [
            _rank(train_labels_N[indices], similarities, class_count, config.temperature)
            for indices, similarities in zip(indices_Mk.split(rows), similarities_Mk.split(rows), strict=True)
        ]
    )
    return score_ranking(ranked_MR, test_labels_M, class_count=class_count)


def _rank(
    labels_Mk: Int64[Tensor, "M k"],
    similarities_Mk: Float[Tensor, "M k"],
    class_count: int,
    temperature: float,
) -> Int64[Tensor, "M R"]:
    """Classes by their votes, best first; -1 behind the last class that has any."""
    # Votes as shares of their sum rank classes alike and do not overflow at a low temperature.
    weights_Mk = torch.softmax(similarities_Mk.double() / temperature, dim=1)
    votes_MC = torch.zeros(len(labels_Mk), class_count, dtype=torch.float64)
    votes_MC.scatter_add_(1, labels_Mk, weights_Mk)
    ranked_MR = rank_classes(votes_MC, RANKS)
    return ranked_MR.where(votes_MC.gather(1, ranked_MR) > 0, -1)
