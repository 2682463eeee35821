"""Several processes that train together, one a device: how they are started, find each other and end.

They are torch's own: `torchrun -m unmask pretrain ...` starts them anywhere, `launch` starts them on this machine. What
they tell each other while training is in `unmask.ranks`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from unmask.errors import LOST, STOPPED, Failure, RankLost, ended_by
from unmask.ranks import rank, world_size
from unmask.training.watch import Watch, unwatched_run

SECONDS_TO_SAVE = 120
"""What processes that were told to stop have for it, before they are killed."""


def launched() -> bool:
    """Whether this process is one of several that were started to train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: torch.device) -> torch.device:
    """The device of this rank, where `device` names a kind of which each rank takes its own."""
    if str(device) != "cuda" or not launched():
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(device: torch.device, patience: float) -> Iterator[Watch]:
    """Be one of the ranks within this context; without others nothing is done.

    Each rank is watched by the others: where one dies or makes no progress for `patience` seconds, all end.
    """
    if not launched():
        yield unwatched_run()
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(own_device(device))
    # The watch ends what hangs and says who is to blame; torch's own limit would only say that time is up.
    limit = timedelta(days=1)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=limit)
    watch = Watch(rank(), world_size(), patience)
    try:
        yield watch
    except RuntimeError as error:
        if isinstance(error, Failure) or not _is_a_lost_connection(error):
            raise
        raise RankLost(
            f"rank {rank()} of {world_size()} lost its connection to the others, one of which has ended; "
            "what was saved is intact and the same command resumes"
        ) from error
    finally:
        watch.end()
        dist.destroy_process_group()


def _is_a_lost_connection(error: RuntimeError) -> bool:
    # gloo has no error of its own.
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection" in str(error)


def launch(devices: int, arguments: Sequence[str], *, restarts: int, say: Callable[[str], None]) -> int:
    """Run `unmask ARGUMENTS` in `devices` processes on this machine; the exit code is what one process would have had.

    Where one of them is killed or hangs, all start again, at most `restarts` times: they resume by themselves. Signals
    go to all of them. `say` is told what happens.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    for attempt in range(restarts + 1):
        try:
            _run(devices, arguments)
        except SignalException as told:
            say(f"stopped by {signal.Signals(told.sigval).name}; the same command resumes")
            return STOPPED
        except ChildFailedError as error:
            number, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
            if failure.exitcode > 0 and failure.exitcode != LOST:
                return int(failure.exitcode)
            if attempt == restarts:
                raise Failure(
                    f"{_end_of(number, failure)}; what was saved is intact and the same command resumes"
                ) from error
            say(
                f"{_end_of(number, failure)}; all {devices} start again from the last checkpoint "
                f"(restart {attempt + 1} of at most {restarts})"
            )
        else:
            return 0
    raise AssertionError("every attempt returns or raises")


def _run(devices: int, arguments: Sequence[str]) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"unmask-{os.getpid()}",
        # Which failures are worth another attempt, torch's agent cannot be told.
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2",
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    elastic_launch(config, sys.executable)("-m", "unmask", *arguments)


def _end_of(number: int, failure: Any) -> str:
    """What became of a process, in words."""
    if failure.exitcode == LOST:
        return "a process hung or was lost"
    return f"rank {number} (process {failure.pid}) was {ended_by(-failure.exitcode)}"
