"""The benchmark of checkpoints: its share, and the whole of it at a tiny size."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import checkpointing


def test_the_share_is_of_a_save_and_the_steps_before_it() -> None:
    seconds = {"step": [1.0, 2.0, 3.0], "save": [10.0], "load": [4.0]}
    setting = vars(checkpointing.SIZES["base"])
    found = checkpointing.row({"setting": setting, "bytes": 2_000_000, "seconds": seconds})
    assert found == ("mae", "vit_base", 224, 8, 2.0, 2.0, 10.0, 4.0, pytest.approx(100 * 10 / 1010), 1.98)


def test_the_whole_benchmark_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(checkpointing.SIZES["tiny"], batch=2, depth=1, small_parts=True)
    monkeypatch.setattr(checkpointing, "SIZES", {"tiny": tiny})
    out = tmp_path / "checkpointing.json"
    options = ["--methods", "mae", "--sizes", "tiny", "--steps", "1", "--saves", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["checkpointing", *options])
    checkpointing.main()
    result = json.loads(out.read_text())
    (row,) = result["tables"][0]["rows"]
    assert row[:2] == ["mae", "vit_tiny"]
    assert result["raw"][0]["bytes"] > 1_000_000
    assert {name: len(values) for name, values in result["raw"][0]["seconds"].items()} == {
        "step": 2,
        "save": 2,
        "load": 2,
    }
