"""What this machine has: processors, memory, devices, limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from unmask.bench.memory import available_memory
from unmask.defaults import processors

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU. Memory in bytes; None where it is not told."""

    name: str
    kind: str
    memory: int | None
    free: int | None
    bf16: bool
    trouble: str | None = None
    """Why it cannot compute."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about a machine, as seen from this process. Sizes in bytes."""

    system: str
    processors: int
    """Those that this process may use."""
    all_processors: int
    share: float | None
    """Processors' worth of time that the container may take; None: no limit."""
    memory: int
    available: int
    threads: int
    """Threads of torch."""
    variables: dict[str, str]
    """Of the environment, those that say how threads behave."""
    devices: tuple[Device, ...]
    cuda: str | None
    """The version of CUDA that torch is built for."""
    nvidia: bool
    """Whether the driver of an NVIDIA GPU is there."""
    shared: int | None
    """Free bytes of /dev/shm, through which workers hand over batches; None where there is none."""
    open_files: int
    open_files_possible: int
    compiled: str | None
    """Why compiled loops cannot be kept on disk; None where they can."""


def look_at_machine(root: Path = Path("/")) -> Machine:
    """The facts about this machine."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    shared = root / "dev" / "shm"
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processors=processors(),
        all_processors=os.cpu_count() or 1,
        share=container_share(root),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        available=available_memory(root),
        threads=torch.get_num_threads(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        devices=(*_cuda_devices(), *_mps_devices()),
        cuda=torch.version.cuda,
        nvidia=(root / "proc" / "driver" / "nvidia" / "version").exists(),
        shared=shutil.disk_usage(shared).free if sys.platform == "linux" and shared.is_dir() else None,
        open_files=now,
        open_files_possible=most,
        compiled=_compiled_cache(),
    )


def container_share(root: Path) -> float | None:
    """How many processors' worth of time the control group may take; None without a limit."""
    group = root / "sys" / "fs" / "cgroup"
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _cuda_devices() -> list[Device]:
    if not torch.cuda.is_available():
        return []
    return [_cuda_device(index) for index in range(torch.cuda.device_count())]


def _cuda_device(index: int) -> Device:
    name, memory, free, trouble = f"cuda:{index}", None, None, None
    bf16 = False
    try:
        facts = torch.cuda.get_device_properties(index)
        # Before the first context: asking for free memory makes one, which takes some.
        name, memory, bf16 = f"{name} {facts.name}", facts.total_memory, facts.major >= 8
        free = torch.cuda.mem_get_info(index)[0]
        values = torch.ones(64, 64, device=f"cuda:{index}")
        if (values @ values).sum().item() != 64**3:
            trouble = "it multiplies two matrices wrongly"
    except (RuntimeError, AssertionError) as error:
        # A GPU too new or too old for this build of torch, one that another process holds for itself, or a broken one.
        trouble = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return Device(name=name, kind="cuda", memory=memory, free=free, bf16=bf16, trouble=trouble)


def _mps_devices() -> list[Device]:
    if not torch.backends.mps.is_available():
        return []
    memory = torch.mps.recommended_max_memory()
    return [Device(name="mps", kind="mps", memory=memory, free=memory, bf16=False)]


def _compiled_cache() -> str | None:
    """Why Numba can keep no compiled loop of ours, in words."""
    from unmask.colour import pixels

    beside = Path(pixels.__file__).parent / "__pycache__"
    given = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    places = [Path(given)] if given else [beside, home]
    if any(_writable(place) for place in places):
        return None
    return f"neither {' nor '.join(map(str, places))} can be written" if len(places) > 1 else f"{given} is not writable"


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or it can be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        # Rights alone do not tell: a file system may take no file even of root.
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
