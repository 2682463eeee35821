"""All that a training logs to beside log.jsonl: log.csv, written here, and trackers, each fed by its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from unmask.extras import EXTRAS, install_command
from unmask.loggers.base import Run, Value
from unmask.loggers.csv import CsvLogger
from unmask.loggers.memory import Memory, remembered, tracker_folder
from unmask.loggers.tail import LogTail

LOOK_EVERY = 2.0
"""Seconds between looks at how the trackers do."""
FIRST_PAUSE = 10.0
LONGEST_PAUSE = 600.0
"""Seconds until a tracker that failed is tried again; each pause is twice the one before."""
PATIENCE = {"finished": 60.0, "stopped": 10.0}
"""Seconds that trackers may take at the end of a training. What they have not got by then they get when the same
command is given again."""


def check_trackers(names: Sequence[str]) -> None:
    """ValueError where the library of one of them is missing."""
    for name in names:
        if name in EXTRAS:
            for module in EXTRAS[name].libraries:
                found = find_spec(module)
                # A folder of that name, such as wandb leaves behind, has no origin.
                if found is None or found.origin is None:
                    raise ValueError(
                        f"--log {name} needs the library {module}, which is missing: {install_command(name)}"
                    )


class Outlets:
    """Of a run in a folder. No method raises for what goes wrong with an outlet: `say` tells the user, once."""

    def __init__(self, run: Path, trackers: Sequence[str], say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say
        self._tail = LogTail(run / "log.jsonl")
        self._csv: CsvLogger | None = None
        self._names = tuple(dict.fromkeys(trackers))
        self._followers: list[_Follower] = []

    def start(self, environment: Mapping[str, Value]) -> None:
        """Begin, once log.jsonl is as it is to go on. `environment`: what the training runs on."""
        self._csv = CsvLogger()
        self._on_csv(lambda csv: csv.open(Run(name=self._run.name, folder=self._run, identity="", facts={})))
        self._followers = [_Follower(self._run, name, environment, self._say) for name in self._names]
        self.logged()

    def logged(self) -> None:
        """A line was added to log.jsonl."""
        self._write_csv(whole=False)
        for follower in self._followers:
            follower.look()

    def end(self, ending: str) -> None:
        """The training is over: `finished`, or `stopped` and may go on. Waits for the trackers, but not for ever."""
        self._write_csv(whole=True)
        for follower in self._followers:
            follower.tell(ending)
        until = monotonic() + PATIENCE[ending]
        for follower in self._followers:
            follower.wait(until)
        self._followers = []

    def _write_csv(self, *, whole: bool) -> None:
        def write(csv: CsvLogger) -> None:
            for step in self._tail.read(whole=whole):
                csv.record(step)

        self._on_csv(write)

    def _on_csv(self, do: Callable[[CsvLogger], object]) -> None:
        if self._csv is None:
            return
        try:
            do(self._csv)
        except OSError as error:
            self._say(f"warning: cannot write {self._csv.where} ({(error.strerror or 'error').lower()}); {GOES_ON}")
            self._csv = None


GOES_ON = "training goes on, and log.jsonl has everything"


class _Follower:
    """The process that feeds one tracker, started again where it fails."""

    def __init__(self, run: Path, name: str, environment: Mapping[str, Value], say: Callable[[str], None]) -> None:
        self._name = name
        self._folder = tracker_folder(run, name)
        self._command = [sys.executable, "-P", "-m", "unmask.loggers", str(run), name]
        self._facts = json.dumps(dict(environment)) + "\n"
        self._say = say
        self._process: subprocess.Popen[str] | None = None
        self._pause = FIRST_PAUSE
        self._again = 0.0
        self._next_look = 0.0
        self._shown = False
        self._warned = False
        self._start()

    def look(self) -> None:
        """See how it does, now and then."""
        now = monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY
        if self._process is None:
            if now >= self._again:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._failed(f"its process ended with code {code}")
        else:
            self._show()

    def tell(self, ending: str) -> None:
        """Tell it how the training ended."""
        if self._process is not None:
            assert self._process.stdin is not None
            with suppress(OSError):  # where it has ended itself, waiting will tell
                self._process.stdin.write(ending)
                self._process.stdin.close()

    def wait(self, until: float) -> None:
        """Until it has ended, or that moment has come."""
        rest = f"the same command again gives {self._name} what it lacks"
        if self._process is None:
            self._say(f"warning: {self._name} has not got all figures; {rest}")
            return
        try:
            code = self._process.wait(max(0.0, until - monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with what the tracker has started
            self._process.wait()
            self._say(f"warning: {self._name} did not take all figures in time; {rest}")
            return
        if code == 0:
            self._show()
        else:
            self._say(f"warning: {self._name} has not got all figures ({self._trouble(f'code {code}')}); {rest}")

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                # What a terminal or a cluster sends to the training is not for it.
                start_new_session=True,
            )
            assert self._process.stdin is not None
            self._process.stdin.write(self._facts)
            self._process.stdin.flush()
        except OSError as error:
            self._failed((error.strerror or "error").lower())

    def _failed(self, otherwise: str) -> None:
        if not self._warned:
            self._say(f"warning: {self._name} takes no figures ({self._trouble(otherwise)}); {GOES_ON}")
        self._warned = True
        self._process = None
        self._again = monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _trouble(self, otherwise: str) -> str:
        memory = self._memory()
        return otherwise if memory is None or not memory.trouble else memory.trouble

    def _show(self) -> None:
        """Where the run is found, once."""
        memory = None if self._shown else self._memory()
        if memory is not None and memory.where:
            self._say(f"{self._name}: {memory.where}")
            self._shown = True

    def _memory(self) -> Memory | None:
        """What this very process has kept."""
        memory = remembered(self._folder)
        return (
            memory if memory is not None and self._process is not None and memory.writer == self._process.pid else None
        )
