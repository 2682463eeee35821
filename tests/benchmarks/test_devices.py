"""The benchmark of several processes: its sides run, and its ratios say what they should."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import devices


def test_ratios_are_taken_by_round() -> None:
    seconds = {"one": [1.0, 2.0, 1.0], "ranks": [2.0, 4.0, 1.25], "strangers": [1.5, 3.0, 1.0], "threads": [4.0] * 3}
    images = {"one": 8, "ranks": 16, "strangers": 16, "threads": 16}
    found = devices.row({"method": "mae", "images": images, "seconds": seconds})
    assert found == ("mae", 8.0, 8.0, 50.0, 16 / 1.5, 75.0, 4.0, 2.0)


def test_the_whole_benchmark_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Instant(devices.Side):
        """Sides of this process: starting five others would take a minute of processor time."""

        def __init__(self, method, arguments, *, processes, ranks, threads) -> None:  # type: ignore[no-untyped-def]
            self.images = processes * threads
            self.processes = []

        def step(self) -> float:
            return float(self.images)

    monkeypatch.setattr(devices, "Side", Instant)
    out = tmp_path / "devices.json"
    monkeypatch.setattr(sys, "argv", ["devices", "--methods", "mae", "cmae", "--rounds", "2", "--out", str(out)])
    devices.main()
    result = json.loads(out.read_text())
    assert [row[0] for row in result["tables"][0]["rows"]] == ["mae", "cmae"]
    assert all(len(values) == 2 for raw in result["raw"] for values in raw["seconds"].values())


def test_a_process_steps_when_it_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--encoder vit_tiny_patch16_224 --depth 1 --image-size 32 --batch-size 2 --methods mae --serve 1"
    monkeypatch.setattr(sys, "argv", ["devices", *sizes.split()])
    monkeypatch.setattr(sys, "stdin", ["step\n", "step\n"])
    devices.main()
    assert [float(line) > 0 for line in capsys.readouterr().out.splitlines()] == [True, True]
