"""What a loss does not show: is the encoder collapsing, and do two views of one image still look alike to it?

Shape legend: B images, D feature dimensions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.evaluation.unlabelled import feature_std, rankme
from unmask.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Health:
    """Figures of an encoder's mean-pooled features on a fixed probe of images, each in two views.

    feature_std: deviation of L2-normalised features x sqrt(D): 1 for isotropic features, 0 when all are alike.
    effective_rank: RankMe, how many directions the features use. positive_similarity, negative_similarity: mean cosine
    between two views of one image, and between different images.
    """

    feature_std: float
    effective_rank: float
    positive_similarity: float
    negative_similarity: float

    def as_dict(self) -> dict[str, float]:
        """Plain values for the log."""
        return asdict(self)


def measure(first_BD: Float[Tensor, "B D"], second_BD: Float[Tensor, "B D"]) -> Health:
    """Health from features of two views of the same B images (B at least 2)."""
    first, second = F.normalize(first_BD, dim=1), F.normalize(second_BD, dim=1)
    similarity_BB = first @ second.T
    own = similarity_BB.diagonal()
    others = similarity_BB.masked_select(~torch.eye(len(first), dtype=torch.bool))
    return Health(
        feature_std=feature_std(first_BD),
        effective_rank=rankme(first_BD),
        positive_similarity=float(own.mean()),
        negative_similarity=float(others.mean()),
    )


@torch.no_grad()
def probe(encoder: Encoder, first_BCHW: Tensor, second_BCHW: Tensor) -> Health:
    """Health of an encoder on two normalised views of the same images. The encoder's mode is left as it was."""
    training = encoder.training
    encoder.eval()
    features = [encoder.pool(encoder(images)).float().cpu() for images in (first_BCHW, second_BCHW)]
    encoder.train(training)
    return measure(*features)


def diagnose(now: Health, start: Health) -> list[str]:
    """Sentences about what is wrong, and what to try; empty when nothing is."""
    warnings = []
    if now.feature_std < 0.05 and now.feature_std < start.feature_std / 2:
        warnings.append(
            f"Features of different images are nearly the same (deviation {now.feature_std:.3f} of 1): the encoder is "
            "collapsing. Lower --lr, lengthen the warm-up, or check that the target's momentum is near 1."
        )
    if now.effective_rank < 3 and now.effective_rank < start.effective_rank / 2:
        warnings.append(
            f"Features use only {now.effective_rank:.1f} directions: most of the encoder's width is idle. "
            "Train longer, enlarge the batch, or lower --lr."
        )
    gap = now.positive_similarity - now.negative_similarity
    if gap < 0.01:
        warnings.append(
            f"Two views of one image are no more alike (cosine {now.positive_similarity:.3f}) than two images "
            f"({now.negative_similarity:.3f}): features do not tell images apart. Look at the pictures for blank or "
            "repeated images, and try weaker colour perturbation."
        )
    return warnings
