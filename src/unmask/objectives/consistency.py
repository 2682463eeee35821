"""Noise and consistency: a classifier that keeps its mind under Gaussian noise (Jeong and Shin 2020, arXiv 2006.04062).

For M noisy copies x + sigma n_i of an image, with predictions p_i = softmax(f(x + sigma n_i)) and their mean q:

    loss = mean_i CE(f(x + sigma n_i), y) + kl_weight * mean_i KL(q || p_i) + entropy_weight * H(q)

all three meaned over the images. DMAE fine-tunes so with M = 2 copies, kl_weight (lambda) 2 and entropy_weight (eta)
0.5 for sigma 0.25 and 0.5, and eta 0.1 for sigma 1.

The form is that of both authors' code (jh-jeong/smoothing-consistency, code/consistency.py, loss='default', which
DMAE copies unchanged); the first release of the former had a softmax too many in the entropy, which was mended later.
The gradient flows through q, too. They clamp q at 1e-20 in the logarithm of the entropy, and nothing in the KL, whose
gradient is then NaN as soon as the probability of a class is rounded to 0 (in float32, logits about 104 apart). Here
all logarithms are taken before the exponential: no clamp is needed, and the loss is theirs to within 1e-18 a class.

Shape legend: M noisy copies, B images, K classes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


def consistency_terms(logits_MBK: Float[Tensor, "M B K"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How much the predictions of noisy copies differ, and how undecided they are together.

    First the mean over copies and images of KL(q || p_i), q being the mean prediction of an image's copies (0 for one
    copy); then the mean over images of the entropy of q. Both in nats, in float32 at least.
    """
    exact = torch.promote_types(logits_MBK.dtype, torch.float32)
    log_p_MBK = F.log_softmax(logits_MBK.to(exact), dim=2)
    log_q_BK = torch.logsumexp(log_p_MBK, dim=0) - math.log(len(logits_MBK))
    q_BK = log_q_BK.exp()
    kl_MB = (q_BK * (log_q_BK - log_p_MBK)).sum(dim=2)
    entropy_B = -(q_BK * log_q_BK).sum(dim=1)
    return kl_MB.mean(), entropy_B.mean()


def noise_and_consistency(
    logits_MBK: Float[Tensor, "M B K"],
    targets: Int64[Tensor, " B"] | Float[Tensor, "B K"],
    *,
    kl_weight: float = 2.0,
    entropy_weight: float = 0.5,
) -> Float[Tensor, ""]:
    """The whole loss of the module's head, for the logits of M noisy copies of each image.

    `targets` are classes, or probabilities of them (mixup, label smoothing), the same for all copies of an image.
    The defaults are DMAE's. One copy leaves cross-entropy under noise and the entropy of the prediction.
    """
    exact = torch.promote_types(logits_MBK.dtype, torch.float32)
    targets_M = targets.expand(len(logits_MBK), *targets.shape)
    cross_entropy = F.cross_entropy(logits_MBK.to(exact).flatten(0, 1), targets_M.flatten(0, 1))
    kl, entropy = consistency_terms(logits_MBK)
    return cross_entropy + kl_weight * kl + entropy_weight * entropy
