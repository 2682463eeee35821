"""Runs that are killed or stopped at any moment end exactly where an unbroken run ends."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_runs import (
    CommandProcess,
    assert_same_weights,
    draw_images,
    freeze_while_saving,
    half_written,
    last_logged_step,
    quick_options,
    read_records,
    tiny_options,
)
from unmask.cli import main
from unmask.training.checkpoint import checkpoint_path, load_checkpoint, saved_steps
from unmask.training.trainer import Trainer

KILLS = int(os.environ.get("UNMASK_KILLS", "8"))
"""Times that a run is killed; more by hand: UNMASK_KILLS=50."""
EPOCHS = max(20, 2 * KILLS)
STEPS = 2 * EPOCHS


@dataclass(frozen=True)
class Unbroken:
    """A run that nothing disturbed, and how to start it anew elsewhere."""

    data: Path
    run: Path

    def command(self, run: Path, *, workers: int = 0) -> list[str]:
        """ConMIM has all that can be forgotten: a target, batch norm, random colours. Every step is saved."""
        options = [*tiny_options("conmim"), "--lr", "0.01", *quick_options(epochs=EPOCHS, workers=workers, every=1)]
        return ["pretrain", str(self.data), *options, "--out", str(run)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    made = Unbroken(draw_images(folder / "data"), folder / "run")
    ended = CommandProcess(made.command(made.run), folder).end()
    assert (ended.code, ended.err) == (0, "")
    return made


def assert_same_end(run: Path, unbroken: Unbroken) -> None:
    """The same encoder, the same last checkpoint, and the same log of every step, once."""
    assert_same_weights(run / "encoder.safetensors", unbroken.run / "encoder.safetensors")
    ours, theirs = (
        load_checkpoint(checkpoint_path(folder / "checkpoints", STEPS), torch.device("cpu"))
        for folder in (run, unbroken.run)
    )
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert not [name for name, tensor in ours.tensors.items() if not torch.equal(tensor, theirs.tensors[name])]
    assert {**ours.values, "elapsed": 0} == {**theirs.values, "elapsed": 0}
    steps, expected = read_records(run, "step"), read_records(unbroken.run, "step")
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    for key in ("loss", "losses", "lr", "grad_norm", "epoch"):
        assert [record[key] for record in steps] == [record[key] for record in expected]
    # Nothing that was half-written lies about.
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == [f"step_{STEPS:09d}.safetensors"]
    names = {"config.json", "log.csv", "log.jsonl", "checkpoints", "encoder.safetensors", "report.html"}
    assert {entry.name for entry in run.iterdir()} == names


def wait_for_step(process: CommandProcess, run: Path, step: int) -> None:
    process.wait_until(lambda: last_logged_step(run) >= step)


def test_a_run_killed_at_any_moment_ends_where_it_would_have_ended(unbroken: Unbroken, tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed_at = []
    in_a_save = 0
    for kill in range(KILLS):
        process = CommandProcess(unbroken.command(run), tmp_path)
        if kill:
            wait_for_step(process, run, last_logged_step(run) + 2)
        else:
            process.wait_until((run / "config.json").exists)
        if kill % 2:
            freeze_while_saving(process, run, lambda: random.random() / 500)
        else:
            # Anywhere; the first one most likely before the first step.
            time.sleep(random.random() / 50)
        process.signal(signal.SIGKILL)
        assert process.end().code == -signal.SIGKILL
        in_a_save += half_written(run)
        killed_at.append(max(saved_steps(run / "checkpoints"), default=0))
    assert in_a_save, "no kill fell into the writing of a checkpoint"
    assert any(0 < step < STEPS for step in killed_at), killed_at
    ended = CommandProcess(unbroken.command(run), tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert f"resuming {run} at step {killed_at[-1]}" in ended.out
    assert_same_end(run, unbroken)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2), (signal.SIGUSR1, 0)])
def test_a_stopped_run_says_so_and_goes_on(
    unbroken: Unbroken, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    run = tmp_path / "run"
    process = CommandProcess(unbroken.command(run, workers=workers), tmp_path)
    wait_for_step(process, run, 3)
    # The second one comes while the first is being obeyed.
    process.signal(number)
    process.signal(number)
    stopped = process.end()
    assert stopped.code == 75, stopped
    assert stopped.err == ""
    (step,) = saved_steps(run / "checkpoints")
    assert 3 <= step < STEPS
    sentence = f"stopped by {number.name} at step {step}, all saved; the same command resumes"
    assert stopped.out.splitlines()[-1] == sentence
    assert "Traceback" not in stopped.out
    assert not (run / "encoder.safetensors").exists()

    # How many workers decode may change on the way.
    ended = CommandProcess(unbroken.command(run), tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert f"resuming {run} at step {step}" in ended.out
    assert_same_end(run, unbroken)


def test_processes_that_decode_change_nothing(unbroken: Unbroken, tmp_path: Path) -> None:
    ended = CommandProcess(unbroken.command(tmp_path / "run", workers=2), tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert_same_end(tmp_path / "run", unbroken)


def test_a_disk_that_fills_up_stops_the_run_with_a_sentence(unbroken: Unbroken, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Log and configuration still fit, a checkpoint does not.
    refused = CommandProcess(unbroken.command(run), tmp_path, largest_file=20_000).end()
    assert refused.code == 2
    assert refused.err.startswith(f"unmask: could not write {run}/checkpoints/step_000000001.safetensors (")
    assert refused.err.count("\n") == 1
    assert os.listdir(run / "checkpoints") == []
    ended = CommandProcess(unbroken.command(run), tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert_same_end(run, unbroken)


def test_a_run_that_waits_for_room_on_the_disk_goes_on_when_there_is(unbroken: Unbroken, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = CommandProcess([*unbroken.command(run), "--wait-for-disk", "5"], tmp_path, largest_file=20_000)
    process.wait_until(lambda: "trying again for 5 more minutes" in process.printed())
    assert os.listdir(run / "checkpoints") == []
    process.allow_any_file()
    ended = process.end()
    assert (ended.code, ended.err) == (0, "")
    assert_same_end(run, unbroken)


@pytest.mark.parametrize("where", ["gpu", "processor"])
def test_a_step_that_memory_does_not_hold_ends_the_run_with_a_sentence(
    where: str,
    unbroken: Unbroken,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = Trainer.take_step

    def full(trainer: Trainer[Any], batches: Any) -> None:
        if trainer.step == 2 and where == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if trainer.step == 2:
            torch.empty(2**56)  # no machine has this
        whole(trainer, batches)

    run = tmp_path / "run"
    monkeypatch.setattr(Trainer, "take_step", full)
    assert main(unbroken.command(run)) == 1
    err = capsys.readouterr().err
    assert err.startswith("unmask: cpu has not enough memory for a step of 8 images; the run so far is kept in ")
    assert "try --batch-size auto" in err
    assert err.count("\n") == 1
    assert saved_steps(run / "checkpoints") == [2]
    monkeypatch.undo()
    assert main(unbroken.command(run)) == 0
    assert_same_end(run, unbroken)
