"""Losses that are no numbers: steps are left out, and weights come back."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.runs import EVERY, CommandProcess, Reference, Tally, expect, read_records
from benchmarks.faults.unsteady import BROKEN, POISONED, STEPS
from tiny_runs import quick_options, tiny_options


def not_finite(reference: Reference, times: int) -> list[Tally]:
    """Steps whose loss is NaN, and weights that are NaN."""
    left_out = Tally("the loss of a step is NaN", "left out, told, kept for replay; the run ends well", "the next step")
    rolled_back = Tally("the weights are NaN", "after 3 steps those of the last checkpoint come back", "the next step")
    for number in range(times):
        run = _train("Unsteady", reference, number)
        records = read_records(run, "left out")
        for step in BROKEN:
            with left_out.attempt():
                (record,) = [record for record in records if record["number"] == step]
                expect("is nan, samples " in record["reason"], f"it says {record['reason']}")
                left_out.seconds.append(_next_step(run, step) - record["time"])
        with left_out.closing():
            expect(len(records) == len(BROKEN), f"{len(records)} steps are left out, {len(BROKEN)} are broken")
            expect((run / "encoder.safetensors").exists(), "the run did not end well")
        with rolled_back.attempt():
            run = _train("Poisoned", reference, number)
            records = read_records(run, "left out")
            numbers = [record["number"] for record in records]
            expect(numbers == [POISONED, POISONED + 1, POISONED + 2], f"left out are {numbers}")
            rolled_back.seconds.append(_next_step(run, numbers[-1]) - records[0]["time"])
            back = POISONED // EVERY * EVERY
            said = (reference.folder / "stdout.txt").read_text()
            expect(f"the weights of step {back} come back" in said, f"it says {said}")
            expect((run / "encoder.safetensors").exists(), "the run did not end well")
    return [left_out, rolled_back]


def _train(method: str, reference: Reference, number: int) -> Path:
    run = reference.folder / f"{method.lower()}-{number}"
    options = [*tiny_options("mae"), *quick_options(epochs=STEPS / 2, every=EVERY)]
    options[options.index("--method") + 1] = f"benchmarks.faults.unsteady:{method}"
    ended = CommandProcess(["pretrain", str(reference.data), *options, "--out", str(run)], reference.folder).end()
    expect(ended.code == 0, f"the run fails: {ended}")
    reference.count(0, run)
    return run


def _next_step(run: Path, number: int) -> float:
    """Seconds of training at the first step taken after the one of this number; steps in the log count from 1."""
    return next(record["time"] for record in read_records(run, "step") if record["step"] > number + 1)
