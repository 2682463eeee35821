"""What features tell without labels: how many dimensions they use, and whether they have collapsed.

Shape legend: N images, D feature dimensions.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def rankme(x_ND: Float[Tensor, "N D"]) -> float:
    """Effective rank: exp of the entropy of the singular values, taken as shares of their sum.

    From 1 (all features on one line through the origin) to min(N, D) (all directions alike). RankMe (Garrido
    et al. 2023, equation 1) after Roy and Vetterli (2007); features are not centred, so a large common mean
    lowers it. 0 for features that are all zero. Raises ValueError where features are not finite or there are
    none.
    """
    _check(x_ND)
    # Singular values over many orders of magnitude: float32 would bury the small ones in rounding.
    values = torch.linalg.svdvals(x_ND.double())
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def feature_std(x_ND: Float[Tensor, "N D"]) -> float:
    """Standard deviation of L2-normalised features in each dimension, averaged, times sqrt(D).

    0 when all images have one feature (collapse), about 1 when features point everywhere alike (SimSiam, Chen
    and He 2021, figure 2, times sqrt(D) so that it does not depend on the width). Raises ValueError where
    features are not finite or there are none.
    """
    _check(x_ND)
    unit_ND = F.normalize(x_ND.double(), dim=1)
    return float(unit_ND.std(dim=0, correction=0).mean()) * math.sqrt(x_ND.shape[1])


def _check(x_ND: Float[Tensor, "N D"]) -> None:
    if x_ND.numel() == 0:
        raise ValueError("there are no features to measure")
    if not torch.isfinite(x_ND).all():
        raise ValueError("features hold NaN or infinite values, so their rank and spread mean nothing")
