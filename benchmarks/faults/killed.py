"""Processes that are killed, told to stop, or started twice; disks that fill up; data workers that die."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.faults.runs import (
    EVERY,
    CommandProcess,
    Reference,
    Tally,
    children,
    expect,
    freeze_while_saving,
    half_written,
    kill,
    last_logged_step,
    owner,
    wait_past,
)
from unmask.training.checkpoint import checkpoint_path, load_checkpoint, saved_steps

GROUP = 10
"""Kills of one run, before it may finish and is compared."""


def steps_needed(kills: int) -> int:
    """An even number of steps that so many kills do not reach the end of."""
    return 10 + 20 * kills


def kill_again_and_again(reference: Reference, kills: int, chance: random.Random) -> list[Tally]:
    """SIGKILL at random moments, every other one inside the writing of a checkpoint."""
    promise = "goes on from the newest checkpoint, at most one interval repeated"
    anywhere = Tally("SIGKILL at a random moment", promise, "past where it was")
    saving = Tally("SIGKILL inside the writing of a checkpoint", promise, "past where it was")
    same = Tally(f"the end of a run killed {min(GROUP, kills)} times", "weights and log as unbroken, bit for bit", "")
    for first in range(0, kills, GROUP):
        run = reference.folder / f"killed-{first}"
        (process,) = reference.start(run)
        for number in range(first, min(first + GROUP, kills)):
            tally = saving if number % 2 else anywhere
            with tally.attempt():
                if number == first:
                    time.sleep(chance.random())
                else:
                    wait_past(process, run, last_logged_step(run) + chance.randrange(3))
                    time.sleep(chance.random() / 50)
                process = _kill_once(reference, process, run, tally, chance)
        kill(process)
        with same.attempt():
            reference.check_finishes(run)
    return [anywhere, saving, same]


def _kill_once(
    reference: Reference, process: CommandProcess, run: Path, tally: Tally, chance: random.Random
) -> CommandProcess:
    """Kill the run's process; another one, which is past where that was."""
    while_saving = "inside" in tally.fault
    if while_saving:
        freeze_while_saving(process, run, lambda: chance.random() / 500)
    process.signal(signal.SIGKILL)
    expect(process.end().code == -signal.SIGKILL, "the process ended before it was killed")
    expect(not while_saving or half_written(run), "the kill missed the writing of a checkpoint")
    reached, saved = last_logged_step(run), max(saved_steps(run / "checkpoints"), default=0)
    began = perf_counter()
    (process,) = reference.start(run)
    wait_past(process, run, reached)
    tally.seconds.append(perf_counter() - began)
    Reference.steps_taken += reached - saved
    expect(reached - saved <= EVERY, f"{reached - saved} steps of work are lost, {EVERY} are an interval")
    expect(not saved or f"at step {saved}" in process.printed(), f"it did not resume at step {saved}")
    return process


def fresh_starts(reference: Reference, times: int) -> list[Tally]:
    """The same with `python -m unmask` from nothing, as a user starts it: Python, torch and timm are imported."""
    tally = Tally(
        "SIGKILL, and `python -m unmask pretrain` from nothing", "goes on; imports are in the time", "past where it was"
    )
    run = reference.folder / "fresh"
    command = [sys.executable, "-m", "unmask", *reference.command(run)]
    for attempt in range(times + 1):
        reached = last_logged_step(run)
        began = perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        # The first start recovers from nothing.
        with tally.attempt() if attempt else tally.closing():
            while last_logged_step(run) <= reached:
                expect(process.poll() is None, f"the command ended with {process.returncode}")
                expect(perf_counter() - began < 300, "the command hangs")
                time.sleep(0.005)
            if attempt:
                tally.seconds.append(perf_counter() - began)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reference.count(reached, run)
    return [tally]


def stop_by_signals(reference: Reference, times: int) -> list[Tally]:
    """SIGTERM, SIGINT and a cluster's SIGUSR1."""
    tallies = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        tally = Tally(number.name, "saves its very step, exit code 75", "saved and ended")
        run = reference.folder / number.name
        for _ in range(times):
            before = last_logged_step(run)
            (process,) = reference.start(run)
            wait_past(process, run, before + 2)
            with tally.attempt():
                began = perf_counter()
                process.signal(number)
                stopped = process.end()
                tally.seconds.append(perf_counter() - began)
                reference.count(before, run)
                (step,) = saved_steps(run / "checkpoints")
                sentence = f"stopped by {number.name} at step {step}, all saved; the same command resumes"
                expect(stopped.code == 75, f"exit code {stopped.code}")
                expect(stopped.out.splitlines()[-1] == sentence and not stopped.err, f"it says {stopped}")
                expect(step == last_logged_step(run), "not all was saved")
        with tally.closing():
            reference.check_finishes(run)
        tallies.append(tally)
    return tallies


