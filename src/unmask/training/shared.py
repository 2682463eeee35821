"""Gradients that are averaged over all ranks while the backward pass still goes on (DistributedDataParallel)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from unmask.trainee import Losses

T = TypeVar("T")


class Caller(nn.Module):
    """A trainee as torch can wrap it: around `forward` alone, where a trainee is called by several names."""

    def __init__(self, trainee: nn.Module) -> None:
        super().__init__()
        self.trainee = trainee

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)


class SharedGradients:
    """Losses whose backward pass leaves in every rank the mean of all ranks' gradients.

    All ranks begin with the first rank's weights. Buffers are each rank's own: what depends on them (centres, queues)
    is computed from all ranks' batches already, and running statistics are not read in training.
    """

    def __init__(self, trainee: nn.Module, losses: Callable[[Any, float], Losses]) -> None:
        self._module = DistributedDataParallel(Caller(trainee), forward_sync_buffers=False)
        self._losses = losses

    def losses(self, views: Any, progress: float) -> Losses:
        """The losses of this rank's part."""
        found: Losses = self._module(self._losses, views, progress)
        return found

    def kept_apart(self) -> AbstractContextManager[None]:
        """Within it gradients are added up on each rank and not averaged yet: for all parts of a step but its last."""
        apart: AbstractContextManager[None] = self._module.no_sync()
        return apart

    def at_hand(self, call: Callable[[], T]) -> T:
        """Call with all weights at hand, as they always are."""
        return call()
