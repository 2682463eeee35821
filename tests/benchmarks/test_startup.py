"""The benchmark of start-up: what it waits for, and whom it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.startup import YARDSTICK, environment, photo_folder, tables, until_done, until_first_step
from PIL import Image

SIGNS = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir()
(run / "config.json").write_text("{}")
with open(run / "log.jsonl", "w") as log:
    for kind in sys.argv[2:]:
        print(json.dumps({"kind": kind}), file=log, flush=True)
"""


def test_photos_are_many_names_of_a_few_files(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos", 1100, different=3)
    files = sorted(folder.rglob("*.jpg"))
    assert len(files) == 1100
    assert {file.parent.name for file in files} == {"000", "001"}
    assert len({file.stat().st_ino for file in files}) == 3
    assert Image.open(files[-1]).size == (500, 375)


def test_signs_of_life_are_seen_and_the_process_is_ended(tmp_path: Path) -> None:
    # It would go on for long: that this test ends soon shows that it was ended.
    code = SIGNS + "time.sleep(600)\n"
    run = tmp_path / "run"
    seen = until_first_step([sys.executable, "-c", code, str(run), "health", "step"], run, os.environ)
    assert set(seen) == {"configured", "looked at", "first step"}
    assert all(wall > 0 for wall, _ in seen.values())


def test_a_run_that_ends_before_its_first_step_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(subprocess.CalledProcessError):
        until_first_step([sys.executable, "-c", SIGNS, str(run), "health"], run, os.environ)


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    variables = environment(tmp_path / "bytecode")
    assert "PYTHONDONTWRITEBYTECODE" not in variables
    wall, cpu = until_done([sys.executable, "-c", "import json"], variables)
    assert wall > 0
    assert cpu > 0
    with pytest.raises(subprocess.CalledProcessError):
        until_done([sys.executable, "-c", "raise SystemExit(3)"], variables)


def test_the_table_is_in_times_of_the_yardstick() -> None:
    (table,) = tables({YARDSTICK: [(2.0, 1.0), (4.0, 1.0), (3.0, 1.0)], "other": [(6.0, 5.0)]}, 10)
    assert table.rows == ((YARDSTICK, 3.0, 1.0, 1.0), ("other", 6.0, 5.0, 2.0))
