"""AdamW as BERT's descendants were trained with it (the AdamW that transformers had until version 5).

It differs from torch's in two ways: epsilon is added to the root of the second moment before, not after, that moment is
corrected for its start at zero, and weights decay after the step, from the value that the step has left.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
    p = p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)
    p = p - lr wd p
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class BertAdamW(torch.optim.Optimizer):
    """AdamW with BERT's arithmetic. A parameter without a gradient is left alone, and its steps are not counted."""

    def __init__(
        self,
        parameters: Iterable[dict[str, Any]] | Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of all groups."""
        assert closure is None, "this optimizer evaluates nothing anew"
        for group in self.param_groups:
            chosen = [parameter for parameter in group["params"] if parameter.grad is not None]
            if chosen:
                self._step_group(group, chosen)

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        firsts, seconds, sizes = [], [], []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            # A checkpoint puts it on the device, where reading it would wait for all that is under way there.
            state["step"] = state["step"].cpu() + 1
            steps = float(state["step"])
            sizes.append(-group["lr"] * math.sqrt(1 - beta2**steps) / (1 - beta1**steps))
            firsts.append(state["exp_avg"])
            seconds.append(state["exp_avg_sq"])
        torch._foreach_lerp_(firsts, gradients, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, firsts, roots, sizes)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
