"""`unmask submit -- pretrain DATA`: pre-training as a job of a cluster, which goes on by itself after preemption."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.commands.pretrain import Pretrain, check, default_name, read, resolve
from unmask.config import RunConfig
from unmask.run_folder import RunFolder
from unmask.training.slurm import JobConfig, library, seconds_to_save, submit
from unmask.training.submitted import SubmittedCommand

DEFAULT_WORKERS = 8
"""Processes of each task that decode, where neither they nor processors are given."""
USAGE = "as in: unmask submit --devices 8 -- pretrain DATA --out RUN"


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Pre-train as a job of a SLURM cluster: unmask submit [options] -- pretrain DATA [options].

    A task a device. The job goes into the queue again, and resumes, where it is preempted or its time is up.
    """

    job: Annotated[JobConfig, tyro.conf.arg(name="")] = JobConfig()
    log_folder: Annotated[Path | None, Doc("Logs and files of submitit. Default: RUN.jobs, beside the run folder.")] = (
        None
    )
    check_data: Annotated[bool, Doc("Open DATA before submitting; not where only the cluster's machines see it.")] = (
        True
    )


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask submit`."""
    own, inner = _halves(arguments)
    command = parse(Submit, own, command="submit")
    told, base = read(inner)
    _check(told, base, command)
    library()
    job, inner = _with_processors(told, command.job, inner)
    out = told.out or Path("runs") / default_name(told)
    logs = (command.log_folder or out.with_name(f"{out.name}.jobs")).absolute()
    submitted = submit(
        SubmittedCommand(
            command=[sys.executable, "-m", "unmask", "pretrain", *inner],
            folder=str(Path.cwd()),
            restarts=told.restarts,
            seconds_to_save=seconds_to_save(job),
        ),
        job,
        name=f"unmask-{out.name}",
        logs=logs,
        gpus=told.options.device != "cpu",
    )
    number = submitted.job_id
    local = job.cluster == "local"
    first = submitted.paths
    rows = {
        "submitted": f"job {number}: {job.tasks} {'task' if job.tasks == 1 else 'tasks'} on {job.nodes} "
        f"{'machine' if job.nodes == 1 else 'machines'}, {job.hours:g} h",
        "command": shlex.join(["unmask", "pretrain", *inner]),
        "out": str(out),
        "logs": f"{first.stdout} and {first.stderr.name}, a pair for each task",
        "follow": f"tail -F {shlex.quote(str(first.stdout))}" + ("" if local else f", squeue --job {number}"),
        "cancel": f"kill {number}" if local else f"scancel {number}",
    }
    console = Console(soft_wrap=True)
    for name, value in rows.items():
        console.print(f"{name:<10} {value}", highlight=False, markup=False)
    return 0


def _halves(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of the job, and the arguments of the command behind --."""
    given = list(arguments)
    if "--" not in given:
        if {"-h", "--help"} & set(given):
            return given, []
        raise ValueError(f"unmask submit needs a command behind --, {USAGE}")
    cut = given.index("--")
    own, inner = given[:cut], given[cut + 1 :]
    if not {"-h", "--help"} & set(own) and inner[:1] != ["pretrain"]:
        what = f"not {inner[0]!r}" if inner else "and nothing is there"
        raise ValueError(f"behind -- stands pretrain with its arguments, {what}; {USAGE}")
    return own, inner[1:]


def _check(told: Pretrain, base: RunConfig | None, command: Submit) -> None:
    """ValueError for what could not be trained, now and not when the job at last begins."""
    job = command.job
    if told.devices > 1:
        raise ValueError("--devices stands before the --: the devices of each machine, a task each")
    if told.options.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is auto, cpu or cuda here, not {told.options.device!r}: each task takes its own")
    # This machine may lack the devices of those that will train.
    here = replace(told, devices=job.tasks, options=replace(told.options, device="cpu"))
    check(here)
    if isinstance(told.batch_size, int) and told.batch_size % (job.tasks * (told.accumulate or 1)):
        among = f"{job.tasks} devices" + (f" in {told.accumulate} parts each" if told.accumulate else "")
        raise ValueError(f"a batch of {told.batch_size} cannot be shared equally by {among}")
    if not command.check_data:
        return
    # By memory, or by all images, it would be found out over there.
    batch = None if told.batch_size == "auto" else told.batch_size
    folder = RunFolder(told.out or Path("runs") / default_name(told))
    resolve(replace(here, batch_size=batch, normalisation="imagenet"), base, folder)


def _with_processors(told: Pretrain, job: JobConfig, inner: list[str]) -> tuple[JobConfig, list[str]]:
    """The job with as many processors as its tasks use, and the command with as many workers as fit.

    A task cannot find out by itself: some clusters show each task its own processors, others all of a machine.
    """
    workers = told.workers
    if job.cluster == "local":
        return job, inner
    if workers is None:
        workers = DEFAULT_WORKERS if job.cpus_per_task is None else max(1, job.cpus_per_task - 1)
        inner = [*inner, "--workers", str(min(workers, DEFAULT_WORKERS))]
    return (job if job.cpus_per_task is not None else replace(job, cpus_per_task=workers + 1)), inner
