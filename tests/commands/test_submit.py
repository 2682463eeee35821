"""`unmask submit`: what it refuses, what it hands to SLURM, and a job on this machine that is warned and goes on."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny_runs import (
    PATIENCE,
    RankProcesses,
    assert_same_weights,
    draw_images,
    last_logged_step,
    quick_options,
    read_records,
    tiny_options,
)
from unmask.cli import main

BAD = [
    (
        ["pretrain", "data"],
        "unmask submit needs a command behind --, as in: unmask submit --devices 8 -- pretrain DATA",
    ),
    (["--", "evaluate", "knn"], "behind -- stands pretrain with its arguments, not 'evaluate'"),
    (["--"], "behind -- stands pretrain with its arguments, and nothing is there"),
    (["--partitio", "x", "--", "pretrain", "data"], "unknown option --partitio; did you mean --partition?"),
    (["--nodes", "0", "--", "pretrain", "data"], "--nodes must be at least 1, got 0"),
    (["--hours", "nan", "--", "pretrain", "data"], "--hours must be above 0, got nan"),
    (["--warning", "3", "--", "pretrain", "data"], "--warning must be from 40 seconds to half of --hours, got 3"),
    (["--cluster", "local", "--nodes", "2", "--", "pretrain", "data"], "--cluster local is this machine alone"),
    (["--", "pretrain", "nowhere"], "nowhere does not exist"),
    (["--", "pretrain", "data", "--epochz", "3"], "unknown option --epochz; did you mean --epochs?"),
    (["--", "pretrain", "data", "--epochs", "-3"], "epochs must be a number above 0, got -3.0"),
    (["--", "pretrain", "data", "--devices", "2"], "--devices stands before the --"),
    (["--", "pretrain", "data", "--device", "cuda:1"], "--device is auto, cpu or cuda here, not 'cuda:1'"),
    (["--devices", "3", "--", "pretrain", "data", "--batch-size", "8"], "a batch of 8 cannot be shared equally by 3"),
    (["--", "pretrain", "data", "--batch-size", "8"], "there is no SLURM on this machine (no srun)"),
]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    draw_images(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_mistakes_are_told_at_once(
    arguments: list[str], sentence: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"unmask: {sentence}"), err
    assert err.count("\n") == 1
    assert [entry.name for entry in desk.iterdir()] == ["data"]


def test_a_missing_library_is_named(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["submit", "--", "pretrain", "data", "--batch-size", "8"]) == 2
    assert capsys.readouterr().err.endswith("which is missing: pip install 'unmask[slurm]'\n")


def fake_slurm(desk: Path, sbatch: str) -> None:
    """`srun` and `sbatch` as the path has them on a cluster's machines."""
    (desk / "bin").mkdir()
    for name, line in (("srun", "exit 0"), ("sbatch", sbatch)):
        file = desk / "bin" / name
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)


