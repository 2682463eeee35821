"""log.csv is a table that pandas reads, whatever figures come and however the run ended before."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tiny_logs import HEALTH, SCORE, SPIKE, add_lines, step_line, write_run
from unmask.loggers.outlets import Outlets


def test_a_row_a_step_and_a_column_a_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    outlets = Outlets(run, (), refuse)
    outlets.start({})
    for line in (HEALTH, step_line(10), step_line(20), SPIKE, SCORE):
        add_lines(run, line)
        outlets.logged()
    assert len(pd.read_csv(run / "log.csv")) == 2  # step 20 is not over
    outlets.end("finished")
    table = pd.read_csv(run / "log.csv").set_index("step")
    assert list(table.columns[:6]) == ["epoch", "seconds", "loss", "lr", "grad_norm", "images_per_second"]
    assert list(table.index) == [0, 10, 20]
    assert table["loss"].isna().tolist() == [True, False, False]
    assert table["health/feature_std"][0] == 0.25
    assert table["knn/top1"][20] == 50.0
    assert table["notes"][[0, 20]].tolist() == ["all is one", "the loss jumps"]


def test_a_resumed_run_has_its_table_from_the_beginning(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10), step_line(20))
    (run / "log.csv").write_text("step,loss\n10,0.1\n30,0.")  # of steps that were not saved, and cut short
    outlets = Outlets(run, (), refuse)
    outlets.start({})
    add_lines(run, step_line(30))
    outlets.end("stopped")
    assert pd.read_csv(run / "log.csv")["step"].tolist() == [10, 20, 30]


def test_a_table_that_cannot_be_written_is_named_once(tmp_path: Path) -> None:
    run = write_run(tmp_path, step_line(10), step_line(20))
    (run / "log.csv").mkdir()
    said: list[str] = []
    outlets = Outlets(run, (), said.append)
    outlets.start({})
    add_lines(run, step_line(30))
    outlets.logged()
    outlets.end("finished")
    assert said == [
        f"warning: cannot write {run}/log.csv (is a directory); training goes on, and log.jsonl has everything"
    ]


def refuse(sentence: str) -> None:
    raise AssertionError(sentence)
