"""The feeding process on its own: what it does where the training was killed, and what never reaches the training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tiny_logs import add_lines, step_line, told, write_run
from unmask.loggers.follow import follow
from unmask.loggers.memory import remembered, tracker_folder


def step_of(run: Path) -> int:
    """The last step that the tracker has."""
    memory = remembered(tracker_folder(run, "tensorboard"))
    assert memory is not None
    return memory.step


def test_the_last_step_of_a_killed_training_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10), step_line(20))
    follow(run, "tensorboard", told(""))
    assert step_of(run) == 10
    add_lines(run, step_line(20), step_line(30))
    follow(run, "tensorboard", told("stopped"))
    assert step_of(run) == 30


def test_it_needs_no_torch_and_no_other_tracker() -> None:
    heavy = "{'torch', 'numpy', 'matplotlib', 'wandb', 'mlflow', 'trackio', 'tensorboard'}"
    check = f"import unmask.loggers.follow, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_kept_is_read_with_care(tmp_path: Path) -> None:
    assert remembered(tmp_path) is None
    for text in ("", "[]", '{"identity": 3}', json.dumps({"identity": "a", "step": "b"})):
        (tmp_path / "state.json").write_text(text)
        assert remembered(tmp_path) is None
