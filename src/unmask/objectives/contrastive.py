"""Contrastive objectives: a query must find its own key among many.

Shape legend: B samples, N patches of an image, M hidden patches of the sample that hides most, D feature width,
G samples of all ranks together, Q keys of a queue, K sets of keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unmask.masking import hidden_positions
from unmask.objectives.chunks import by_rows
from unmask.ranks import gather_with_gradient, gather_without_gradient, share_of_mean


def patch_infonce(
    online_BND: Float[Tensor, "B N D"],
    target_BND: Float[Tensor, "B N D"],
    mask_BN: Bool[Tensor, "B N"],
    temperature: float,
    *,
    hidden: int | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE between patches of one image (ConMIM, equation 5).

    Queries are the hidden patches of `online_BND`; keys are all N patches of the same image in `target_BND`, hidden and
    visible; the key of a query lies at its own position. Cosine similarity by `temperature`, mean over all hidden
    patches of the batch of all ranks. No other image takes part. Chance level is ln N. Logits of visible queries are
    never computed. `hidden` is the number of hidden patches where every sample hides as many and the caller knows it:
    it is trusted, and neither device nor ranks are waited for.
    """
    # Samples that hide fewer are filled up with visible positions, whose terms are left out below.
    positions_BM, hidden_BM = hidden_positions(mask_BN, hidden=hidden)
    queries_BMD = online_BND.gather(1, positions_BM[..., None].expand(-1, -1, online_BND.shape[-1]))
    labels_BM = positions_BM.masked_fill(~hidden_BM, -100)

    def entropies(queries_BMD: Tensor, keys_BND: Tensor, labels_BM: Tensor) -> Tensor:
        logits_BMN = queries_BMD @ keys_BND.transpose(1, 2) / temperature
        flat = F.cross_entropy(logits_BMN.flatten(0, 1), labels_BM.flatten(), ignore_index=-100, reduction="none")
        return flat.unflatten(0, labels_BM.shape)

    rows = F.normalize(queries_BMD, dim=-1), F.normalize(target_BND, dim=-1), labels_BM
    mean = by_rows(entropies, *rows, width=positions_BM.shape[1] * mask_BN.shape[1]).sum() / hidden_BM.sum()
    return mean if hidden is not None else share_of_mean(mean, hidden_BM.sum())


def batch_infonce(
    online_BD: Float[Tensor, "B D"], target_BD: Float[Tensor, "B D"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE between images of the global batch: online feature b must find target feature b among all ranks' targets.

    Cosine similarity by `temperature`; one direction; the targets take no gradient. Chance level is ln G.
    """
    keys_GD, offset = gather_without_gradient(F.normalize(target_BD, dim=-1))
    labels_B = torch.arange(online_BD.shape[0], device=online_BD.device) + offset

    def entropies(queries_BD: Tensor, labels_B: Tensor) -> Tensor:
        return F.cross_entropy(queries_BD @ keys_GD.T / temperature, labels_B, reduction="none")

    return by_rows(entropies, F.normalize(online_BD, dim=-1), labels_B, width=len(keys_GD)).mean()


def ntxent(
    first_BD: Float[Tensor, "B D"], second_BD: Float[Tensor, "B D"], temperature: float, *, gathered: bool = False
) -> Float[Tensor, ""]:
    """NT-Xent between two views of a batch (SimCLR, equation 1): each must find the other among all 2B - 1 features.

    Cosine similarity by `temperature`; both views are queries, a feature is never its own key, the positive stays in
    the denominator; mean over the 2B queries. Gradients flow through both sides. The negatives are this rank's alone,
    or those of all ranks (`gathered`). Chance level is ln(2B - 1), so a batch of one image gives 0.
    """
    features_QD = F.normalize(torch.cat([first_BD, second_BD]), dim=-1)
    keys_GD, offset = gather_with_gradient(features_QD) if gathered else (features_QD, 0)
    own_Q = torch.arange(len(features_QD), device=features_QD.device)

    def entropies(queries_BD: Tensor, own_B: Tensor, labels_B: Tensor) -> Tensor:
        logits_BG = (queries_BD @ keys_GD.T / temperature).scatter_(1, own_B[:, None], -torch.inf)
        return F.cross_entropy(logits_BG, labels_B, reduction="none")

    places = own_Q + offset, own_Q.roll(len(first_BD)) + offset
    return by_rows(entropies, features_QD, *places, width=len(keys_GD)).mean()


def queue_infonce(
    online_BD: Float[Tensor, "B D"],
    targets_KBD: Float[Tensor, "K B D"],
    queue_DQ: Float[Tensor, "D Q"],
    temperature: float,
) -> Float[Tensor, " K"]:
    """InfoNCE with a queue of negatives (MoCo, equation 1), for each of K sets of keys: feature b must find key b of
    the set among it and the queue. Mean over the batch.

    Cosine similarity by `temperature`; keys in the queue have norm 1 already. The logits of the queue are computed once
    for all sets. Neither keys nor queue take a gradient. Chance level is ln(1 + Q).
    """
    online_BD = F.normalize(online_BD, dim=-1)
    targets_KBD = F.normalize(targets_KBD.detach(), dim=-1)
    # Under autocast the products come in half precision, which a sum of thousands of terms must not.
    exact = torch.promote_types(online_BD.dtype, torch.float32)

    def summed(queries_BD: Tensor) -> Tensor:
        return (queries_BD @ queue_DQ / temperature).to(exact).logsumexp(dim=1)

    positive_KB = (online_BD * targets_KBD).sum(dim=-1).to(exact) / temperature
    negatives_B = by_rows(summed, online_BD, width=queue_DQ.shape[1])
    return (torch.logaddexp(positive_KB, negatives_B) - positive_KB).mean(dim=1)
