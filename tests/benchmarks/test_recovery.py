"""The benchmark of recovery: what it counts as kept, and some of its faults at a tiny size."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from benchmarks.faults.damaged import damaged_checkpoints
from benchmarks.faults.figures import not_finite
from benchmarks.faults.runs import Reference, Tally, expect

from benchmarks import recovery


def test_a_broken_promise_is_counted_and_told() -> None:
    tally = Tally("fault", "promise", "ended")
    for number in range(3):
        with tally.attempt():
            tally.seconds.append(float(number))
            expect(number != 1, "it is not so")
    with tally.closing():
        expect(True, "")
    assert tally.row() == ("fault", "promise", "2 of 3", 1.0, 2.0, "ended")
    assert tally.broken == ["fault, try 2: it is not so"]
    with tally.closing():
        expect(False, "in the end")
    assert (tally.kept, tally.tries) == (2, 4)


def test_faults_of_checkpoints_and_figures_at_a_tiny_size(tmp_path: Path) -> None:
    reference = Reference(tmp_path, 8)
    assert Reference.steps_taken >= 8
    tallies = damaged_checkpoints(reference, 3, random.Random(0))
    tallies += not_finite(reference, 1)
    assert [sentence for tally in tallies for sentence in tally.broken] == []
    assert len(tallies) == 5
    assert all(tally.tries for tally in tallies)


def test_results_are_published_and_broken_promises_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Faults of processes take seconds each: tests/commands has them. Here only what is made of their tallies.
    kept, broken = (Tally(name, "promise", "ended", tries=2, seconds=[1.0, 3.0]) for name in ("kept", "broken"))
    monkeypatch.setattr(recovery, "measure", lambda *_: [kept, broken])
    out = tmp_path / "recovery.json"
    monkeypatch.setattr(sys, "argv", ["recovery", "--out", str(out)])
    recovery.main()
    result = json.loads(out.read_text())
    assert result["tables"][0]["rows"][0] == ["kept", "promise", "2 of 2", 2.0, 3.0, "ended"]
    assert result["tables"][0]["caption"].startswith("4 faults, 4 of them outlived as promised; ")
    broken.broken.append("broken, try 1: no")
    with pytest.raises(SystemExit, match="broken, try 1: no"):
        recovery.main()
    assert json.loads(out.read_text())["raw"]["broken"]["broken"] == ["broken, try 1: no"]
