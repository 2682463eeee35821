"""What the trainer trains: a module that turns a batch into named losses, and says how it wants to be trained.

A method of pre-training is one, a classifier, segmenter or detector that is fine-tuned is another. In anybody's own
loop: `losses = trainee(batch, progress)`, `sum(losses.values()).backward()`, an optimizer step, then
`trainee.update_target(progress)`; progress is the share of the run that is over, for schedules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from unmask.optimisation import OptimizerConfig, ParameterRule

Losses = dict[str, Tensor]


@runtime_checkable
class TrainingBatch(Protocol):
    """What the trainer asks of a batch: the samples it holds, the seed of all that is drawn from it, a way to move."""

    @property
    def indices(self) -> Tensor:
        """Positions of the samples in the data source."""
        ...

    @property
    def seed(self) -> int | None:
        """Seed of everything that is drawn for this batch from here on; None draws from torch's global state."""
        ...

    def to(self, device: torch.device) -> Any:
        """The same batch on `device`."""
        ...


B = TypeVar("B", bound=TrainingBatch, default=Any)
V = TypeVar("V", default=Any)


class Trainee(nn.Module, ABC, Generic[B, V]):
    """A module that learns: batches of type B become views of type V, and those become losses."""

    target_moves: ClassVar[Literal["after step", "before step"]] = "after step"
    """When `update_target` is called: after the optimizer's step, or at the start of each step with the weights that
    the step before has left (MoCo v3, BYOL, SIM: their schedules are read, and their last update is missing, so)."""

    @property
    @abstractmethod
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer and its schedule."""

    @abstractmethod
    def make_views(self, batch: B) -> V:
        """What the losses see of a batch, on the batch's device, drawn from the batch's seed."""

    @abstractmethod
    def losses(self, views: V, progress: float = 0.0) -> Losses:
        """Named, weighted losses; what is minimised is their sum. Schedules are read at `progress`."""

    @abstractmethod
    def update_target(self, progress: float) -> None:
        """Move the target network, or the averaged weights (if there are any); progress of the training in [0, 1]. See
        `target_moves`."""

    @abstractmethod
    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        """How this trainable parameter is treated: decay, rate, clipping."""

    def forward(self, batch: B, progress: float = 0.0) -> Losses:
        """Losses of a batch."""
        return self.losses(self.make_views(batch), progress)


def one_dimensional(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a bias or a norm's weight: what all authors leave undecayed (timm's rule)."""
    return parameter.ndim <= 1 or name.endswith(".bias")
