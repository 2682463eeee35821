"""Distillation: the online network predicts what its target network says.

Shape legend: B samples, T tokens of the batch, D feature width. Targets take no gradient; give them detached.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.ranks import mean_over_ranks


def cosine_distance(prediction_BD: Float[Tensor, "*lead D"], target_BD: Float[Tensor, "*lead D"]) -> Float[Tensor, ""]:
    """Mean squared distance of the features on the unit sphere, 2 - 2 cos (BYOL, equation 2).

    The target takes no gradient. Between 0 (same direction) and 4 (opposite). Half-precision features are compared in
    float32: near the end of training the distance is smaller than their rounding.
    """
    dtype = torch.promote_types(prediction_BD.dtype, torch.float32)
    return 2 - 2 * F.cosine_similarity(prediction_BD.to(dtype), target_BD.detach().to(dtype), dim=-1).mean()


def unigrad(
    prediction_TD: Float[Tensor, "T D"], target_TD: Float[Tensor, "T D"], negative_weight: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """UniGrad's two terms (Tao et al. 2022), by D as SIM's authors have it; the loss is their sum.

    positive = mean_i |p_i - t_i|^2 / D; negative = negative_weight * mean_i p_i' C p_i / D, where C = mean_i t_i t_i'
    over the tokens of all ranks: the cost of lying where targets lie, which keeps predictions from collapsing. The
    target takes no gradient.
    """
    T, D = prediction_TD.shape
    dtype = torch.promote_types(prediction_TD.dtype, torch.float32)
    prediction_TD, target_TD = prediction_TD.to(dtype), target_TD.detach().to(dtype)
    positive = (prediction_TD - target_TD).pow(2).sum(dim=1).mean()
    with torch.autocast(prediction_TD.device.type, enabled=False):
        correlation_DD = mean_over_ranks(target_TD.T @ target_TD / T)
        # The sum over i of p_i' C p_i is the sum over all entries of C * (P' P): D x D numbers, not T x D.
        negative = (correlation_DD * (prediction_TD.T @ prediction_TD / T)).sum()
    return positive / D, negative_weight * negative / D
