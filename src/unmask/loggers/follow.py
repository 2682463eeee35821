"""The process that feeds one tracker: it reads the log that a training writes, until the training ends.

Nothing that a tracker does (threads, forks, hooks at the exit, waiting for a network) reaches the training. The
training tells it, on standard input, what it runs on, and at its end one of ENDINGS.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from unmask.extras import in_a_line, installed
from unmask.loggers import TRACKERS
from unmask.loggers.base import Logger, Run, Value
from unmask.loggers.figures import flat
from unmask.loggers.memory import Memory, remember, remembered, tracker_folder, without_secrets
from unmask.loggers.tail import LogTail
from unmask.training.run_lock import sole_owner

ENDINGS = ("finished", "stopped")
LOOK = 0.5
"""Seconds between two looks into the log."""
FAREWELL = 120.0
"""Seconds after the end of the training at which this process ends, whatever the tracker does."""
PREDECESSOR = 20.0
"""Seconds that the follower of a training that was killed may still take."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""Nobody is told anything that the user did not ask for; who sets these is heard."""
LIBRARIES = ("unmask", "torch", "torchvision", "timm")


class Training:
    """What the training says on a stream; it is over when the stream ends, also where it was killed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.environment: dict[str, Value] = json.loads(stream.readline() or "{}")
        self.ending = ""
        self._over = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def over(self, within: float) -> bool:
        """Whether it is over at the latest in so many seconds."""
        return self._over.wait(within)

    def _listen(self) -> None:
        self.ending = self._stream.read().strip()
        self._over.set()


def follow(run: Path, tracker: str, training: Training) -> None:
    """Give the tracker all that it has not got of the run's log, until the training is over.

    Whatever the tracker raises is raised; what it had taken by then is kept in its folder.
    """
    folder = tracker_folder(run, tracker)
    folder.mkdir(parents=True, exist_ok=True)
    memory = remembered(folder) or Memory(identity=secrets.token_hex(4))
    tail = LogTail(run / "log.jsonl", after=memory.step)
    logger: Logger | None = None
    over = False
    while not over:
        over = training.over(within=LOOK)
        # The last step of a training that was killed may lack something; it is taken again.
        for step in tail.read(whole=over and training.ending in ENDINGS):
            if logger is None:
                # Kept first: an attempt that fails half-way must not leave a second run behind.
                memory = replace(memory, where="", trouble="", writer=os.getpid())
                remember(folder, memory)
                logger = TRACKERS[tracker]()
                known_as = logger.open(_described(run, folder, memory, training.environment))
                memory = replace(memory, known_as=known_as, where=without_secrets(logger.where))
            logger.record(step)
            memory = replace(memory, step=step.number)
            remember(folder, memory)
    if logger is not None:
        logger.close(finished=training.ending == "finished")


def main(run: Path, tracker: str) -> int:
    """The exit code of the process."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with suppress(OSError):
        os.nice(5)  # the training first
    training = Training(sys.stdin)
    threading.Thread(target=_end_at_last, args=(training,), daemon=True).start()
    folder = tracker_folder(run, tracker)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            try:
                follow(run, tracker, training)
            except Exception as error:
                memory = remembered(folder) or Memory(identity=secrets.token_hex(4))
                said = without_secrets(f"{type(error).__name__}: {in_a_line(error)}")
                remember(folder, replace(memory, where="", trouble=said, writer=os.getpid()))
                return 1
    except (OSError, ValueError):
        # The folder cannot be written, or another process has it.
        return 1
    return 0


def _end_at_last(training: Training) -> None:
    if training.over(within=threading.TIMEOUT_MAX):
        time.sleep(FAREWELL)
        os._exit(1)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Own the folder, where need be after the follower before. ValueError where that does not end."""
    until = time.monotonic() + PREDECESSOR
    while True:
        owner = sole_owner(folder)
        try:
            owner.__enter__()
            break
        except ValueError:
            if time.monotonic() > until:
                raise
            time.sleep(LOOK)
    try:
        yield
    finally:
        owner.__exit__(None, None, None)


def _described(run: Path, folder: Path, memory: Memory, environment: dict[str, Value]) -> Run:
    """What the tracker is told. ValueError where config.json cannot be read."""
    values = flat(json.loads((run / "config.json").read_text(encoding="utf-8")))
    del values["format"]
    versions = {f"environment.{name}": installed(name) for name in LIBRARIES}
    own = {f"environment.{key}": value for key, value in environment.items()}
    facts = values | versions | own | {"environment.python": platform.python_version()}
    # The evaluation of an encoder lies in the folder of its run.
    path = run.resolve()
    name = f"{path.parent.name}/{path.name}" if (path.parent / "config.json").exists() else path.name
    return Run(
        name=name,
        folder=folder,
        identity=memory.identity,
        facts={key: _plain(value) for key, value in facts.items() if value is not None},
        known_as=memory.known_as,
        step=memory.step,
    )


def _plain(value: object) -> Value:
    return value if isinstance(value, bool | int | float) else without_secrets(str(value))
