"""trackio with its database in a folder: what it holds after a stop and a resumption."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tiny_logs import HEALTH, add_lines, step_line, told, write_run
from unmask.loggers.follow import follow
from unmask.loggers.memory import remembered, tracker_folder


def test_a_stopped_run_goes_on_as_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    pytest.importorskip("trackio")
    run = write_run(tmp_path / "run", HEALTH, step_line(10), step_line(20))
    follow(run, "trackio", told("stopped"))
    add_lines(run, step_line(20), step_line(30))
    follow(run, "trackio", told("finished"))
    memory = remembered(tracker_folder(run, "trackio"))
    assert memory is not None
    assert memory.known_as == f"run-{memory.identity}"
    with sqlite3.connect(tmp_path / "own" / "unmask.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [(memory.known_as, step) for step in (0, 10, 20, 30)]
    assert json.loads(rows[0][2])["note"] == "all is one"
    assert json.loads(rows[1][2])["loss"] == 1 / 11
