"""What `scripts/measure_methods.py` writes down is what was found, and how."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unmask.interop.golden import Verdict
from unmask.methods.measured import GoldenResult, Measured, read_measured, write_measured

ROOT = Path(__file__).parents[1]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("measure_methods")


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """One case that agrees, and one that cannot be replayed."""
    folder = tmp_path / "cases"
    folder.mkdir()
    for end in ("json", "safetensors"):
        shutil.copy(ROOT / "tests" / "golden" / f"simmim.{end}", folder)
        shutil.copy(ROOT / "tests" / "golden" / f"mae.{end}", folder)
    broken = json.loads((folder / "mae.json").read_text()) | {"steps": 0}
    (folder / "mae.json").write_text(json.dumps(broken))
    return folder


def test_golden_cases_are_counted_by_method(measure: ModuleType, cases: Path) -> None:
    results = measure.golden_results(cases, ["simmim", "mae"], "2026-01-01")
    assert set(results) == {"simmim", "mae"}
    agreeing = results["simmim"]
    assert (agreeing.cases, agreeing.agreeing, agreeing.date) == (("simmim",), 1, "2026-01-01")
    assert agreeing.largest_difference < 1e-8
    assert agreeing.command == "unmask verify cases", "no path of this machine"
    assert (results["mae"].agreeing, results["mae"].largest_difference) == (0, None)


def test_what_is_not_asked_for_stays(measure: ModuleType, cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = cases / "measured.out"
    kept = GoldenResult(cases=("old",), agreeing=1, largest_difference=0.0, command="unmask verify", date="2025-01-01")
    write_measured({"mae": Measured(golden=kept), "gone": Measured(golden=kept)}, out)
    arguments = ["--methods", "simmim", "--only", "golden", "--golden", str(cases), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["measure_methods.py", *arguments])
    assert measure.main() == 0
    found = read_measured(out)
    assert found["mae"] == Measured(golden=kept)
    assert set(found) == {"mae", "simmim"}


def test_differences_are_finite_and_short(measure: ModuleType) -> None:
    verdict = Verdict(case="a", method="mae", agrees=False, loss_error=1.23456e-9, grad_error=float("inf"))
    assert measure.errors(verdict) == [1.23e-9]
