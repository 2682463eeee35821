"""Schedules: pure functions of training progress in [0, 1].

Progress is the share of optimizer steps already taken: 0 before the first step, 1 after the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import Doc


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A value that moves from `start` to `end` while training goes from progress 0 to 1."""

    kind: Annotated[
        Literal["constant", "linear", "cosine"],
        Doc("Shape of the way from start to end; constant stays at start."),
    ] = "constant"
    start: Annotated[float, Doc("Value at progress 0.")] = 0.0
    end: Annotated[float, Doc("Value at progress 1 (ignored when constant).")] = 0.0
    until: Annotated[float, Doc("Share of the run after which the end is reached and kept.")] = 1.0

    def __post_init__(self) -> None:
        if self.until <= 0:
            raise ValueError(f"a schedule's until must be above 0, got {self.until}")

    def at(self, progress: float) -> float:
        """The value at `progress`, clamped to [0, 1]."""
        progress = min(max(progress / self.until, 0.0), 1.0)
        if self.kind == "constant":
            return self.start
        if self.kind == "linear":
            return self.start + (self.end - self.start) * progress
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_then(progress: float, *, warmup: float, start: float, peak: float, after: Schedule) -> float:
    """Linear warm-up from `start` to `peak` during the first `warmup` share of training, then `after`.

    `after` runs over what is left of training; its own start should equal `peak`.
    """
    if warmup > 0 and progress < warmup:
        return start + (peak - start) * progress / warmup
    if warmup >= 1:
        return peak
    return after.at((progress - warmup) / (1 - warmup))
