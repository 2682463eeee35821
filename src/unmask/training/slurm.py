"""Jobs for a cluster that SLURM runs, or for this machine: submitit hands them in, `SubmittedCommand` runs in them."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from unmask.extras import require
from unmask.training.submitted import SubmittedCommand

if TYPE_CHECKING:
    from submitit import Job

SECONDS_TO_REQUEUE = 20
"""Of the time between a cluster's warning and the end what is left for putting the job into the queue again."""
LOCAL_SECONDS_TO_SAVE = 25
"""Jobs on this machine have 30 seconds between warning and end, which submitit sets."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What a job asks of the cluster. What is not given is what the cluster has as its default."""

    partition: Annotated[str | None, Doc("Partition (queue) of the cluster.")] = None
    nodes: Annotated[int, Doc("Machines.")] = 1
    devices: Annotated[int, Doc("Devices of each machine, a task each.")] = 1
    hours: Annotated[float, Doc("Time limit; where it is over the job goes into the queue again and resumes.")] = 24.0
    cpus_per_task: Annotated[
        int | None, Doc("Processors of each task. Default: one more than --workers of the command, or 9.")
    ] = None
    memory: Annotated[float | None, Doc("Memory of each machine in GB.")] = None
    account: Annotated[str | None, Doc("Account to charge.")] = None
    qos: Annotated[str | None, Doc("Quality of service.")] = None
    constraint: Annotated[str | None, Doc("Features that the machines must have.")] = None
    requeues: Annotated[int, Doc("Times that it goes into the queue again because its time is up.")] = 20
    warning: Annotated[float, Doc("Seconds before the end at which it is told to save and stop.")] = 120.0
    cluster: Annotated[Literal["slurm", "local"], Doc("local: on this machine, to try it out.")] = "slurm"

    def __post_init__(self) -> None:
        least = {"nodes": (self.nodes, 1), "devices": (self.devices, 1), "requeues": (self.requeues, 0)}
        least["cpus-per-task"] = (1 if self.cpus_per_task is None else self.cpus_per_task, 1)
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise ValueError(f"--{name} must be at least {smallest}, got {value}")
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ValueError(f"--memory must be above 0 GB, got {self.memory:g}")
        if not 0 < self.hours < math.inf:
            raise ValueError(f"--hours must be above 0, got {self.hours:g}")
        if not 2 * SECONDS_TO_REQUEUE <= self.warning <= self.hours * 3600 / 2:
            raise ValueError(
                f"--warning must be from {2 * SECONDS_TO_REQUEUE} seconds to half of --hours, got {self.warning:g}"
            )
        if self.cluster == "local" and self.nodes > 1:
            raise ValueError(f"--cluster local is this machine alone: leave --nodes {self.nodes} out")

    @property
    def tasks(self) -> int:
        """Of all machines together."""
        return self.nodes * self.devices


def submit(command: SubmittedCommand, job: JobConfig, *, name: str, logs: Path, gpus: bool) -> Job[Any]:
    """Hand `command` in as a job, which logs into `logs`. With `gpus` each task gets one.

    ValueError where submitit or SLURM are missing, or where SLURM refuses; nothing is left of it then.
    """
    submitit = library()
    retries = {f"{job.cluster}_max_num_timeout": job.requeues}
    with _nothing_left_of_failures(logs):
        try:
            executor = submitit.AutoExecutor(logs, cluster=job.cluster, **retries)
        except RuntimeError as error:
            raise ValueError(
                "there is no SLURM on this machine (no srun): submit from one that belongs to the cluster, or try "
                "--cluster local"
            ) from error
        executor.update_parameters(
            name=name,
            nodes=job.nodes,
            tasks_per_node=job.devices,
            gpus_per_node=job.devices if gpus else None,
            cpus_per_task=job.cpus_per_task,
            mem_gb=job.memory,
            timeout_min=math.ceil(job.hours * 60),
            slurm_partition=job.partition,
            slurm_account=job.account,
            slurm_qos=job.qos,
            slurm_constraint=job.constraint,
            slurm_signal_delay_s=round(job.warning),
            # Also when a machine fails, or when the cluster takes it away without a warning.
            slurm_additional_parameters={"requeue": True},
            # Since version 22.05 srun does not take it from sbatch.
            slurm_srun_args=None if job.cpus_per_task is None else [f"--cpus-per-task={job.cpus_per_task}"],
        )
        try:
            # submitit prints what sbatch said, which our sentence has too.
            with contextlib.redirect_stderr(io.StringIO()):
                return executor.submit(command)
        except submitit.core.utils.FailedJobError as error:
            raise ValueError(f"sbatch refuses the job: {_in_a_line(error)}") from error
        except FileNotFoundError as error:
            raise ValueError("no sbatch is on this machine: submit from one that belongs to the cluster") from error


def seconds_to_save(job: JobConfig) -> float:
    """What a command has for stopping after a warning."""
    return LOCAL_SECONDS_TO_SAVE if job.cluster == "local" else job.warning - SECONDS_TO_REQUEUE


def library() -> Any:
    """The library submitit. ValueError where it is missing."""
    return require("slurm", "jobs on a cluster need")


@contextlib.contextmanager
def _nothing_left_of_failures(folder: Path) -> Iterator[None]:
    """Take away what an attempt in vain has written into a folder, and the folder where it is new."""
    before = set(folder.iterdir()) if folder.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            for new in set(folder.iterdir()) - before:
                new.unlink()
        raise


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "it gave no reason"
