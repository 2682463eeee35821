"""Ranks watch each other: where one hangs, all end within a stated time, and say which one it was.

A collective operation waits for every rank, so one that hangs stops all of them in silence. Each rank therefore has a
thread that writes down where its rank is, and reads where the others are as soon as its own makes no progress.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from unmask.errors import LOST

PLACES = ("starting", "measuring or saving", "waiting for the others", "loading data", "computing")
"""What a rank does, in the order in which it does it."""
LONGER = 10
"""A rank that measures or saves may take so many times longer: the others wait for it, and it is at work."""


@dataclass(frozen=True)
class Beat:
    """Where a rank is: its step, what it does there, and how often its thread has looked."""

    step: int
    place: str
    looked: int

    def words(self) -> str:
        """In words."""
        return f"{self.place} at step {self.step}"


class Watch:
    """Watches this rank's progress, which the rank tells by `mark`; the process ends where a rank hangs."""

    def __init__(self, rank: int, size: int, patience: float) -> None:
        self._rank = rank
        self._size = size
        self._patience = patience
        self._step = 0
        self._place = PLACES[0]
        self._moved = time.monotonic()
        self._ended = threading.Event()
        if size > 1:
            # A connection of its own: the process group's may be busy with what hangs.
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=timedelta(seconds=max(5.0, patience / 4)),
            )
            # Beats of an attempt before this one must not be taken for ours.
            self._prefix = f"unmask/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
            threading.Thread(target=self._look, daemon=True).start()

    def mark(self, step: int, place: str) -> None:
        """This rank is at `place` (one of PLACES) of step `step`."""
        self._step, self._place, self._moved = step, place, time.monotonic()

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _look(self) -> None:
        looked = 0
        before: dict[int, Beat] = {}
        pause = min(5.0, self._patience / 8)
        while not self._ended.wait(pause):
            looked += 1
            try:
                self._store.set(f"{self._prefix}/{self._rank}", json.dumps([self._step, self._place, looked]))
                still = time.monotonic() - self._moved
                if still < self._patience / 2:
                    before = {}
                    continue
                beats = self._beats()
            except Exception as error:  # whatever it is, nobody can be asked any more
                if not self._ended.is_set():
                    self._give_up(f"the place where ranks meet is gone ({_first_line(error)})")
                return
            silent = [
                number for number, beat in beats.items() if number in before and before[number].looked == beat.looked
            ]
            if still > self._patience:
                working = any(beat.place == PLACES[1] and number not in silent for number, beat in beats.items())
                if silent or not working or still > self._patience * LONGER:
                    self._give_up(self._culprit(beats, silent))
                    return
            # Compared over half of the patience: a thread that was only slow has looked again by then.
            before = before or beats

    def _beats(self) -> dict[int, Beat]:
        """What every rank has last written; one that never wrote is left out."""
        beats = {}
        for number in range(self._size):
            key = f"{self._prefix}/{number}"
            if self._store.check([key]):
                beats[number] = Beat(*json.loads(self._store.get(key)))
        return beats

    def _culprit(self, beats: dict[int, Beat], silent: list[int]) -> str:
        """Who hangs, in words."""
        missing = [number for number in range(self._size) if number not in beats]
        if missing:
            return f"{_named(missing)} never came"
        if silent:
            return f"{_named(silent)} gives no sign of life, last seen {beats[silent[0]].words()}"
        last = min(_order(beat) for beat in beats.values())
        behind = [number for number, beat in beats.items() if _order(beat) == last]
        where = beats[behind[0]].words()
        if len(behind) == self._size:
            return f"all ranks are {where}, and none goes on"
        return f"{_named(behind)} hangs, {where}"

    def _give_up(self, what: str) -> None:
        sys.stderr.write(
            f"unmask: rank {self._rank} has waited {self._patience:g} s: {what}; "
            "what was saved is intact and the same command resumes\n"
        )
        sys.stderr.flush()
        # The main thread waits inside of a collective operation, out of which there is no other way.
        os._exit(LOST)


def unwatched_run() -> Watch:
    """The watch of a run without other ranks: nobody is waited for."""
    return Watch(0, 1, float("inf"))


def _order(beat: Beat) -> tuple[int, int]:
    """How far a rank is; whoever has least is waited for."""
    return beat.step, PLACES.index(beat.place)


def _named(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
