"""Soft targets over a vocabulary: a hidden patch may be several words at once (mc-BEiT).

Shape legend: B samples, N patches, M hidden patches of the sample that hides most, V codes, D feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.ranks import share_of_mean


def patch_similarity(
    features_BND: Float[Tensor, "B N D"], positions_BM: Int64[Tensor, "B M"], temperature: float
) -> Float[Tensor, "B M N"]:
    """Softmax over all patches of an image of their cosine with the patch at each of these positions."""
    unit_BND = F.normalize(features_BND, dim=-1)
    queries_BMD = unit_BND.gather(1, positions_BM[..., None].expand(-1, -1, unit_BND.shape[-1]))
    return (queries_BMD @ unit_BND.transpose(1, 2) / temperature).softmax(dim=-1)


def multi_choice_loss(
    logits_BMV: Float[Tensor, "B M V"],
    choices_BNV: Float[Tensor, "B N V"],
    similarity_BMN: Float[Tensor, "B M N"],
    positions_BM: Int64[Tensor, "B M"],
    hidden_BM: Bool[Tensor, "B M"],
    omega: float,
) -> Float[Tensor, ""]:
    """Soft cross-entropy of hidden patches, mean over all of the batch of all ranks.

    The target of patch j is (1 - omega) p_j + omega sum_i W_ji p_i, with p = `choices_BNV` of all patches and
    W = `similarity_BMN`. Cross-entropies of every p_i with every prediction come first and are mixed then: the same
    sum, without a target of B x M x V values.
    """
    cross_BMN = -(logits_BMV.log_softmax(dim=-1) @ choices_BNV.transpose(1, 2))
    own_BM = cross_BMN.gather(2, positions_BM[..., None]).squeeze(2)
    loss_BM = (1 - omega) * own_BM + omega * (similarity_BMN * cross_BMN).sum(dim=2)
    count = hidden_BM.sum()
    exact = torch.promote_types(loss_BM.dtype, torch.float32)
    return share_of_mean(torch.where(hidden_BM, loss_BM, 0.0).to(exact).sum() / count, count)