def test_what_sbatch_gets(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_slurm(desk, f'cat "$1" > {desk}/batch.sh; echo "Submitted batch job 12"')
    job = [
        "--nodes",
        "2",
        "--devices",
        "4",
        "--partition",
        "gpu",
        "--memory",
        "200",
        "--hours",
        "1.5",
        "--account",
        "us",
    ]
    more = ["--qos", "high", "--constraint", "a100", "--warning", "300"]
    assert main(["submit", *job, *more, "--", "pretrain", "data", "--batch-size", "8", "--out", "runs/x"]) == 0
    lines = (desk / "batch.sh").read_text().splitlines()
    for option in (
        "account=us", "constraint=a100", "cpus-per-task=9", "gpus-per-node=4", "job-name=unmask-x", "mem=200GB",
        "nodes=2", "ntasks-per-node=4", "open-mode=append", "partition=gpu", "qos=high", "requeue",
        "signal=USR2@300", "time=90",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--cpus-per-task=9" in srun
    out = capsys.readouterr().out
    assert "submitted  job 12: 8 tasks on 2 machines, 1.5 h" in out
    assert "command    unmask pretrain data --batch-size 8 --out runs/x --workers 8" in out
    assert f"logs       {desk}/runs/x.jobs/12_0_log.out and 12_0_log.err, a pair for each task" in out
    assert "cancel     scancel 12" in out
    assert (desk / "runs" / "x.jobs" / "12_submitted.pkl").exists()
    assert not (desk / "runs" / "x").exists()


def test_on_processors_no_gpu_is_asked_for(desk: Path) -> None:
    fake_slurm(desk, f'cat "$1" > {desk}/batch.sh; echo "Submitted batch job 12"')
    arguments = ["--cpus-per-task", "3", "--", "pretrain", "data", "--batch-size", "8", "--device", "cpu"]
    assert main(["submit", *arguments]) == 0
    text = (desk / "batch.sh").read_text()
    assert "gpus" not in text
    assert "#SBATCH --cpus-per-task=3" in text


def test_what_slurm_refuses_leaves_nothing(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_slurm(desk, "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    command = ["submit", "--partition", "nope", "--", "pretrain", "data", "--batch-size", "8", "--out", "x"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said == "unmask: sbatch refuses the job: sbatch: error: invalid partition specified: nope\n"
    assert not (desk / "x.jobs").exists()
    (desk / "x.jobs").mkdir()
    (desk / "x.jobs" / "11_0_log.out").write_text("of an earlier job")
    assert main(command) == 2
    assert [entry.name for entry in (desk / "x.jobs").iterdir()] == ["11_0_log.out"]


def children(process: int) -> list[int]:
    """Processes that a process has started and that still run."""
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 3 * PATIENCE  # two tasks begin anew, with all their imports
    while not reached():
        assert time.monotonic() < deadline, "the job hangs"
        time.sleep(0.01)


def has_ended(process: int) -> bool:
    try:
        return os.waitpid(process, os.WNOHANG)[0] == process
    except ChildProcessError:
        return True


def test_a_job_that_is_warned_goes_into_the_queue_again_and_ends_as_it_would_have(
    desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SLURM warns every process of a job: tasks, commands, and their data workers."""
    options = [*tiny_options("cmae"), "--lr", "0.01", *quick_options(epochs=15, workers=1)]
    unbroken = RankProcesses(["pretrain", "data", *options, "--out", "unbroken"], desk, 2)
    job = ["--cluster", "local", "--devices", "2", "--hours", "1"]
    assert main(["submit", *job, "--", "pretrain", "data", *options, "--out", "run"]) == 0
    controller = int(re.findall(r"submitted +job (\d+): 2 tasks on 1 machine", capfd.readouterr().out)[0])
    run, log = desk / "run", desk / "run.jobs" / f"{controller}_0_log"
    try:
        wait_until(lambda: last_logged_step(run) >= 3 or has_ended(controller))
        tasks = children(controller)
        commands = [command for task in tasks for command in children(task)]
        workers = [worker for command in commands for worker in children(command)]
        assert (len(tasks), len(commands)) == (2, 2), log.with_suffix(".err").read_text()
        assert workers
        for process in (*workers, *commands, *tasks):
            os.kill(process, signal.SIGUSR2)
        assert [(rank.code, rank.err) for rank in unbroken.end()] == [(0, ""), (0, "")]
        wait_until(lambda: has_ended(controller))
    finally:
        if not has_ended(controller):
            os.kill(controller, signal.SIGTERM)
    printed = log.with_suffix(".out").read_text()
    assert "all saved; the same command resumes" in printed
    assert "resuming run at step" in printed
    assert_same_weights(run / "encoder.safetensors", desk / "unbroken" / "encoder.safetensors")
    records = [read_records(desk / name, "step") for name in ("run", "unbroken")]
    assert [record["step"] for record in records[0]] == list(range(1, 31))
    assert [record["loss"] for record in records[0]] == [record["loss"] for record in records[1]]
