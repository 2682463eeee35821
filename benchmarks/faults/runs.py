"""Small runs that faults are done to, and a tally of what became of them.

The runs are those of the tests (`tests/tiny_runs.py`): the command `unmask pretrain` in processes of their own, forked
from one that has imported torch already, on a few drawn images.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import ROOT

sys.path.insert(0, str(ROOT / "tests"))
# The process from which commands are forked looks here, too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
from tiny_runs import (
    CommandProcess,
    Ended,
    RankProcesses,
    assert_same_weights,
    draw_images,
    freeze_while_saving,
    half_written,
    last_logged_step,
    read_records,
    tiny_options,
)

EVERY = 3
"""Steps between checkpoints."""

__all__ = [
    "EVERY",
    "CommandProcess",
    "Reference",
    "Tally",
    "children",
    "expect",
    "freeze_while_saving",
    "half_written",
    "kill",
    "last_logged_step",
    "owner",
    "read_records",
    "wait_past",
]


def expect(condition: object, sentence: str) -> None:
    """AssertionError where a promise is broken."""
    if not condition:
        raise AssertionError(sentence)


@dataclass
class Tally:
    """Tries of one fault: how many kept the promise, and how long each took."""

    fault: str
    promise: str
    until: str
    """What the seconds lead to."""
    tries: int = 0
    seconds: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """A sentence for each try whose promise was broken."""

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A try: what is expected in this context, and is not so, is a broken promise."""
        self.tries += 1
        try:
            yield
        except AssertionError as error:
            self.broken.append(f"{self.fault}, try {self.tries}: {error}")

    @contextmanager
    def closing(self) -> Iterator[None]:
        """What must hold after all tries: counts as a try only where it does not."""
        try:
            yield
        except AssertionError as error:
            self.tries += 1
            self.broken.append(f"{self.fault}, afterwards: {error}")

    @property
    def kept(self) -> int:
        """Tries that kept the promise."""
        return self.tries - len(self.broken)

    def row(self) -> tuple[str | float | int | None, ...]:
        """One line of the table."""
        middle = statistics.median(self.seconds) if self.seconds else None
        largest = max(self.seconds) if self.seconds else None
        kept = f"{self.kept} of {self.tries}"
        return self.fault, self.promise, kept, middle, largest, self.until if self.seconds else None


class Reference:
    """A run that nothing disturbs, and how to start the same one elsewhere, in one process or in two ranks.

    ConMIM has all that can be forgotten: a target, batch norm, random colours. CMAE has negatives of all ranks.
    """

    steps_taken = 0
    """Steps that all runs have taken so far, those that were taken again included."""

    def __init__(self, folder: Path, steps: int, *, ranks: int = 1) -> None:
        self.folder = folder
        self.steps = steps
        self.ranks = ranks
        self.data = draw_images(folder / "data")
        self.run = folder / "unbroken"
        ended = self.finish(self.run)
        expect([each.code for each in ended] == [0] * ranks, f"a run that nothing disturbs fails: {ended}")

    def command(self, run: Path, *more: str) -> list[str]:
        """The arguments of `unmask` that start or resume the run in a folder."""
        method = "conmim" if self.ranks == 1 else "cmae"
        figures = {
            "epochs": self.steps / 2,
            "lr": 0.01,
            "batch-size": 8,
            "workers": 0,
            "log-every": 1,
            "checkpoint-every": EVERY,
            "device": "cpu",
            "out": run,
        }
        options = [part for name, value in figures.items() for part in (f"--{name}", str(value))]
        return ["pretrain", str(self.data), *tiny_options(method), *options, *more]

    def start(self, run: Path, *more: str) -> list[CommandProcess]:
        """The processes of the run, the first rank first."""
        if self.ranks == 1:
            return [CommandProcess(self.command(run, *more), self.folder)]
        return RankProcesses(self.command(run, *more), self.folder, self.ranks).ranks

    def finish(self, run: Path, *more: str) -> list[Ended]:
        """Start or resume the run and wait for its end."""
        before = last_logged_step(run)
        ended = [process.end() for process in self.start(run, *more)]
        self.count(before, run)
        return ended

    def count(self, before: int, run: Path) -> None:
        """Note the steps since `before`."""
        Reference.steps_taken += max(0, last_logged_step(run) - before)

    def check_same_end(self, run: Path) -> None:
        """AssertionError where a finished run is not bit for bit what this one is, or its log has gaps."""
        assert_same_weights(run / "encoder.safetensors", self.run / "encoder.safetensors")
        for key in ("step", "loss", "grad_norm"):
            ours, theirs = ([record[key] for record in read_records(folder, "step")] for folder in (run, self.run))
            expect(ours == theirs, f"the logs of {run.name} and of the unbroken run differ in {key!r}")

    def check_finishes(self, run: Path) -> None:
        """Resume to the end and compare."""
        ended = self.finish(run)
        expect([each.code for each in ended] == [0] * self.ranks, f"the run does not finish: {ended}")
        self.check_same_end(run)


def wait_past(process: CommandProcess, run: Path, step: int) -> None:
    """Return as soon as the log is past a step."""
    process.wait_until(lambda: last_logged_step(run) > step)


def kill(process: CommandProcess) -> None:
    """End a process by SIGKILL, and wait for that."""
    process.signal(signal.SIGKILL)
    process.end()


def owner(run: Path) -> int:
    """The process that trains in a folder."""
    return int(json.loads((run / ".owner.json").read_text())["process"])


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
