"""What all benchmarks share: entries that take turns, facts about the machine, and a file of results.

A benchmark is a module with a docstring (what is compared with what, and how), a `main` that measures, and one call of
`publish`, which prints a table and writes `benchmarks/results/NAME.json`; `python -m benchmarks.make_readme` makes
README.md of those files.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "unmask")


@dataclass(frozen=True)
class Timing:
    """Seconds of one entry over all rounds."""

    wall: list[float]
    cpu: list[float]
    """Of this process and all its threads; children are not in it."""

    @property
    def seconds(self) -> float:
        """Median of the wall-clock seconds."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median of the processor seconds: what other programs on the machine disturb least."""
        return statistics.median(self.cpu)


def take_turns(entries: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1) -> dict[str, Timing]:
    """Time all entries round by round, so that a machine whose speed drifts treats them alike.

    The order turns back in every other round: no entry always comes after the same one. Work on a GPU is waited for.
    """
    timings = {name: Timing([], []) for name in entries}
    for turn in range(warm_up + rounds):
        names = list(entries) if turn % 2 == 0 else list(reversed(entries))
        for name in names:
            _wait()
            wall, cpu = perf_counter(), process_time()
            entries[name]()
            _wait()
            if turn >= warm_up:
                timings[name].wall.append(perf_counter() - wall)
                timings[name].cpu.append(process_time() - cpu)
    return timings


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median of first / second, round by round: how many times the second is quicker."""
    return statistics.median(one / other for one, other in zip(first, second, strict=True))


def facts(*, seed: int, **more: Any) -> dict[str, Any]:
    """The machine, the versions, the command and the seed: what a result is worth nothing without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    } | more


def command() -> str:
    """How to run the same again."""
    module = Path(sys.argv[0]).resolve()
    name = module.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") if ROOT in module.parents else "?"
    set_before = [f"{key}={os.environ[key]}" for key in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS") if os.environ.get(key)]
    return " ".join([*set_before, "python -m", name, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPU."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": model or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


@dataclass(frozen=True)
class Table:
    """Rows of plain values under named columns, with a sentence above."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]

    def markdown(self) -> str:
        """The table as README.md has it."""
        lines = [self.caption, "", "| " + " | ".join(self.columns) + " |", "|" + " --- |" * len(self.columns)]
        lines += ["| " + " | ".join(shown(value) for value in row) + " |" for row in self.rows]
        return "\n".join(lines)


def shown(value: str | float | int | None) -> str:
    """A value with three significant digits; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def publish(name: str, tables: Sequence[Table], *, out: Path | None = None, **values: Any) -> None:
    """Print the tables and write them, with `values` (facts and raw figures), to `out` or results/NAME.json."""
    for table in tables:
        print(table.markdown(), end="\n\n")
    file = out or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"name": name, **values, "tables": [asdict(table) for table in tables]}
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {file}")
