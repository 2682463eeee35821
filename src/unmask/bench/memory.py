"""Memory of this process and of the machine."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """The most memory, in bytes, that this process ever held."""
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: of the machine, and of its container where it has a limit."""
    found = [limit - used for limit, used in _container(root) if limit > 0]
    meminfo = root / "proc" / "meminfo"
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    else:
        # Who knows what others hold: half of all there is.
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return max(0, min(found))


def _container(root: Path) -> list[tuple[int, int]]:
    """Limit and use of the control group, for both kinds of them. File pages that can be dropped are not counted."""
    group = root / "sys" / "fs" / "cgroup"
    files = (
        (group / "memory.max", group / "memory.current", group / "memory.stat", "inactive_file"),
        (
            group / "memory" / "memory.limit_in_bytes",
            group / "memory" / "memory.usage_in_bytes",
            group / "memory" / "memory.stat",
            "total_inactive_file",
        ),
    )
    found = []
    for limit, used, statistics, name in files:
        try:
            most = limit.read_text().strip()
            taken = int(used.read_text())
            figures = dict(line.split() for line in statistics.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            found.append((int(most), taken - int(figures.get(name, 0))))
    return found
