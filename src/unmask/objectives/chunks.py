"""Tables of logits that would grow with the square of a batch, made and forgotten a few rows at a time.

A loss over rows of logits needs one number of each row; its gradient needs the rows again. Where the table is large,
its rows are computed in parts, and each part once more in the backward pass: the same values, one matrix product more,
and memory that grows with the inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MOST_LOGITS = 2**24
"""Logits held at once: 64 MiB in float32, beside which a part's start-up costs nothing. A batch of 4,096 against itself
is still one product."""


def by_rows(terms: Callable[..., Tensor], *rows: Tensor, width: int) -> Tensor:
    """`terms(*rows)`, computed in parts of at most `MOST_LOGITS` logits, of which each row has `width`.

    The `rows` are cut along their first axis alike, and so is the result; what else `terms` needs, it holds itself,
    gradients included. It must not draw random numbers, and what it says of a row must not depend on the others.
    """
    size = max(1, MOST_LOGITS // max(1, width))
    count = len(rows[0])
    if count <= size:
        return terms(*rows)
    parts = zip(*(row.split(size) for row in rows), strict=True)
    # Nothing random inside, so that there is no state to keep for the second time.
    return torch.cat([checkpoint(terms, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
