"""What a supervised run works on: a task with its data, its loader, its score, its file and its pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.report.false_colour import Chosen
from unmask.report.parts import Figure
from unmask.run_loop import Batches
from unmask.trainee import B, Trainee
from unmask.training.trainer import TrainingConfig


@runtime_checkable
class Result(Protocol):
    """A score of any kind."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        ...


class Subject(ABC, Generic[B]):
    """A task on its data. Each protocol has one class of these."""

    trainee: Trainee[B, Any]
    file_name: str
    """What the finished model's file is called within the run's folder."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """Number of train images."""

    @abstractmethod
    def batches(self, first: int, last: int, mine: range, training: TrainingConfig, device: torch.device) -> Batches[B]:
        """As `Job.batches`."""

    @abstractmethod
    def score(self, workers: int) -> Result:
        """What the model is worth now, on the test images. Its mode is left as it was."""

    @abstractmethod
    def file(self, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of the finished model's file."""

    @abstractmethod
    def figures(self, chosen: Chosen = None) -> list[Figure]:
        """Pictures of what the model says of some test images; `chosen` names the channels to show."""
