"""One sentence for each thing that can bound the speed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unmask.bench.advice import advise_data, advise_step
from unmask.bench.data import DataMeasure
from unmask.bench.step import StepMeasure

STEP = StepMeasure(
    device="cpu",
    precision="float32",
    compiled=False,
    threads=2,
    batch_size=10,
    steps=3,
    seconds=1.0,
    phases={"views": 0.02, "forward": 0.5, "backward": 0.4, "optimizer": 0.04, "target": 0.01},
    peak_memory=2**30,
    flops_per_image=8.0,
    matrix_rate=100.0,
)
DATA = DataMeasure(
    images=100,
    batch_size=10,
    workers=2,
    crops="1 of 224x224",
    images_per_second=100.0,
    first_batch=0.5,
    parts={"read": 0.002, "decode and crop": 0.017, "collate": 0.001},
    bad_files=0,
)
FAST = replace(STEP, batch_size=300, seconds=2.0, phases={**STEP.phases, "data": 1.0})


def test_a_step_that_reaches_the_rate_is_bound_by_the_network() -> None:
    advice = advise_step(STEP, None, processors=2)
    assert advice.bound == "computing forward and backward"
    assert "at 80% of the rate" in advice.sentence
    assert "or a GPU" in advice.sentence
    assert "or a GPU" not in advise_step(replace(STEP, device="NVIDIA"), None, processors=2).sentence
    assert "rate" not in advise_step(replace(STEP, matrix_rate=None), None, processors=2).sentence


@pytest.mark.parametrize(
    ("step", "workers", "processors", "sentence"),
    [
        (FAST, 2, 8, "2 workers give 100 images/s, the step could take 300; use --workers 6"),
        (replace(FAST, batch_size=3000), 2, 8, "the step could take 3000; use --workers 8"),
        (FAST, 1, 8, "1 worker gives 100 images/s, the step could take 300; use --workers 3"),
        (FAST, 0, 8, "the training process alone gives 100 images/s, the step could take 300; use --workers 3"),
        (FAST, 2, 2, "workers and step share the same processors"),
        # Alone the loader is fast enough: more workers would not help.
        (replace(FAST, batch_size=10), 2, 8, "workers and step share the same processors"),
        (replace(FAST, device="NVIDIA"), 2, 2, "use smaller files or crops, or a machine with more processors"),
    ],
)
def test_a_step_that_waits_for_data(step: StepMeasure, workers: int, processors: int, sentence: str) -> None:
    advice = advise_step(step, replace(DATA, workers=workers), processors=processors)
    assert advice.bound == "waiting for data"
    assert advice.sentence.startswith("the loader is the bottleneck: ")
    assert sentence in advice.sentence


@pytest.mark.parametrize(
    ("changes", "bound", "sentence"),
    [
        ({"phases": {"optimizer": 0.2, "target": 0.1}}, "optimizer and target", "take 30% of a step"),
        ({"phases": {"views": 0.3}}, "making views", "views take 30% of a step"),
        ({"flops_per_image": 2.0}, "small operations and memory, not matrix products", "larger --batch-size than 10"),
        (
            {"flops_per_image": 2.0, "device": "NVIDIA"},
            "small operations and memory, not matrix products",
            "--precision bf16",
        ),
        (
            {"flops_per_image": 2.0, "device": "NVIDIA", "precision": "bfloat16"},
            "small operations and memory, not matrix products",
            "--compile",
        ),
        (
            {"flops_per_image": 2.0, "device": "NVIDIA", "precision": "bfloat16", "compiled": True},
            "small operations and memory, not matrix products",
            "larger --batch-size than 10 fills it better",
        ),
    ],
)
def test_what_else_bounds_a_step(changes: dict[str, object], bound: str, sentence: str) -> None:
    advice = advise_step(replace(STEP, **changes), None, processors=2)  # type: ignore[arg-type]
    assert advice.bound == bound
    assert sentence in advice.sentence


@pytest.mark.parametrize(
    ("changes", "processors", "bound", "sentence"),
    [
        ({}, 2, "decoding and cropping", "take 85% of a worker's time"),
        ({}, 8, "the number of workers", "--workers 8 gives up to 400 images/s"),
        ({"parts": {"read": 0.9, "decode and crop": 0.1, "collate": 0.0}}, 2, "reading files", "reading takes 90%"),
        (
            {"images_per_second": 40.0},
            2,
            "handing batches over",
            "2 workers give 40 images/s, though one alone makes 50",
        ),
    ],
)
def test_what_bounds_the_data(changes: dict[str, object], processors: int, bound: str, sentence: str) -> None:
    advice = advise_data(replace(DATA, **changes), processors=processors)  # type: ignore[arg-type]
    assert advice.bound == bound
    assert sentence in advice.sentence
