"""LARS as MAE's linear probe uses it, from timm's implementation."""

from __future__ import annotations

from collections.abc import Iterable

from timm.optim.lars import Lars
from torch import nn

TRUST = 0.001


def build_lars(parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.9) -> Lars:
    """SGD with momentum, each matrix's gradient scaled by 0.001 x |weights| / |gradient| (You et al. 2017).

    Vectors (biases, norms) take plain SGD steps, and so does a matrix whose weights or gradient are all zero.
    There is no weight decay: the probe has none, and without it timm's trust ratio, which adds |weights| x
    decay to |gradient| where MAE's authors take the norm of their sum, is the authors'.
    """
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "always_adapt": True},
        {"params": vectors, "always_adapt": False},
    ]
    return Lars(
        [group for group in groups if group["params"]],
        lr=lr,
        momentum=momentum,
        weight_decay=0.0,
        trust_coeff=TRUST,
        eps=0.0,
    )
