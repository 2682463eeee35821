"""What was measured of each method: agreement with its authors' code, and the cost of a step.

`measured.json`, beside this file, is written by `scripts/measure_methods.py`; every entry names its command and date.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cattrs

FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True, kw_only=True)
class GoldenResult:
    """Replays of recorded training steps of the authors' code (`unmask verify`)."""

    cases: tuple[str, ...]
    agreeing: int
    largest_difference: float | None
    """Largest relative difference of a loss, gradient, prediction or final weight; None where nothing was replayed."""
    command: str
    date: str


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Time of a training step, by that of a step of MAE with the same encoder and batch in the same run."""

    relative: float
    encoder: str
    batch_size: int
    device: str
    threads: int
    torch: str
    command: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of one method; None: not measured."""

    golden: GoldenResult | None = None
    step: StepCost | None = None


def read_measured(file: Path = FILE) -> dict[str, Measured]:
    """The measurements by the name of the method."""
    return cattrs.structure(json.loads(file.read_text()), dict[str, Measured])


def write_measured(measured: dict[str, Measured], file: Path = FILE) -> None:
    """Write the measurements, sorted, so that a new one changes few lines."""
    file.write_text(json.dumps(cattrs.unstructure(measured), indent=2, sort_keys=True, allow_nan=False) + "\n")
