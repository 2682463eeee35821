"""Clustering objectives: two views of an image must be assigned to the same prototypes.

Shape legend: B samples, K prototypes, V online views, Q target views (the first Q of the V online views, in order), M
hidden patches of the batch. Targets take no gradient; give them detached. Statistics are those of all ranks, which must
hold equally many samples.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unmask.ranks import mean_over_ranks, sum_over_ranks, world_size


def log_assignment(logits: Float[Tensor, "*lead K"], temperature: float) -> Float[Tensor, "*lead K"]:
    """Log probabilities of the prototypes, in float32 where logits are shorter."""
    return (logits / temperature).log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def centred_softmax(
    logits: Float[Tensor, "*lead K"], centre_K: Float[Tensor, " K"], temperature: float
) -> Float[Tensor, "*lead K"]:
    """A target's assignment: softmax of (logits - centre) / temperature (DINO, section 3.1)."""
    return ((logits - centre_K) / temperature).softmax(dim=-1)


def next_centre(centre_K: Float[Tensor, " K"], mean_K: Float[Tensor, " K"], momentum: float) -> Float[Tensor, " K"]:
    """The centre after a step: momentum · centre + (1 - momentum) · mean logits over all ranks (DINO, equation 4).

    `mean_K` is this rank's mean.
    """
    return centre_K * momentum + mean_over_ranks(mean_K.detach().to(centre_K.dtype)) * (1 - momentum)


def cross_view_entropy(
    online_VBK: Float[Tensor, "V B K"], target_QBK: Float[Tensor, "Q B K"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy of every target view with every *other* online view (DINO, equation 3).

    `online_VBK` are logits, softened by `temperature`; `target_QBK` are probabilities. Mean over samples and over the
    Q (V - 1) pairs. Chance level is ln K. ValueError where there is no pair.
    """
    V, B, _ = online_VBK.shape
    Q = len(target_QBK)
    if V < 2:
        raise ValueError(f"cross-entropy between views needs at least two online views, got {V}")
    log_VBK = log_assignment(online_VBK, temperature)
    # All pairs of a target view at once: the sum over all online views less its own.
    others_QBK = log_VBK.sum(dim=0) - log_VBK[:Q]
    return -(target_QBK * others_QBK).sum() / (B * Q * (V - 1))


def hidden_patch_entropy(
    online_MK: Float[Tensor, "M K"],
    target_MK: Float[Tensor, "M K"],
    image_M: Int64[Tensor, " M"],
    images: int,
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of hidden patches with the target's view of them: mean over an image's, then over images (iBOT).

    `online_MK` are logits, softened by `temperature`; `target_MK` are probabilities. `image_M` tells to which of
    `images` images a patch belongs; images without a hidden patch count as 0 and stay in the mean.
    """
    entropy_M = -(target_MK * log_assignment(online_MK, temperature)).sum(dim=-1)
    # Not bincount, which waits for the device.
    count_B = image_M.new_zeros(images).index_add_(0, image_M, torch.ones_like(image_M))
    return (entropy_M / count_B[image_M]).sum() / images


def assignment_entropy(online_VBK: Float[Tensor, "V B K"], target_BK: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of all online views, as log probabilities, with the one target view (MSN, equation 1)."""
    V, B, _ = online_VBK.shape
    return -(target_BK * online_VBK.sum(dim=0)).sum() / (V * B)


@torch.no_grad()
def sinkhorn(probabilities_BK: Float[Tensor, "B K"], iterations: int) -> Float[Tensor, "B K"]:
    """Assignments in which every prototype gets an equal share of the samples of all ranks (Sinkhorn and Knopp).

    Starts from the probabilities themselves, as MSN's authors do; each of the `iterations` first gives every prototype,
    then every sample the same total weight. The rows of the result sum to one.
    """
    B, K = probabilities_BK.shape
    samples = B * world_size()
    plan_BK = probabilities_BK / sum_over_ranks(probabilities_BK.sum())
    for _ in range(iterations):
        plan_BK = plan_BK / (sum_over_ranks(plan_BK.sum(dim=0)) * K)
        plan_BK = plan_BK / (plan_BK.sum(dim=1, keepdim=True) * samples)
    return plan_BK * samples


def idle_prototypes(probabilities: Float[Tensor, "*lead K"]) -> Float[Tensor, ""]:
    """How far the mean assignment is from using all prototypes alike: ln K - entropy (me-max regularisation, MSN).

    The mean is over all leading positions and all ranks; the gradient is this rank's share, for ranks whose gradients
    are averaged.
    """
    own_K = probabilities.flatten(0, -2).mean(dim=0)
    # The value of all ranks with the gradient of our own.
    mean_K = own_K + (mean_over_ranks(own_K.detach()) - own_K.detach())
    return math.log(mean_K.shape[0]) - torch.special.entr(mean_K).sum()


def mean_entropy(log_probabilities: Float[Tensor, "*lead K"]) -> Float[Tensor, ""]:
    """Mean over all leading positions of the entropy of an assignment, given as log probabilities."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()
