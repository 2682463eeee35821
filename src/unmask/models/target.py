"""Target networks: frozen copies of online networks that follow them by an exponential moving average."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from timm.layers import DropPath
from torch import nn

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A deep copy of `module` that takes no gradient. It stays in train mode, as the authors' targets do."""
    return copy.deepcopy(module).requires_grad_(False)


def stop_dropping_(module: M) -> M:
    """Switch stochastic depth off for good: for targets that are put in eval mode (data2vec) or have none (DINO)."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
    return module


@torch.no_grad()
def ema_update_(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * online, over parameters, matched by name.

    Buffers (running statistics of batch norm) are left alone, as in the authors' code of ConMIM and CMAE. A parameter
    that only the online network has (CMAE's final norm) is skipped; one that only the target has is our error.
    """
    sources = dict(online.named_parameters())
    target_parameters: list[torch.Tensor] = []
    online_parameters: list[torch.Tensor] = []
    for name, parameter in target.named_parameters():
        assert name in sources, f"target parameter {name} has no online twin"
        # Fixed parameters (sin-cos positions) never move; averaging them would only add rounding.
        if sources[name].requires_grad:
            target_parameters.append(parameter)
            online_parameters.append(sources[name].detach())
    if target_parameters:
        torch._foreach_lerp_(target_parameters, online_parameters, 1.0 - momentum)
