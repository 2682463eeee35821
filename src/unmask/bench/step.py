"""A training step on this machine: images a second, where the time goes, memory, and the share of what is possible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import torch

from unmask.bench.clock import PhaseClock, wait_for
from unmask.bench.made import made_batch
from unmask.bench.memory import peak_memory
from unmask.bench.work import count_work, matrix_rate
from unmask.data.batch import Batch
from unmask.methods.base import Method
from unmask.training.trainer import Trainer, TrainingConfig, choose_precision

WARM_UP = 3
"""Steps of a GPU, or of compiled code, before it runs as it will; elsewhere the first is like any other."""
FEWEST_STEPS, MOST_STEPS = 3, 200
COUNTED_IMAGES = 4
"""Images of the pass in which operations are counted: an image's share hardly depends on their number."""


@dataclass(frozen=True, kw_only=True)
class StepMeasure:
    """What was measured of a method's training step. All seconds are those of one step."""

    device: str
    precision: str
    compiled: bool
    threads: int
    batch_size: int
    steps: int
    seconds: float
    phases: dict[str, float]
    """Seconds of each part (`data` among them where a loader was used); what is left is between them."""
    peak_memory: int
    """Bytes: on a GPU of all tensors together, on the CPU of the whole process."""
    flops_per_image: float
    matrix_rate: float | None
    """Operations a second in matrix products of the network's own shapes and precision; None for networks without."""

    @property
    def images_per_second(self) -> float:
        """With everything."""
        return self.batch_size / self.seconds

    @property
    def step_images_per_second(self) -> float:
        """If data were always there."""
        return self.batch_size / max(self.seconds - self.phases.get("data", 0.0), 1e-9)

    @property
    def matrix_share(self) -> float | None:
        """Share of the matrix rate that the step reaches, waiting for data left out."""
        if self.matrix_rate is None:
            return None
        return self.flops_per_image * self.step_images_per_second / self.matrix_rate


def measure_step(
    method: Method,
    training: TrainingConfig,
    *,
    device: torch.device,
    batches: Iterator[Batch] | None,
    steps: int | None,
    seconds: float,
) -> StepMeasure:
    """Measure steps of `method` on what `batches` gives, or on one made batch again and again.

    `steps` None: as many as fit in so many seconds, three at least.
    """
    clock = PhaseClock(device)
    trainer = Trainer(method, training, steps_per_epoch=10_000, device=device, phase=clock)
    work = count_work(method, made_batch(method, min(COUNTED_IMAGES, training.batch_size)).to(device))
    source = _repeated(made_batch(method, training.batch_size), device) if batches is None else batches

    def go(count: int) -> float:
        """Seconds of so many steps."""
        began = perf_counter()
        for _ in range(count):
            with nullcontext() if batches is None else clock("data"):
                parts = list(islice(source, training.parts))
            trainer.take_step(parts)
        trainer.settle()
        wait_for(device)
        return perf_counter() - began

    if device.type != "cpu" or training.compile:
        go(WARM_UP - 1)
    one = go(1)
    count = steps or max(FEWEST_STEPS, min(MOST_STEPS, math.ceil(seconds / max(one, 1e-9))))
    clock.clear()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken = go(count)
    dtype = choose_precision(training.precision, device) or torch.float32
    return StepMeasure(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        precision=str(dtype).removeprefix("torch."),
        compiled=training.compile,
        threads=torch.get_num_threads(),
        batch_size=training.batch_size,
        steps=count,
        seconds=taken / count,
        phases={name: value / count for name, value in clock.seconds().items()},
        peak_memory=_peak_memory(device),
        flops_per_image=work.flops,
        matrix_rate=matrix_rate(work, training.part_size, dtype=dtype, device=device),
    )


def _repeated(batch: Batch, device: torch.device) -> Iterator[Batch]:
    """The same batch for ever, from where a loader's batches lie."""
    if device.type == "cuda":
        batch = batch.pin_memory()
    while True:
        yield batch


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()
