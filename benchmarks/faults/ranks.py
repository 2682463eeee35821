"""Ranks that are killed or freeze: the others end and say so, the launcher starts all again."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from time import perf_counter

from benchmarks.faults.runs import (
    EVERY,
    CommandProcess,
    Reference,
    Tally,
    children,
    expect,
    last_logged_step,
    owner,
    wait_past,
)
from unmask.training.checkpoint import saved_steps

GROUP = 5
PATIENCE = ("--patience", "15")


def kill_ranks(reference: Reference, kills: int, chance: random.Random) -> list[Tally]:
    """SIGKILL for the first of two ranks, for the second, for both, in turns; then the same command in both again."""
    other = Tally("one of 2 ranks killed", "the other ends with a sentence", "the other has ended")
    again = Tally("1 or 2 of 2 ranks killed, both started again", "goes on from the newest checkpoint", "past it")
    same = Tally(f"the end of a run of 2 ranks killed {min(GROUP, kills)} times", "as unbroken, bit for bit", "")
    for first in range(0, kills, GROUP):
        run = reference.folder / f"killed-{first}"
        for kill in range(first, min(first + GROUP, kills)):
            victims = ((0,), (1,), (0, 1))[kill % 3]
            before = last_logged_step(run)
            ranks = reference.start(run, *PATIENCE)
            with again.attempt():
                wait_past(ranks[0], run, before + chance.randrange(3))
                time.sleep(chance.random() / 20)
                began = perf_counter()
                for victim in victims:
                    ranks[victim].signal(signal.SIGKILL)
                ended = [rank.end() for rank in ranks]
                seconds = perf_counter() - began
                reference.count(before, run)
                if len(victims) == 1:
                    with other.attempt():
                        other.seconds.append(seconds)
                        left = ended[1 - victims[0]]
                        expect(left.code == 69, f"the other ended with {left.code}")
                        expect(
                            left.err.startswith("unmask: rank ") and left.err.count("\n") == 1, f"it says {left.err}"
                        )
                reached, saved = last_logged_step(run), max(saved_steps(run / "checkpoints"), default=0)
                expect(reached - saved <= EVERY, f"{reached - saved} steps of work are lost, {EVERY} are an interval")
                began = perf_counter()
                ranks = reference.start(run, *PATIENCE)
                wait_past(ranks[0], run, reached)
                again.seconds.append(perf_counter() - began)
                for rank in ranks:
                    rank.signal(signal.SIGTERM)
                expect([rank.end().code for rank in ranks] == [75, 75], "they could not be stopped afterwards")
                reference.count(saved, run)
        with same.attempt():
            reference.check_finishes(run)
    return [other, again, same]


def freeze_ranks(reference: Reference, times: int) -> list[Tally]:
    """SIGSTOP for the second of two ranks: it is there and does nothing."""
    tally = Tally(
        f"one of 2 ranks frozen, --patience {PATIENCE[1]}", "named by the other, which ends by code 69", "ended"
    )
    run = reference.folder / "frozen"
    for _ in range(times):
        before = last_logged_step(run)
        ranks = reference.start(run, *PATIENCE)
        wait_past(ranks[0], run, before + 2)
        with tally.attempt():
            began = perf_counter()
            ranks[1].signal(signal.SIGSTOP)
            ended = ranks[0].end()
            tally.seconds.append(perf_counter() - began)
            expect(ended.code == 69, f"the other ended with {ended.code}")
            expect("rank 1 gives no sign of life" in ended.err and ended.err.count("\n") == 1, f"it says {ended.err}")
        ranks[1].signal(signal.SIGKILL)
        ranks[1].end()
        reference.count(before, run)
    with tally.closing():
        reference.check_finishes(run)
    return [tally]


def launcher_restarts(reference: Reference, times: int) -> list[Tally]:
    """`--devices 2`: its launcher starts all again, by itself, in processes that import everything anew."""
    killed = Tally("a rank killed under --devices 2", "the launcher restarts all; imports are in the time", "past it")
    run = reference.folder / "launched"
    arguments = reference.command(run, "--devices", "2", "--restarts", str(times), *PATIENCE)
    process = CommandProcess(arguments, reference.folder)
    wait_past(process, run, 2)
    for kill in range(times):
        with killed.attempt():
            reached = last_logged_step(run)
            began = perf_counter()
            os.kill(_rank(run, first=kill % 2 == 0), signal.SIGKILL)
            process.wait_until(lambda kill=kill: f"restart {kill + 1} of at most" in process.printed())  # type: ignore[misc]
            wait_past(process, run, reached)
            killed.seconds.append(perf_counter() - began)
    with killed.closing():
        process.signal(signal.SIGTERM)
        expect(process.end().code == 75, "the launcher could not be stopped")
        reference.count(0, run)
        reference.check_finishes(run)
    return [killed]


def _rank(run: Path, *, first: bool) -> int:
    """The process of the first rank, or of the second, which has the same parent."""
    chief = owner(run)
    parent = int(Path(f"/proc/{chief}/stat").read_text().rpartition(")")[2].split()[1])
    return chief if first else next(child for child in children(parent) if child != chief)
