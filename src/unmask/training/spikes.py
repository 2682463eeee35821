"""Whether a loss jumps: the sign of a training that is about to break down, while it still can be saved."""

from __future__ import annotations

from collections import deque
from statistics import median

REMEMBERED = 50
"""Losses that say what is usual."""
FEWEST = 10
"""Before so many are known nothing counts as a jump."""
DEVIATIONS = 10.0
LEAST_SHARE = 0.1
"""A jump must also be larger than this share of the usual loss: very even losses have tiny deviations."""


class SpikeWatch:
    """Compares each loss with the ones before it, by their median and their median deviation."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=REMEMBERED)
        self._quiet = 0

    def note(self, loss: float) -> str | None:
        """A sentence where this loss jumps above the usual; after one, none for the next few losses."""
        before = list(self._losses)
        self._losses.append(loss)
        self._quiet = max(0, self._quiet - 1)
        if len(before) < FEWEST:
            return None
        usual = median(before)
        spread = 1.4826 * median(abs(value - usual) for value in before)
        if loss - usual <= max(DEVIATIONS * spread, LEAST_SHARE * abs(usual)) or self._quiet:
            return None
        self._quiet = FEWEST
        return (
            f"the loss jumped from about {usual:.4g} to {loss:.4g}: if it does not come back, "
            "resume from an earlier checkpoint (--keep-every keeps some) with a lower --lr, or with clipping"
        )
