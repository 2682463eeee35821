"""The matrix products of a step: which ones there are, and running them alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unmask.models.products import matrix_product, quick_products

Product = tuple[tuple[int, ...], tuple[int, ...], bool, bool, bool]
"""Shapes of both factors, whether each lies transposed in memory, and whether NumPy multiplies: what decides the
kernel."""


class RecordProducts(TorchDispatchMode):
    """Counts the matrix products that run within it, by kind and shapes; fused attention as the products in it."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "matrix_product"):
            self._note(args[0], args[1], by_numpy=name == "matrix_product")
        elif name in ("addmm", "baddbmm"):
            self._note(args[1], args[2])
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            self._attention(args[0], args[1], 1)
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            # Probabilities are computed again, then the gradients of values, probabilities, queries and keys.
            self._attention(args[1], args[2], 2)
            self.products[_plain_shapes(args[1], args[2])] += 1
        return func(*args, **(kwargs or {}))

    def _note(self, first: torch.Tensor, second: torch.Tensor, *, by_numpy: bool = False) -> None:
        turned = (first.stride(-1) != 1, second.stride(-1) != 1)
        self.products[(tuple(first.shape), tuple(second.shape), *turned, by_numpy)] += 1

    def _attention(self, query: torch.Tensor, key: torch.Tensor, times: int) -> None:
        batch, heads, length, width = query.shape
        flat, keys = batch * heads, key.shape[2]
        self.products[_plain_shapes(query, key)] += times
        self.products[((flat, length, keys), (flat, keys, width), False, False, False)] += times


def _plain_shapes(query: torch.Tensor, key: torch.Tensor) -> Product:
    batch, heads, length, width = query.shape
    return ((batch * heads, length, width), (batch * heads, width, key.shape[2]), False, True, False)


def products_alone(step: Callable[[], Any]) -> Callable[[], None]:
    """A function that runs the matrix products of `step` and nothing else."""
    with RecordProducts() as record:
        step()
    ready = []
    for (first, second, turned, other_turned, by_numpy), times in record.products.items():
        one, other = _tensor(first, turned), _tensor(second, other_turned)
        if by_numpy:
            again = partial(matrix_product, one, other)
        else:
            product = torch.bmm if len(first) == 3 else torch.mm
            again = partial(product, one, other, out=product(one, other))
        ready.append((again, times))

    def run() -> None:
        with quick_products():
            for product, times in ready:
                for _ in range(times):
                    product()

    return run


def _tensor(shape: tuple[int, ...], turned: bool) -> torch.Tensor:
    if not turned:
        return torch.randn(shape)
    return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
