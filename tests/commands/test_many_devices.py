"""Runs in several processes: the same weights, whatever dies or stops, on however many devices."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_runs import (
    CommandProcess,
    RankProcesses,
    assert_same_weights,
    draw_images,
    last_logged_step,
    quick_options,
    read_records,
    tiny_options,
)
from unmask.cli import main
from unmask.training.checkpoint import saved_steps

EPOCHS = 10
STEPS = 20


@dataclass(frozen=True)
class Runs:
    """How runs are started, and the end of one with two ranks that nothing disturbed."""

    data: Path
    run: Path

    def command(self, run: Path, *more: str, every: int = 1) -> list[str]:
        # CMAE has negatives and batch statistics of all ranks, MAE nothing that binds images: see the tests.
        options = [*tiny_options("cmae"), "--lr", "0.01", *quick_options(epochs=EPOCHS, every=every)]
        return ["pretrain", str(self.data), *options, "--out", str(run), "--patience", "5", *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("unbroken")
    made = Runs(draw_images(folder / "data"), folder / "run")
    ended = RankProcesses(made.command(made.run), folder, 2).end()
    assert [(rank.code, rank.err) for rank in ended] == [(0, ""), (0, "")]
    assert "on 2 x cpu" in ended[0].out
    assert ended[1].out == ""
    return made


def assert_close_weights(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_run_of_two_ranks_is_whole(runs: Runs) -> None:
    steps = read_records(runs.run, "step")
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert saved_steps(runs.run / "checkpoints") == [STEPS]
    assert json.loads((runs.run / "config.json").read_text())["training"]["parts"] == 2
    names = {"config.json", "log.csv", "log.jsonl", "checkpoints", "encoder.safetensors", "report.html"}
    assert {entry.name for entry in runs.run.iterdir()} == names


def test_a_run_goes_on_with_more_and_fewer_ranks(tmp_path: Path) -> None:
    """MAE binds no images of a batch to each other, so its parts may be computed anywhere: 4 ranks, then 2, then 1."""
    data = draw_images(tmp_path / "data")
    options = [*tiny_options("mae"), "--lr", "0.001", *quick_options(epochs=EPOCHS, every=1)]
    command = ["pretrain", str(data), *options, "--out"]
    alone = CommandProcess([*command, str(tmp_path / "alone"), "--accumulate", "4"], tmp_path).end()
    assert (alone.code, alone.err) == (0, "")
    run = tmp_path / "run"
    for ranks in (4, 2):
        processes = RankProcesses([*command, str(run)], tmp_path, ranks)
        reached = last_logged_step(run) + 3
        processes.ranks[0].wait_until(lambda reached=reached: last_logged_step(run) >= reached)  # type: ignore[misc]
        # One is told; all must stop at the same step.
        processes.ranks[-1].signal(signal.SIGUSR1)
        ended = processes.end()
        assert [(rank.code, rank.err) for rank in ended] == [(75, "")] * ranks
        assert ended[0].out.splitlines()[-1].endswith("all saved; the same command resumes")
    refused = RankProcesses([*command, str(run)], tmp_path, 3).end()
    assert {rank.code for rank in refused} == {2}
    assert "the batches of this run have 4 parts, which 3 devices cannot share equally" in refused[0].err
    last = CommandProcess([*command, str(run)], tmp_path).end()
    assert (last.code, last.err) == (0, "")
    assert "in 4 parts, on cpu" in last.out
    assert [record["step"] for record in read_records(run, "step")] == list(range(1, STEPS + 1))
    losses = [[record["loss"] for record in read_records(tmp_path / name, "step")] for name in ("run", "alone")]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5)
    assert_close_weights(run / "encoder.safetensors", tmp_path / "alone" / "encoder.safetensors")


def test_a_rank_that_is_killed_ends_all_and_the_run_ends_as_it_would_have(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for victim in (1, 0):
        processes = RankProcesses(runs.command(run), tmp_path, 2)
        reached = last_logged_step(run) + 4
        processes.ranks[0].wait_until(lambda reached=reached: last_logged_step(run) >= reached)  # type: ignore[misc]
        processes.ranks[victim].signal(signal.SIGKILL)
        ended = processes.end()
        assert ended[victim].code == -signal.SIGKILL
        other = ended[1 - victim]
        assert other.code == 69, other
        assert other.err.startswith("unmask: rank ")
        assert other.err.count("\n") == 1
        assert "what was saved is intact and the same command resumes" in other.err
    ended = RankProcesses(runs.command(run), tmp_path, 2).end()
    assert [(rank.code, rank.err) for rank in ended] == [(0, ""), (0, "")]
    assert_same_weights(run / "encoder.safetensors", runs.run / "encoder.safetensors")
    assert [record["loss"] for record in read_records(run, "step")] == [
        record["loss"] for record in read_records(runs.run, "step")
    ]


def test_a_rank_that_hangs_is_named_and_the_others_end(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = RankProcesses(runs.command(run), tmp_path, 2)
    processes.ranks[0].wait_until(lambda: last_logged_step(run) >= 3)
    processes.ranks[1].signal(signal.SIGSTOP)
    ended = processes.ranks[0].end()
    processes.ranks[1].signal(signal.SIGKILL)
    assert processes.ranks[1].end().code == -signal.SIGKILL
    assert ended.code == 69
    assert ended.err.startswith("unmask: rank 0 has waited 5 s: rank 1 gives no sign of life, last seen ")
    assert saved_steps(run / "checkpoints")


def test_the_launcher_starts_all_again_and_passes_signals_on(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = CommandProcess(runs.command(run, "--devices", "2", "--restarts", "1"), tmp_path)
    process.wait_until(lambda: last_logged_step(run) >= 3)
    os.kill(json.loads((run / ".owner.json").read_text())["process"], signal.SIGKILL)
    process.wait_until(lambda: "resuming" in process.printed())
    reached = last_logged_step(run) + 2
    process.wait_until(lambda: last_logged_step(run) >= reached)
    process.signal(signal.SIGTERM)
    ended = process.end()
    assert ended.code == 75, ended
    assert "was ended by SIGKILL (most likely because memory ran out); all 2 start again from the last" in ended.out
    assert ended.out.splitlines()[-1] == "stopped by SIGTERM; the same command resumes"
    assert "Traceback" not in ended.err
    (step,) = saved_steps(run / "checkpoints")
    assert reached <= step < STEPS
    last = RankProcesses(runs.command(run), tmp_path, 2).end()
    assert [(rank.code, rank.err) for rank in last] == [(0, ""), (0, "")]
    assert_same_weights(run / "encoder.safetensors", runs.run / "encoder.safetensors")


def test_two_runs_in_one_folder_are_refused(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = CommandProcess(runs.command(run, "--epochs", "2000"), tmp_path, name="first")
    first.wait_until(lambda: last_logged_step(run) >= 1)
    second = CommandProcess(runs.command(run, "--epochs", "2000"), tmp_path, name="second").end()
    assert second.code == 2
    owner = json.loads((run / ".owner.json").read_text())
    assert second.err == (
        f"unmask: {run} is in use by process {owner['process']} on {owner['host']} since {owner['since']}; "
        "wait until that ends, or choose another --out\n"
    )
    first.signal(signal.SIGTERM)
    assert first.end().code == 75
    assert not (run / ".owner.json").exists()


def test_sharded_weights_are_stopped_and_go_on_and_end_where_whole_ones_do(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = RankProcesses(runs.command(run, "--shard"), tmp_path, 2)
    processes.ranks[0].wait_until(lambda: last_logged_step(run) >= 3)
    processes.ranks[1].signal(signal.SIGTERM)
    stopped = processes.end()
    assert [rank.code for rank in stopped] == [75, 75], stopped
    ended = RankProcesses(runs.command(run, "--shard"), tmp_path, 2).end()
    assert [(rank.code, rank.err) for rank in ended] == [(0, ""), (0, "")]
    assert "resuming" in ended[0].out
    assert_close_weights(run / "encoder.safetensors", runs.run / "encoder.safetensors")
    for kind in ("step", "health"):
        ours, theirs = (read_records(folder, kind) for folder in (run, runs.run))
        # A run that goes on looks at its encoder first.
        assert sorted({record["step"] for record in ours}) == [record["step"] for record in theirs]
    losses = [[record["loss"] for record in read_records(folder, "step")] for folder in (run, runs.run)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--shard"], "--shard spreads the weights over several devices: use it with --devices or torchrun"),
        (["--shard", "--devices", "2", "--batch-size", "auto"], "--batch-size auto tries whole networks on one device"),
    ],
)
def test_sharding_that_cannot_be_is_refused(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "builtin:emoji", "--out", str(tmp_path / "run"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
