"""The benchmark of memory: a process that grows is found."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from benchmarks.memory import EVERY, Growth, resident, train
from benchmarks.startup import photo_folder

from benchmarks import memory


def test_the_slope_is_that_after_the_warm_up() -> None:
    warm = tuple(100.0 * look for look in range(5))
    after = tuple(400 + 3 * EVERY / 1000 * look for look in range(1, 40))
    assert Growth(warm + after, 500.0).slope(5 * EVERY) == pytest.approx(3)


def test_memory_that_is_held_is_seen() -> None:
    size = 64 * 2**20
    before = resident()
    # Memory of its own, which no allocator has at hand already; untouched pages would not be resident.
    with mmap.mmap(-1, size) as held:
        held.write(b"1" * size)
        assert resident() - before > 60


def test_steps_are_taken_and_looked_at(tmp_path: Path) -> None:
    growth = train("conmim", str(photo_folder(tmp_path, 16)), 2 * EVERY)
    assert len(growth.resident) == 3
    assert growth.peak >= max(growth.resident)


@pytest.mark.parametrize(("step", "code"), [(0.0, 0), (0.5, 1)])
def test_a_method_that_grows_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float, code: int
) -> None:
    growth = Growth(tuple(100 + step * look for look in range(100)), 200.0)
    monkeypatch.setattr(memory, "measure", lambda methods, images, steps: dict.fromkeys(methods, growth))
    monkeypatch.setattr(sys, "argv", ["memory", "--out", str(tmp_path / "memory.json")])
    assert memory.main() == code
