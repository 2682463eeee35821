"""What features tell without labels: how many dimensions they use, whether they have collapsed, what views share.

Shape legend: N images, V views of each, M views of all images, D feature dimensions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

ALPHA_RANKS = (6, 100)
LIDAR_DELTA = 1e-4
COMPARED_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class UnlabelledScore:
    """What the features of `views` views of each of `images` images tell without labels.

    Larger is better of `rankme`, `lidar` and `feature_std`, smaller of `uniformity` and `alignment`, and `alpha_req`
    is best near 1 (None: features have fewer than two directions). When all features are one, `rankme` is 1 and the
    others are 0.
    """

    rankme: float
    alpha_req: float | None
    lidar: float
    uniformity: float
    alignment: float
    feature_std: float
    images: int
    views: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON."""
        return asdict(self)


def measure_unlabelled(views_NVD: Float[Tensor, "N V D"]) -> UnlabelledScore:
    """All the measures, from features of the same V augmented views of N images.

    For `rankme`, `alpha_req` and `feature_std` every view is an image of its own; `uniformity`, which supposes that
    images are independent, is measured among the first views, the second views and so on, and averaged. Raises
    ValueError for fewer than two views or images and for features that are not finite.
    """
    _check_views(views_NVD)
    N, V, _ = views_NVD.shape
    x_ND = views_NVD.flatten(0, 1)
    return UnlabelledScore(
        rankme=rankme(x_ND),
        alpha_req=alpha_req(x_ND),
        lidar=lidar(views_NVD),
        uniformity=sum(uniformity(view_ND) for view_ND in views_NVD.unbind(dim=1)) / V,
        alignment=alignment(views_NVD),
        feature_std=feature_std(x_ND),
        images=N,
        views=V,
    )


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


def alpha_req(x_ND: Float[Tensor, "N D"]) -> float | None:
    """alpha-ReQ: how fast the eigenvalues of the features' covariance fall, as the exponent of a power law in the rank.

    Minus the slope of log(eigenvalue) over log(rank) for ranks 6 to 100, fitted with weights 1 / rank, as in the
    authors' library (Agrawal et al. 2022; reptrix/alpha.py, after Stringer et al. 2019). 0 where all directions have
    one variance, large where a few have nearly all; the paper finds the best encoders near 1. Eigenvalues that are
    mere rounding of the given numbers do not count. Where fewer than 100 are left the fit ends at the last one, and
    leaves out the first twentieth of them instead of five. None where fewer than two are left: features without two
    directions have no slope. Raises ValueError where features are not finite or there are none.
    """
    _check(x_ND)
    values = torch.linalg.svdvals(_centred(x_ND.double()))
    # Logarithms of eigenvalues up to the common factor of 1 / N, which moves no slope.
    logs = 2 * values[values > _rounding(x_ND)].log()
    if len(logs) < 2:
        return None
    first, last = ALPHA_RANKS
    skipped = min(first - 1, len(logs) // 20)
    ranks = torch.arange(skipped + 1, min(last, len(logs)) + 1, dtype=torch.float64)
    logs = logs[skipped:last]
    weights = 1 / ranks / (1 / ranks).sum()
    x = ranks.log() - (weights * ranks.log()).sum()
    return -float((weights * x * logs).sum() / (weights * x * x).sum())


def lidar(views_NVD: Float[Tensor, "N V D"], delta: float = LIDAR_DELTA) -> float:
    """LiDAR: the effective rank of what tells images apart when it is measured in units of how their views differ.

    The exp of the entropy of the shares of the eigenvalues of W^(-1/2) B W^(-1/2), where B is the covariance of the
    images' means over views, and W the mean covariance of views about them, plus `delta` times the identity (Thilak et
    al. 2024, equations 1 and 2; 1e-4 is common practice). 0 where all images have one mean. The paper's constant in
    the logarithm is not needed. Values are comparable only at the same N, V and D and with the same augmentations.
    `delta` is absolute, so it decides in directions in which views vary less than that: in all of them where features
    are tiny, in some where N (V - 1) is below D and no view is seen to vary. Raises ValueError for fewer than two views
    or images and for features that are not finite.
    """
    assert delta > 0
    _check_views(views_NVD)
    N, V, _ = views_NVD.shape
    x_NVD = views_NVD.double()
    mean_ND = x_NVD.mean(dim=1)
    within_MD = (x_NVD - mean_ND[:, None]).flatten(0, 1)
    between_ND = _centred(mean_ND)
    if between_ND.norm() <= _rounding(views_NVD):
        return 0.0
    within_D, directions_DD = torch.linalg.eigh(within_MD.T @ within_MD / (N * V))
    # Rounding may leave a variance of zero a little below it.
    whitened_ND = between_ND @ directions_DD / (within_D.clamp(min=0) + delta).sqrt()
    values = torch.linalg.svdvals(whitened_ND).square()
    return float(torch.special.entr(values / values.sum()).sum().exp())


def uniformity(x_ND: Float[Tensor, "N D"], t: float = 2.0) -> float:
    """Log of the mean over pairs of images of exp(-t |x - y|^2), x and y of length 1 (Wang and Isola 2020).

    0 where all features are one, -2 t where all are orthogonal to each other, near which features that are spread
    evenly over a sphere of many dimensions come. Raises ValueError for fewer than two images and for features that are
    not finite.
    """
    _check(x_ND)
    N = len(x_ND)
    if N < 2:
        raise ValueError("uniformity compares images with each other, so it needs at least two")
    unit_ND = F.normalize(x_ND.double(), dim=1)
    total = 0.0
    for start in range(0, N, COMPARED_AT_ONCE):
        # Each pair once: a row meets only the rows behind it.
        similarity = unit_ND[start : start + COMPARED_AT_ONCE] @ unit_ND[start:].T
        total += float(torch.exp(2 * t * (similarity - 1)).triu(diagonal=1).sum())
    return math.log(total / (N * (N - 1) / 2))


def alignment(views_NVD: Float[Tensor, "N V D"]) -> float:
    """Mean of |x - y|^2 over the pairs of views of one image, features of length 1 (Wang and Isola 2020, alpha = 2).

    From 0 (a view does not matter) over 2 (views as unlike as unrelated directions) to 4. Raises ValueError for fewer
    than two views or images and for features that are not finite.
    """
    _check_views(views_NVD)
    unit_NVD = F.normalize(views_NVD.double(), dim=2)
    # The mean square distance of pairs is twice the variance (with V - 1), so no pair has to be formed.
    return 2 * float(unit_NVD.var(dim=1, correction=1).sum(dim=1).mean())


def _centred(x_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return x_ND - x_ND.mean(dim=0)


def _rounding(x: Float[Tensor, "*shape"]) -> float:
    """What singular values may come of rounding alone: ten times the error of storing numbers as `x` stores them."""
    return 10 * torch.finfo(x.dtype).eps * float(x.double().norm())


def _check_views(views_NVD: Float[Tensor, "N V D"]) -> None:
    _check(views_NVD.flatten(1))
    if min(views_NVD.shape[:2]) < 2:
        raise ValueError(
            f"views are compared with each other and so are images: at least two of both are needed, got "
            f"{views_NVD.shape[1]} views of {views_NVD.shape[0]} images"
        )


def _check(x_ND: Float[Tensor, "N D"]) -> None:
    if x_ND.numel() == 0:
        raise ValueError("there are no features to measure")
    if not torch.isfinite(x_ND).all():
        raise ValueError("features hold NaN or infinite values, so their rank and spread mean nothing")
