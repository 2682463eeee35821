"""`--log` on the command line: every run has a table, and trackers see each step once, also after a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tiny_runs import CommandProcess, draw_images, last_logged_step, quick_options, read_records, tiny_options
from unmask.cli import main
from unmask.config import load_config
from unmask.loggers import outlets
from unmask.run_folder import first_difference


def test_a_killed_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    draw_images(tmp_path / "images")
    run = tmp_path / "run"
    arguments = ["pretrain", "images", "--out", "run", *tiny_options("simmim"), *quick_options(epochs=6, every=5)]
    arguments += ["--log", "tensorboard"]
    process = CommandProcess(arguments, tmp_path)
    process.wait_until(lambda: last_logged_step(run) >= 7)
    process.signal(signal.SIGKILL)
    process.end()
    ended = CommandProcess(arguments, tmp_path).end()
    assert ended.code == 0, ended.err
    assert "tensorboard: tensorboard --logdir run/loggers/tensorboard\n" in ended.out
    assert load_config(run / "config.json").training.log == ("tensorboard",)
    steps = [record["step"] for record in read_records(run, "step")]
    assert steps == list(range(1, 13))
    table = pd.read_csv(run / "log.csv").set_index("step")
    assert list(table.index) == list(range(13))
    assert table["loss"][12] == read_records(run, "step")[-1]["loss"]
    found = EventAccumulator(str(run / "loggers" / "tensorboard"))
    found.Reload()
    assert [point.step for point in found.Scalars("loss")] == steps
    assert [point.value for point in found.Scalars("loss")] == pytest.approx(table["loss"][1:].tolist(), rel=1e-5)


def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "images")
    monkeypatch.setattr(outlets, "find_spec", lambda name: None)
    arguments = ["pretrain", "images", "--out", "run", *tiny_options("simmim"), *quick_options(epochs=1)]
    assert main([*arguments, "--log", "tensorboard", "mlflow"]) == 2
    said = capsys.readouterr().err
    assert said == "unmask: --log mlflow needs the library mlflow, which is missing: pip install 'unmask[mlflow]'\n"
    assert main([*arguments, "--log", "papyrus"]) == 2
    assert "papyrus" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_logged_elsewhere_is_no_other_run() -> None:
    assert first_difference({"training": {"log": ["wandb"]}}, {"training": {"log": ()}}) is None
    assert first_difference({"log": ["wandb"]}, {"log": ()}) is None
