"""Weights & Biases without a network: what its offline files hold after a stop and a resumption."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_logs import HEALTH, add_lines, step_line, told, write_run
from unmask.loggers.follow import follow
from unmask.loggers.memory import remembered, tracker_folder

HEADER = 7
"""Bytes before the first record, and before each record's content: checksum, length, type."""


def records(file: Path) -> Iterator[Any]:
    """The records of one of its files, which are shorter here than a block of its format."""
    from wandb.proto.wandb_internal_pb2 import Record

    written = file.read_bytes()
    assert written.startswith(b":W&B")
    place = HEADER
    while place < len(written):
        _, length, kind = struct.unpack("<IHB", written[place : place + HEADER])
        assert kind == 1, "a record in several pieces"
        record = Record()
        record.ParseFromString(written[place + HEADER : place + HEADER + length])
        yield record
        place += HEADER + length


def test_a_stopped_run_goes_on_as_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "own"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    run = write_run(tmp_path / "run", HEALTH, step_line(10), step_line(20))
    follow(run, "wandb", told("stopped"))
    add_lines(run, step_line(20), step_line(30))
    follow(run, "wandb", told("finished"))
    wandb.teardown()
    files = sorted(tracker_folder(run, "wandb").rglob("*.wandb"))
    assert len(files) == 2
    memory = remembered(tracker_folder(run, "wandb"))
    assert memory is not None
    assert (memory.step, memory.trouble) == (30, "")
    assert memory.where == f"wandb sync {files[1].parent}"
    history, runs = [], []
    for file in files:
        for record in records(file):
            if record.HasField("history"):
                history.append(
                    {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                )
            if record.HasField("run"):
                runs.append(record.run)
    assert {found.run_id for found in runs} == {memory.identity}
    assert {found.project for found in runs} == {"unmask"}
    assert [(row["_step"], row.get("loss")) for row in history] == [(0, None), (10, 1 / 11), (20, 1 / 21), (30, 1 / 31)]
    assert (history[0]["health/feature_std"], history[0]["note"]) == (0.25, "all is one")
    facts = {item.key: item.value_json for found in runs for item in found.config.update}
    assert json.loads(facts["training.epochs"]) == 2.0
    assert "hunter22" not in str(facts)
    assert not any(b"k" * 40 in path.read_bytes() for path in run.rglob("*") if path.is_file())
