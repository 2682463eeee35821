"""A step is measured in parts that make up the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import pytest
import torch

from tiny_runs import tiny_settings
from unmask.bench.made import made_batch
from unmask.bench.step import FEWEST_STEPS, StepMeasure, measure_step
from unmask.methods import METHODS
from unmask.training.trainer import TrainingConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.bench.work.SECONDS", 0.005)


def measured(method: str, *, loads: bool = False, steps: int | None = 3, parts: int = 1) -> StepMeasure:
    built = METHODS[method](tiny_settings(method))
    training = TrainingConfig(batch_size=8, workers=0, device="cpu", parts=parts)
    batches = cycle([made_batch(built, 8 // parts)]) if loads else None
    return measure_step(built, training, device=CPU, batches=batches, steps=steps, seconds=0.001)


@pytest.mark.parametrize("method", ["mae", "conmim", "byol"])
def test_parts_make_up_the_step(method: str) -> None:
    measure = measured(method)
    assert set(measure.phases) == {"views", "forward", "backward", "optimizer", "target"}
    assert 0 < sum(measure.phases.values()) <= measure.seconds
    assert measure.images_per_second == measure.step_images_per_second == 8 / measure.seconds
    assert measure.steps == 3
    assert measure.precision == "float32"
    assert measure.peak_memory > 2**20
    assert measure.flops_per_image > 0
    assert measure.matrix_share is not None


def test_waiting_for_data_is_a_part_of_its_own() -> None:
    measure = measured("mae", loads=True, parts=2)
    assert next(iter(measure.phases)) == "data"
    assert measure.step_images_per_second > measure.images_per_second


def test_without_a_number_steps_fill_the_time() -> None:
    assert measured("mae", steps=None).steps == FEWEST_STEPS


def test_shares_are_those_of_the_step_without_waiting() -> None:
    measure = StepMeasure(
        device="cpu",
        precision="float32",
        compiled=False,
        threads=1,
        batch_size=8,
        steps=1,
        seconds=4.0,
        phases={"data": 2.0, "forward": 1.0},
        peak_memory=1,
        flops_per_image=10.0,
        matrix_rate=80.0,
    )
    assert measure.images_per_second == 2
    assert measure.step_images_per_second == 4
    assert measure.matrix_share == 0.5
    assert replace(measure, matrix_rate=None).matrix_share is None
