"""What a job does in its tasks when it is warned, told to stop, loses a task, or fails: with submitit's own tasks."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from unmask.training.submitted import SubmittedCommand, end_of

submitit = pytest.importorskip("submitit")

# In place of training, so that a test costs no import of torch: each start is a line in a file of its task, and what
# the ATTEMPTth start of task RANK does is a line of Python.
SCRIPT = """
import os, signal, sys, time
rank, done = int(os.environ["RANK"]), "starts-" + os.environ["RANK"]
open(done, "a").write(os.environ["WORLD_SIZE"] + "\\n")
attempt = len(open(done).readlines())
def stop(*_): sys.exit(75)
def ready():
    for number in (signal.SIGTERM, signal.SIGUSR2): signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    open(f"ready-{attempt}-{rank}", "w")
exec(sys.argv[1])
"""
WAIT = "ready(); time.sleep(60)"


@dataclass
class Started:
    """A job of two tasks on this machine."""

    folder: Path
    job: submitit.LocalJob[str]

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert not self.job.done(), self.log(0)
            assert time.monotonic() < deadline, self.log(0)
            time.sleep(0.01)

    def ready(self, attempt: int) -> None:
        self.wait_until(lambda: all((self.folder / f"ready-{attempt}-{rank}").exists() for rank in (0, 1)))

    def tasks(self) -> list[int]:
        controller = int(self.job.job_id)
        return [int(pid) for pid in Path(f"/proc/{controller}/task/{controller}/children").read_text().split()]

    def log(self, task: int) -> str:
        return (self.folder / "logs" / f"{self.job.job_id}_{task}_log.err").read_text()

    def starts(self) -> list[int]:
        return [len((self.folder / f"starts-{rank}").read_text().splitlines()) for rank in (0, 1)]

    def end(self) -> str:
        """What the first task returned; "none" where it left with an exit code."""
        self.job.wait()
        result = self.job.task(0).paths.result_pickle
        return self.job.task(0).result() if result.exists() else "none"


def start(folder: Path, line: str, *, restarts: int = 0, seconds_to_save: float = 10.0) -> Started:
    executor = submitit.AutoExecutor(folder / "logs", cluster="local")
    executor.update_parameters(tasks_per_node=2, timeout_min=60)
    command = SubmittedCommand([sys.executable, "-c", SCRIPT, line], str(folder), restarts, seconds_to_save, settle=0.3)
    return Started(folder, executor.submit(command))


def test_a_warning_stops_all_and_the_job_goes_on(tmp_path: Path) -> None:
    job = start(tmp_path, f"{WAIT} if attempt < 2 else None")
    job.ready(1)
    for task in job.tasks():
        os.kill(task, signal.SIGUSR2)
    # On a cluster the second task's command has it from the cluster or from the first; here nobody tells it.
    second = int(Path(f"/proc/{job.tasks()[1]}/task/{job.tasks()[1]}/children").read_text())
    os.kill(second, signal.SIGUSR2)
    assert job.end() == "finished"
    assert job.starts() == [2, 2]
    assert "Requeued job" in job.log(0) + (tmp_path / "logs" / f"{job.job.job_id}_0_log.out").read_text()


def test_a_warning_that_comes_while_the_command_starts_waits_for_it(tmp_path: Path) -> None:
    early = 'os.kill(os.getpid(), signal.SIGUSR2); open(f"sent-{rank}", "w"); ready(); time.sleep(60)'
    job = start(tmp_path, f"if attempt < 2: {early}")
    job.wait_until(lambda: all((tmp_path / f"sent-{rank}").exists() for rank in (0, 1)))
    assert job.end() == "none"
    # All saved and nobody warned the job itself: it is over, and what can be done is said.
    assert "submit the same again to go on" in job.log(0)
    assert job.starts() == [1, 1]


def test_a_command_that_cannot_stop_in_time_is_ended_and_goes_on(tmp_path: Path) -> None:
    deaf = "ready(); signal.signal(signal.SIGUSR2, signal.SIG_IGN) if rank == 0 else None; time.sleep(60 - 59 * rank)"
    job = start(tmp_path, f"if attempt < 2: {deaf}", seconds_to_save=0.5)
    job.ready(1)
    os.kill(job.tasks()[0], signal.SIGUSR2)
    assert job.end() == "finished"
    assert job.starts() == [2, 2]
    assert "not stopped within 0.5 s, so it is ended; its last checkpoint is intact" in job.log(0)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            "sys.exit(69)",
            "os.kill(os.getpid(), signal.SIGKILL)",
            "task 1: ended by SIGKILL (most likely because memory",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "sys.exit(69)",
            "task 0: ended by SIGKILL (most likely because memory",
        ),
        ("time.sleep(60)", "sys.exit(69)", "task 1: a process hung or was lost"),
    ],
)
def test_after_a_loss_the_job_goes_on_so_many_times(tmp_path: Path, first: str, second: str, said: str) -> None:
    line = f"if attempt < 3: exec({first!r} if rank == 0 else {second!r})"
    (tmp_path / "often").mkdir()
    often = start(tmp_path / "often", line, restarts=2)
    once = start(tmp_path, line, restarts=1)
    assert often.end() == "finished"
    assert often.starts() == [3, 3]
    assert said in often.log(0)
    assert "the job goes into the queue again, 0 more times at most after a loss" in often.log(0)
    assert once.end() == "none"
    assert once.starts() == [2, 2]
    assert "what was saved is intact; submit the same again to go on" in once.log(0)
    assert "Traceback" not in once.log(0)


def test_what_the_user_gave_wrongly_is_not_tried_again(tmp_path: Path) -> None:
    job = start(tmp_path, "print('no such data', file=sys.stderr); sys.exit(2 if rank else 69)", restarts=5)
    assert job.end() == "none"
    assert job.starts() == [1, 1]
    assert "no such data" in job.log(1)
    assert "task 1: exit code 2, with the reason in its log" in job.log(0)
    assert "Traceback" not in job.log(0)


def test_a_cancelled_job_saves_and_stays_away(tmp_path: Path) -> None:
    job = start(tmp_path, WAIT, restarts=5)
    job.ready(1)
    os.kill(int(job.job.job_id), signal.SIGTERM)
    assert job.end() == "none"
    assert job.starts() == [1, 1]
    assert "submit the same again to go on" in job.log(0)


def test_a_warning_at_the_very_end_spoils_nothing(tmp_path: Path) -> None:
    job = start(tmp_path, "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(0)); "
                          "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2}); "
                          "open(f'ready-{attempt}-{rank}', 'w'); time.sleep(60 if rank == 0 else 0)")  # fmt: skip
    job.ready(1)
    os.kill(job.tasks()[0], signal.SIGUSR2)
    assert job.end() == "finished"
    assert job.starts() == [1, 1]


@pytest.mark.parametrize(
    ("code", "end"),
    [(0, "finished"), (75, "stopped"), (130, "stopped"), (-15, "stopped"), (69, "lost"), (-9, "lost"), (2, "failed")],
)
def test_what_exit_codes_mean(code: int, end: str) -> None:
    assert end_of(code) == end
