"""A log is read while it is written: each step once, whole, and with all that was said of it."""

from __future__ import annotations

import math
from pathlib import Path

from tiny_logs import HEALTH, LEFT_OUT, SCORE, SPIKE, add_lines, step_line, write_run
from unmask.loggers.figures import figures_of
from unmask.loggers.tail import LogTail


def test_a_step_comes_once_and_when_it_is_complete(tmp_path: Path) -> None:
    tail = LogTail(tmp_path / "log.jsonl")
    assert list(tail.read()) == []  # nothing was logged yet
    run = write_run(tmp_path, HEALTH, step_line(10), step_line(20))
    assert [step.number for step in tail.read()] == [0, 10]
    assert list(tail.read()) == []
    add_lines(run, SPIKE, LEFT_OUT, SCORE)
    (last,) = tail.read(whole=True)
    assert last.figures == {
        "epoch": 2.0,
        "seconds": 20.0,
        "loss": 1 / 21,
        "losses/contrast": 0.5,
        "lr": 1e-3,
        "spike": 1.0,
        "left_out": 1.0,
        "knn/top1": 50.0,
    }
    assert last.notes == ["the loss jumps", "step 20 is left out: the loss is nan; the weights of step 10 came back"]


def test_a_line_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10))
    tail = LogTail(run / "log.jsonl")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 20, "lo')
    assert list(tail.read()) == []
    with (run / "log.jsonl").open("a") as file:
        file.write('ss": 0.25}\nnot json\n[1]\n')
    assert [step.figures.get("loss") for step in tail.read(whole=True)] == [1 / 11, 0.25]


def test_what_a_tracker_has_is_not_read_again(tmp_path: Path) -> None:
    """Also where the run went back to an earlier checkpoint."""
    run = write_run(tmp_path, *(step_line(step) for step in (10, 20, 10, 20, 30)))
    assert [step.number for step in LogTail(run / "log.jsonl", after=10).read(whole=True)] == [20, 30]


def test_health_and_its_warnings(tmp_path: Path) -> None:
    (step,) = LogTail(write_run(tmp_path, HEALTH) / "log.jsonl").read(whole=True)
    assert step.figures == {"epoch": 0.0, "health/feature_std": 0.25}
    assert step.notes == ["all is one"]


def test_what_is_no_number_is_no_figure() -> None:
    assert figures_of({"kind": "step", "loss": None, "lr": "fast", "time": True}) == {}
    assert figures_of({"kind": "evaluation", "name": "few", "score": {"top1": {"mean": 3, "interval": [1, 2]}}}) == {
        "few/top1/mean": 3.0
    }
    assert math.isnan(figures_of({"kind": "step", "loss": math.nan})["loss"])
