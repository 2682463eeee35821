"""Free memory is read from the machine, and from its container where that has less."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.bench.memory import available_memory, peak_memory

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB free."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * GIB // 1024} kB\nHugePages: 0\n")
    return tmp_path


def control_group(root: Path, version: int, *, limit: str, used: int, droppable: int) -> None:
    group = root / "sys" / "fs" / "cgroup"
    prefix = "total_" if version == 1 else ""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    group = group / "memory" if version == 1 else group
    group.mkdir(parents=True)
    (group / names[0]).write_text(f"{limit}\n")
    (group / names[1]).write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {droppable}\n")


def test_the_machine_tells_what_is_free(root: Path) -> None:
    assert available_memory(root) == 8 * GIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [(str(4 * GIB), 3 * GIB, 2 * GIB), (str(100 * GIB), 3 * GIB, 8 * GIB), (str(GIB), 4 * GIB, 0)],
)
def test_a_container_may_have_less(root: Path, version: int, limit: str, used: int, free: int) -> None:
    control_group(root, version, limit=limit, used=used, droppable=GIB)
    assert available_memory(root) == free


def test_a_container_without_a_limit_has_the_machines(root: Path) -> None:
    control_group(root, 2, limit="max", used=3 * GIB, droppable=0)
    assert available_memory(root) == 8 * GIB


def test_without_any_word_half_of_the_memory_is_taken(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > GIB // 2


def test_the_process_holds_something() -> None:
    assert 50 * 2**20 < peak_memory() < 2**40
