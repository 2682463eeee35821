"""The largest batch that fits into memory, found by taking real steps: `--batch-size auto`.

On a GPU batches grow until one does not fit. On the CPU nobody may ever run out of memory, so the growth of small ones
is measured and carried on in a straight line: what a step keeps is proportional to the batch, beside a constant.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from unmask.bench.made import made_batch
from unmask.bench.memory import available_memory, peak_memory
from unmask.errors import Failure
from unmask.methods.base import Method
from unmask.training.trainer import Trainer, TrainingConfig

GPU_SHARE = 0.9
"""Share of a GPU's free memory that a step may take: evaluations on the way and fragments want some, too."""
CPU_SHARE = 0.7
"""Share of the machine's free memory that a step may take: data workers and other programs want some, too."""
CLEAR_GROWTH = 32 * 2**20
"""Bytes by which the process must grow from one batch to the next before its growth is believed."""


def largest_batch(build: Callable[[], Method], training: TrainingConfig, device: torch.device, *, most: int) -> int:
    """The largest power of two, up to `most`, of images that a step of the method holds in memory.

    Takes steps of a method of its own, and leaves nothing behind. Failure where not even the smallest batch fits.
    """
    assert most & (most - 1) == 0
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--batch-size auto cannot measure the memory of {device}: give a number")
    found = _search(build(), training, device, most)
    # The trial's weights and optimizer are gone by now; what they lay in shall be free for the run.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if found == 0:
        raise Failure(
            f"not even a batch of {_smallest(most)} images fits into the memory of {device}: "
            "choose a smaller encoder or smaller images"
        )
    return found


def _search(method: Method, training: TrainingConfig, device: torch.device, most: int) -> int:
    trainer = Trainer(method, training, steps_per_epoch=10_000, device=device)

    def step(count: int) -> None:
        trainer.train_step([made_batch(method, count)])

    return _on_gpu(step, device, most) if device.type == "cuda" else _on_cpu(step, most)


def parts_that_fit(batch_size: int, largest: int) -> int:
    """The fewest equal parts of a batch of which each holds at most `largest` images."""
    return next(
        parts for parts in range(1, batch_size + 1) if batch_size % parts == 0 and batch_size // parts <= largest
    )


def _smallest(most: int) -> int:
    """Never one image where two are allowed: batch norm and contrasts need two."""
    return min(2, most)


def _on_gpu(step: Callable[[int], None], device: torch.device, most: int) -> int:
    found, count = 0, _smallest(most)
    free, _ = torch.cuda.mem_get_info(device)
    limit = GPU_SHARE * (free + torch.cuda.memory_reserved(device))
    while count <= most:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(count)
        except torch.OutOfMemoryError:
            break
        if torch.cuda.max_memory_allocated(device) > limit:
            break
        found, count = count, 2 * count
    return found


def _on_cpu(step: Callable[[int], None], most: int) -> int:
    budget = peak_memory() + CPU_SHARE * available_memory()
    count = _smallest(most)
    peaks = [peak_memory()]
    while True:
        step(count)
        peaks.append(peak_memory())
        if peaks[-1] > budget:
            return count // 2 if count > _smallest(most) else 0
        if count == most:
            return most
        # The peak of the whole life: growth counts only where the batch before had set a peak of its own.
        steady = len(peaks) > 2 and min(peaks[-1] - peaks[-2], peaks[-2] - peaks[-3]) >= CLEAR_GROWTH
        # If all that the process has grown came from this batch, the next one takes as much again.
        if steady or peaks[-1] + (peaks[-1] - peaks[0]) > budget:
            break
        count *= 2
    # Without two clear steps: as though everything had come from the images.
    each = (peaks[-1] - peaks[-2]) / (count // 2) if steady else (peaks[-1] - peaks[0]) / count
    while 2 * count <= most and peaks[-1] + each * count <= budget:
        peaks.append(round(peaks[-1] + each * count))
        count *= 2
    return count
