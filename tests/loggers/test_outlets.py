"""Trackers are fed by processes of their own: whatever these do, a training goes on, ends, and says so once."""

from __future__ import annotations

import sys
import typing
from pathlib import Path

import pytest

from tiny_logs import add_lines, step_line, write_run
from unmask.extras import EXTRAS
from unmask.loggers import TRACKERS, outlets
from unmask.loggers.memory import remembered, tracker_folder, without_secrets
from unmask.loggers.outlets import Outlets, check_trackers
from unmask.training.trainer import Tracker


def test_every_tracker_that_may_be_named_is_there() -> None:
    assert typing.get_args(Tracker) == tuple(TRACKERS)
    assert set(TRACKERS) - set(EXTRAS) == {"tensorboard"}


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # as it leaves behind, and Python takes for a package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "mlflow")]:
        monkeypatch.delitem(sys.modules, name)
    check_trackers(("tensorboard",))
    for name in ("wandb", "mlflow"):
        with pytest.raises(ValueError, match=rf"^--log {name} needs the library {name}, which is missing: pip install"):
            check_trackers((name,))


def test_a_tracker_gets_all_and_says_where(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10))
    said: list[str] = []
    found = Outlets(run, ("tensorboard", "tensorboard"), said.append)
    found.start({"device": "cpu"})
    add_lines(run, step_line(20))
    found.logged()
    found.end("finished")
    folder = tracker_folder(run, "tensorboard")
    assert said == [f"tensorboard: tensorboard --logdir {folder}"]
    memory = remembered(folder)
    assert memory is not None
    assert (memory.step, memory.trouble) == (20, "")
    assert len(list(folder.glob("events.*"))) == 1


def test_a_run_of_which_all_is_known_is_not_opened_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10))
    for _ in range(2):
        found = Outlets(run, ("tensorboard",), lambda sentence: None)
        found.start({})
        found.end("finished")
    assert len(list(tracker_folder(run, "tensorboard").glob("events.*"))) == 1


def test_a_tracker_that_fails_is_named_and_gets_the_rest_another_time(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10), step_line(20))
    (run / "config.json").rename(run / "gone")
    said: list[str] = []
    found = Outlets(run, ("tensorboard",), said.append)
    found.start({})
    found.end("finished")
    assert said == [
        "warning: tensorboard has not got all figures (FileNotFoundError: [Errno 2] No such file or directory: "
        f"'{run}/config.json'); the same command again gives tensorboard what it lacks"
    ]
    (run / "gone").rename(run / "config.json")
    found = Outlets(run, ("tensorboard",), said.append)
    found.start({})
    found.end("finished")
    assert len(said) == 2
    assert said[1].startswith("tensorboard: tensorboard --logdir")


def test_while_a_training_goes_on_it_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlets, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(outlets, "FIRST_PAUSE", 0.0)
    run = write_run(tmp_path, step_line(10))
    (run / "loggers").write_text("no folder")
    said: list[str] = []
    found = Outlets(run, ("tensorboard",), said.append)
    found.start({})
    for _ in range(3):  # each time its process has ended it is started again
        follower = found._followers[0]
        while follower._process is not None:
            follower._process.wait()
            found.logged()
        found.logged()
    found.end("stopped")
    assert said[0] == (
        "warning: tensorboard takes no figures (its process ended with code 1); "
        "training goes on, and log.jsonl has everything"
    )
    assert len(said) == 2  # and one at the end


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(outlets.PATIENCE, "finished", 0.0)
    run = write_run(tmp_path, step_line(10))
    said: list[str] = []
    found = Outlets(run, ("tensorboard",), said.append)
    found.start({})
    found.end("finished")
    assert said == [
        "warning: tensorboard did not take all figures in time; the same command again gives tensorboard what it lacks"
    ]


def test_secrets_are_left_out() -> None:
    environment = {"MLFLOW_TRACKING_PASSWORD": "open sesame", "WANDB_API_KEY": "0123456789", "HOME": "/home/me"}
    said = without_secrets("https://me:pw@host/x?a=open sesame, 0123456789 of /home/me", environment)
    assert said == "https://host/x?a=$MLFLOW_TRACKING_PASSWORD, $WANDB_API_KEY of /home/me"
