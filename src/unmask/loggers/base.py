"""What a logger is: it is opened for a run, takes what was logged step by step, and is closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a logger is told about the run."""

    name: str
    """For people."""
    folder: Path
    """Where a logger that needs files keeps them."""
    identity: str
    """What tells the run from all others, also from those of its name; the same after a stop."""
    facts: Mapping[str, Value]
    """The configuration and the environment, flat: `training.epochs`, `environment.torch`."""
    known_as: str | None = None
    """What the logger itself called the run when it was opened before; None the first time."""
    step: int = -1
    """The last step that was recorded before; all that comes is of later ones."""


@dataclass
class Step:
    """All that was logged of one step: numbers by name, and what happened in words."""

    number: int
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Logger(ABC):
    """A place that figures go to. Everything may raise, or take long: no training waits for it."""

    @abstractmethod
    def open(self, run: Run) -> str:
        """Begin the run, or go on with it; gives what it is to be `known_as` when it is opened again."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where people find the run, once it is open."""

    @abstractmethod
    def record(self, step: Step) -> None:
        """Take a step. Steps ascend, and none comes twice."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """The run has finished, or was stopped and may go on."""
