"""How much a step computes, and how fast this machine multiplies matrices of the same shapes.

Shape legend of a product: M x K by K x N.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from unmask.bench.clock import wait_for
from unmask.data.batch import Batch
from unmask.methods.base import Method
from unmask.models.products import matrix_product, numpy_is_quicker, usual_products

HEAVIEST = 3
"""Shapes of products that are measured: those on which most is computed."""
SECONDS = 0.3
"""For each of them, at least; and at least two products."""


@dataclass(frozen=True)
class Work:
    """What one image costs in a step: floating-point operations (a multiplication and an addition are two) of forward
    and backward, and the heaviest matrix products of the forward pass, M for one image."""

    flops: float
    products: tuple[tuple[float, int, int], ...]


class _Products(TorchDispatchMode):
    """Operations spent on matrix products, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[tuple[int, int, int]] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        factors: tuple[Tensor, Tensor] | None = None
        if operation is torch.ops.aten.addmm.default:
            factors = arguments[1:3]
        elif operation is torch.ops.aten.mm.default:
            factors = arguments[:2]
        if factors is not None:
            (m, k), n = factors[0].shape, factors[1].shape[1]
            self.flops[m, k, n] += 2 * m * k * n
        return operation(*arguments, **(named or {}))


def count_work(method: Method, batch: Batch) -> Work:
    """Run forward and backward of `batch` once and count. Gradients are dropped; nothing else changes but what the
    forward pass itself keeps (running means)."""
    products = _Products()
    # Attention written out: other kernels recompute on the way back, and that is not the method's work.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            views = method.make_views(batch)
        with products:
            losses = method.losses(views)
        torch.stack(list(losses.values())).sum().backward()
    method.zero_grad(set_to_none=True)
    heaviest = products.flops.most_common(HEAVIEST)
    return Work(counter.get_total_flops() / batch.size, tuple((m / batch.size, k, n) for (m, k, n), _ in heaviest))


def matrix_rate(work: Work, batch_size: int, *, dtype: torch.dtype, device: torch.device) -> float | None:
    """Operations a second in products of the shapes of `work` for a batch of this size; None where it has none."""
    flops = seconds = 0.0
    for rows, k, n in work.products:
        m = max(1, round(rows * batch_size))
        left, right = torch.randn(m, k, dtype=dtype, device=device), torch.randn(k, n, dtype=dtype, device=device)
        taken = _seconds_of_product(left, right, device)
        flops += 2 * m * k * n
        seconds += taken
    return flops / seconds if seconds else None


def _seconds_of_product(left: Tensor, right: Tensor, device: torch.device) -> float:
    """Seconds of one product, by the library that a step uses: of several groups of them the quickest, because others
    may use the machine, too."""
    by_numpy = device.type == "cpu" and left.dtype == torch.float32 and numpy_is_quicker()
    product = matrix_product if by_numpy else torch.mm
    group, best, spent = 1, float("inf"), 0.0
    with usual_products():
        product(left, right)
        wait_for(device)
        while spent < SECONDS:
            began = perf_counter()
            for _ in range(group):
                product(left, right)
            wait_for(device)
            taken = perf_counter() - began
            spent += taken
            best = min(best, taken / group)
            # So long that starting and waiting do not count.
            group = max(1, min(1000, int(SECONDS / 5 / best)))
    return best