def start_twice(reference: Reference, times: int) -> list[Tally]:
    """A second command for the folder of a run that is under way."""
    tally = Tally("the same run started a second time", "refused by exit code 2, its owner named", "refused")
    run = reference.folder / "twice"
    first = CommandProcess(reference.command(run, "--epochs", "100000"), reference.folder, name="-first")
    wait_past(first, run, 0)
    for _ in range(times):
        with tally.attempt():
            began = perf_counter()
            second = CommandProcess(reference.command(run, "--epochs", "100000"), reference.folder).end()
            tally.seconds.append(perf_counter() - began)
            expect(second.code == 2 and f"{run} is in use by process " in second.err, f"it says {second}")
    first.signal(signal.SIGTERM)
    with tally.closing():
        expect(first.end().code == 75, "the first run was harmed")
    reference.count(0, run)
    return [tally]


def fill_the_disk(reference: Reference, times: int) -> list[Tally]:
    """No file may grow any more, as on a full disk: without and with --wait-for-disk."""
    full = Tally("disk full while a checkpoint is written", "a sentence; the one before is intact, no litter", "ended")
    room = Tally("disk full, --wait-for-disk, then room again", "the run goes on by itself", "past where it was")
    run = reference.folder / "full"
    for _ in range(times):
        before = last_logged_step(run)
        (process,) = reference.start(run)
        wait_past(process, run, before + EVERY)
        process.signal(signal.SIGTERM)
        process.end()
        (saved,) = saved_steps(run / "checkpoints")
        with full.attempt():
            began = perf_counter()
            ended = CommandProcess(reference.command(run), reference.folder, largest_file=20_000).end()
            full.seconds.append(perf_counter() - began)
            expect(ended.code == 2 and "could not write" in ended.err, f"it says {ended}")
            left = [entry.name for entry in (run / "checkpoints").iterdir()]
            expect(left == [checkpoint_path(run, saved).name], f"checkpoints/ holds {left}")
            load_checkpoint(checkpoint_path(run / "checkpoints", saved), torch.device("cpu"))
        with room.attempt():
            command = reference.command(run, "--wait-for-disk", "5")
            waiting = CommandProcess(command, reference.folder, largest_file=20_000)
            waiting.wait_until(lambda: "trying again for 5 more minutes" in waiting.printed())  # noqa: B023
            reached = last_logged_step(run)
            began = perf_counter()
            waiting.allow_any_file()
            wait_past(waiting, run, reached)
            room.seconds.append(perf_counter() - began)
            waiting.signal(signal.SIGTERM)
            expect(waiting.end().code == 75, "it could not be stopped after it had waited")
        reference.count(before, run)
    with room.closing():
        reference.check_finishes(run)
    return [full, room]


def kill_workers(reference: Reference, times: int) -> list[Tally]:
    """SIGKILL for a process that decodes, as the system does that to one when memory runs out."""
    tally = Tally("a data worker killed by the system", "a sentence with advice, exit code 1; resumes", "ended")
    run = reference.folder / "worker"
    for _ in range(times):
        before = last_logged_step(run)
        process = CommandProcess(reference.command(run, "--workers", "2"), reference.folder)
        wait_past(process, run, before + 1)
        with tally.attempt():
            workers = children(owner(run))
            expect(len(workers) == 2, f"{len(workers)} workers run")
            began = perf_counter()
            os.kill(workers[0], signal.SIGKILL)
            ended = process.end()
            tally.seconds.append(perf_counter() - began)
            expect(ended.code == 1 and "a data worker died" in ended.err, f"it says {ended}")
            expect("use fewer workers" in ended.err and ended.err.count("\n") == 1, f"it says {ended.err}")
        reference.count(before, run)
    with tally.closing():
        reference.check_finishes(run)
    return [tally]
