"""The batch that fits: by trying on a GPU, by measuring growth on the CPU, never past what there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tiny_runs import tiny_settings
from unmask.bench import fitting
from unmask.bench.fitting import largest_batch, parts_that_fit
from unmask.errors import Failure
from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.training.trainer import TrainingConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIB = 2**20


def build() -> Method:
    return METHODS["mae"](tiny_settings("mae"))


class Machine:
    """A machine in which a step of n images holds `base` + `each` * n bytes of `memory`; it counts what was tried."""

    def __init__(self, *, memory: int, each: int, base: int = 0, held: int = 0) -> None:
        self.memory, self.each, self.base = memory, each, base
        self.peak = held
        self.tried: list[int] = []

    def step(self, count: int) -> None:
        self.tried.append(count)
        needed = self.base + self.each * count
        if needed > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = max(self.peak, needed)


def on_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch, *, most: int = 2**16) -> int:
    free = machine.memory - machine.peak
    monkeypatch.setattr(fitting, "peak_memory", lambda: machine.peak)
    monkeypatch.setattr(fitting, "available_memory", lambda: free)
    return fitting._on_cpu(machine.step, most)


@pytest.mark.parametrize("each", [20 * MIB, 40 * MIB, 100 * MIB])
@pytest.mark.parametrize("held", [0, 1500 * MIB])
def test_on_the_cpu_a_straight_line_is_drawn(each: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(memory=16_000 * MIB, each=each, base=1000 * MIB, held=held)
    budget = held + fitting.CPU_SHARE * (machine.memory - held)
    found = on_cpu(machine, monkeypatch)
    assert machine.base + each * found <= budget < machine.base + each * 4 * found
    # What was tried is small beside what was found.
    assert machine.peak <= budget


def test_on_the_cpu_what_fits_into_the_old_peak_is_tried_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(memory=16_000 * MIB, each=1, held=500 * MIB)
    assert on_cpu(machine, monkeypatch, most=64) == 64
    assert machine.tried == [2, 4, 8, 16, 32, 64]


def test_on_the_cpu_nothing_larger_is_tried_than_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(memory=1000 * MIB, each=100 * MIB, base=400 * MIB)
    found = on_cpu(machine, monkeypatch)
    assert found == 2
    assert machine.peak <= 0.7 * machine.memory


def test_on_the_cpu_even_the_smallest_may_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_cpu(Machine(memory=1000 * MIB, each=400 * MIB), monkeypatch) == 0


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine, int], int]:
    """The search on a GPU that is a `Machine`."""

    def search(machine: Machine, most: int) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (machine.memory, machine.memory))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(machine, "peak", 0))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: machine.peak)
        return fitting._on_gpu(machine.step, CUDA, most)

    return search


@pytest.mark.parametrize(
    ("each", "most", "found"),
    [(10, 1024, 64), (10, 32, 32), (500, 1024, 0), (450, 1024, 2), (1, 1, 1), (14, 1024, 64), (15, 1024, 32)],
)
def test_on_a_gpu_batches_grow_until_one_does_not_fit(
    on_cuda: Callable[[Machine, int], int], each: int, most: int, found: int
) -> None:
    # 64 * 15 would fit, but not with the margin.
    machine = Machine(memory=1000, each=each)
    assert on_cuda(machine, most) == found
    assert machine.tried == [min(2, most) * 2**number for number in range(len(machine.tried))]


def test_real_steps_are_taken() -> None:
    training = TrainingConfig(batch_size=1, workers=0, device="cpu")
    assert largest_batch(build, training, CPU, most=8) == 8


def test_where_nothing_fits_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "available_memory", lambda: -(2**40))
    training = TrainingConfig(batch_size=1, workers=0, device="cpu")
    with pytest.raises(Failure, match=r"^not even a batch of 2 images fits into the memory of cpu: choose a smaller"):
        largest_batch(build, training, CPU, most=8)


def test_other_devices_are_refused() -> None:
    training = TrainingConfig(batch_size=1, workers=0)
    with pytest.raises(ValueError, match=r"^--batch-size auto cannot measure the memory of mps: give a number$"):
        largest_batch(build, training, torch.device("mps"), most=8)


@pytest.mark.parametrize(
    ("batch", "largest", "parts"), [(4096, 256, 16), (256, 256, 1), (256, 512, 1), (100, 64, 2), (7, 4, 7), (6, 4, 2)]
)
def test_a_batch_is_cut_into_the_fewest_equal_parts(batch: int, largest: int, parts: int) -> None:
    assert parts_that_fit(batch, largest) == parts
