"""What runs in each task of a submitted job: a command in a process of its own, brought through preemption.

submitit keeps one object for all tasks of a job and calls it in each. At the cluster's warning it calls `checkpoint` of
the first task's, and puts into the queue again what that returns (submitit.core.job_environment). The first task alone
decides; others end quietly, and leave a note beside the logs where their command did not end well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from unmask.errors import LOST, STOPPED, ended_by
from unmask.training.signals import warnings_held_back

if TYPE_CHECKING:
    from submitit import JobEnvironment

PAUSE = 0.1
"""Seconds between two looks at a process."""
ROUNDS = 6
"""How often the first task looks for notes of others (every `settle` seconds) before it ends a command that waits for
them."""
End = Literal["finished", "stopped", "lost", "failed"]


def end_of(code: int) -> End:
    """What the exit code of a command means; negative where a signal ended it."""
    if code == 0:
        return "finished"
    # Told to stop, some of them so early that the command could not yet stop by itself.
    if code in (STOPPED, 128 + signal.SIGINT, -signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR1, -signal.SIGUSR2):
        return "stopped"
    return "lost" if code == LOST or code < 0 else "failed"


@dataclass
class SubmittedCommand:
    """A command, run once a task as a rank of torch.distributed. It must stop at SIGUSR2 with exit code STOPPED, go on
    when it is started again, and end with LOST where another rank is gone.

    Strings and numbers alone, so that the file that submitit keeps of it holds no code. `restarts` times it goes into
    the queue again after a loss; `seconds_to_save` is what it has to stop in; `settle` is by how many seconds the tasks
    may be behind each other.
    """

    command: Sequence[str]
    folder: str
    restarts: int
    seconds_to_save: float
    settle: float = 5.0

    def __post_init__(self) -> None:
        self._process: _Process | None = None

    def __call__(self) -> End:
        """Run the command. SystemExit, with the command's exit code, where the first task's does not end well."""
        import submitit
        from submitit.core.utils import UncompletedJobError

        environment = submitit.JobEnvironment()
        _note(environment, environment.global_rank).unlink(missing_ok=True)  # of an attempt before this one
        # Every task sees all devices of its machine, as with torchrun: LOCAL_RANK chooses.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ.setdefault("OMP_NUM_THREADS", str(_threads()))
        self._start()
        assert self._process is not None
        if environment.global_rank > 0:
            return self._end_quietly(environment, self._process.wait())
        try:
            code = self._wait_for_all(environment, self._process)
            if code != 0:
                code = self._decide(environment, code)
        except UncompletedJobError:
            # Warned, and not put into the queue again: by our `checkpoint`, or because time was up too often.
            code = self._process.wait()
            if end_of(code) == "stopped":
                _say("time was up more often than --requeues says")
        end = end_of(code)
        if end == "finished":
            return end
        if end != "failed":
            _say("what was saved is intact; submit the same again to go on")
        raise SystemExit({"stopped": STOPPED, "lost": LOST, "failed": code}[end])

    def checkpoint(self) -> Any:
        """Called at the cluster's warning: stop the command and say what goes into the queue again, None for nothing.

        A command that cannot stop in time is ended: what it has saved before is intact.
        """
        from submitit.helpers import DelayedSubmission

        process = self._process
        if process is None:
            return DelayedSubmission(self)
        if process.code is None:
            process.tell(signal.SIGUSR2)
            if process.wait_for(self.seconds_to_save) is None:
                _say(f"not stopped within {self.seconds_to_save:g} s, so it is ended; its last checkpoint is intact")
                process.tell(signal.SIGKILL)
                process.wait()
                return DelayedSubmission(replace(self))
        end = end_of(process.wait())
        if end == "stopped":
            return DelayedSubmission(replace(self))
        if end == "lost" and self.restarts > 0:
            return DelayedSubmission(replace(self, restarts=self.restarts - 1))
        return None

    def _start(self) -> None:
        # submitit only notes SIGTERM, and an interrupt would leave the command alone.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        # A warning that comes while the command still imports things waits there until it can stop.
        with warnings_held_back():
            self._process = _Process(self.command, self.folder)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            raise SystemExit(STOPPED)
        self._process.tell(signal.Signals(number))

    def _end_quietly(self, environment: JobEnvironment, code: int) -> End:
        """Not with an exit code: many clusters would take that for the end of the job, before the first task has
        put it into the queue again."""
        if end_of(code) in ("lost", "failed"):
            _note(environment, environment.global_rank).write_text(str(code), encoding="utf-8")
        return end_of(code)

    def _wait_for_all(self, environment: JobEnvironment, process: _Process) -> int:
        """The exit code of the first task's command, which is ended where it waits for one that is gone."""
        rounds = 0
        while (code := process.wait_for(self.settle)) is None:
            rounds = rounds + 1 if _notes(environment) else 0
            if rounds > ROUNDS:
                process.tell(signal.SIGKILL)
        return code

    def _decide(self, environment: JobEnvironment, code: int) -> int:
        """The exit code of all tasks, unless the job goes into the queue again: then nothing returns."""
        if end_of(code) == "failed":
            return code
        # The warning may reach this machine later than another, and the others' notes too.
        time.sleep(self.settle)
        if end_of(code) == "stopped":
            return code
        notes = _notes(environment)
        for task, ended in notes.items():
            _say(f"task {task}: {_words(ended)}")
        failed = [ended for ended in notes.values() if end_of(ended) == "failed"]
        if failed:
            return failed[0]
        _say(f"task 0: {_words(code)}")
        if self.restarts > 0:
            _say(f"the job goes into the queue again, {self.restarts - 1} more times at most after a loss")
            # As if the cluster had warned: submitit has no other call for it.
            signal.raise_signal(warning_signal())
        return code


class _Process:
    """A started command. A thread waits for its end: what handles a signal in the midst of a wait may wait too."""

    def __init__(self, command: Sequence[str], folder: str) -> None:
        self.code: int | None = None
        self._process = subprocess.Popen(list(command), cwd=folder)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        self.code = self._process.wait()

    def tell(self, number: signal.Signals) -> None:
        if self.code is None:
            self._process.send_signal(number)

    def wait_for(self, seconds: float) -> int | None:
        """Its exit code, None where it still runs after so many seconds."""
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            time.sleep(PAUSE)
        return self.code

    def wait(self) -> int:
        while self.code is None:
            time.sleep(PAUSE)
        return self.code


def warning_signal() -> signal.Signals:
    """The signal by which submitit is warned: SIGUSR2, or what SUBMITIT_PREEMPT_SIGNAL says."""
    import submitit

    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


def _note(environment: JobEnvironment, task: int) -> Path:
    """Where a task says with which exit code its command has ended; all machines see it."""
    return environment.paths.folder / f"{environment.job_id}_{task}_ended.txt"


def _notes(environment: JobEnvironment) -> dict[int, int]:
    """Exit codes of commands of other tasks that have not ended well."""
    files = environment.paths.folder.glob(f"{environment.job_id}_*_ended.txt")
    texts = {int(file.stem.split("_")[-2]): file.read_text(encoding="utf-8") for file in files}
    return {task: int(text) for task, text in sorted(texts.items()) if text}


def _threads() -> int:
    """Threads of a task, where the user does not say."""
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    if given is not None:
        return int(given)
    return max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"]))


def _words(code: int) -> str:
    """How a command has ended."""
    if code == LOST:
        return "a process hung or was lost"
    if code > 0:
        return f"exit code {code}, with the reason in its log"
    return ended_by(-code)


def _say(sentence: str) -> None:
    sys.stderr.write(f"unmask: {sentence}\n")
    sys.stderr.flush()
