"""Several ranks in forked processes, without the start-up of interpreters: for tests of what ranks tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def _rank(number: int, work: Callable[[int, Path], None], world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/meeting-{world}"
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=world, timeout=timedelta(seconds=120))
    work(number, folder)
    dist.barrier()
    # Nothing to tidy up, and gloo's threads take their time.
    os._exit(0)


def as_ranks(world: int, work: Callable[[int, Path], None], folder: Path) -> None:
    """Call `work(rank, folder)` in so many processes at once; an error in one of them is raised here."""
    torch.multiprocessing.start_processes(_rank, args=(work, world, folder), nprocs=world, start_method="fork")
