"""What becomes of a run whose steps are not finite: leave them out, go back, or end."""

from __future__ import annotations

from unmask.training.trainer import NonFiniteLoss

MOST_RETURNS = 3
"""Times that a run goes back to its last checkpoint before it ends: what breaks it again and again is no accident."""


class LeftOut:
    """Counts the steps that were left out.

    `limit` of them in a row, or one whose step was applied and so has spoilt the weights, are a reason to go back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._last = -2
        self._in_a_row = 0
        self._returns = 0

    def note(self, error: NonFiniteLoss) -> bool:
        """Count a step; whether to go back. The error itself is raised where that was done too often."""
        assert error.step is not None
        self._in_a_row = self._in_a_row + 1 if error.step == self._last + 1 else 1
        self._last = error.step
        if self._in_a_row < self._limit and not error.applied:
            return False
        if self._returns == MOST_RETURNS:
            raise error
        self._in_a_row = 0
        self._returns += 1
        return True
