"""Attention as a transformer's blocks compute it, for those who look on.

Shape legend: B images, h heads, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode


class RecordAttention(TorchFunctionMode):
    """Notes what the last call of scaled_dot_product_attention within it was given, whichever block made it."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._last = (args[0], args[1], kwargs.get("attn_mask"))
        return func(*args, **kwargs)

    def logits(self) -> Float[Tensor, "B h L L"]:
        """What the softmax of that call was taken of: scaled products of queries (first L) and keys, and the bias."""
        assert self._last is not None, "no block used scaled dot-product attention"
        query, key, bias = self._last
        logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return logits if bias is None else logits + bias
