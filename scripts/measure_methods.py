"""Measure every method and write `src/unmask/methods/measured.json`, which `unmask methods` and the docs read.

    python scripts/measure_methods.py                                  everything; needs a quiet machine
    python scripts/measure_methods.py --methods mae cmae --only step   some; the rest stays as it was measured

Golden: each case of tests/golden is replayed as `unmask verify` does. Step: `benchmarks.step` times MAE and a few
methods in one run, in which they take turns, so that each figure has its own reference. What cannot be measured is said
and left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from unmask.interop.authors import AUTHORS
from unmask.interop.golden import Verdict, find_cases, verify
from unmask.methods import METHODS
from unmask.methods.measured import FILE, GoldenResult, Measured, StepCost, read_measured, write_measured

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "mae"
TOGETHER = 4


def main() -> int:
    """Measure what was asked for, keep the rest; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--only", choices=["golden", "step"])
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden", help="folder of golden cases")
    parser.add_argument("--encoder", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=FILE)
    arguments = parser.parse_args()

    before = read_measured(arguments.out) if arguments.out.exists() else {}
    measured = {name: before.get(name, Measured()) for name in METHODS}
    failures: list[str] = []
    if arguments.only != "step":
        results = golden_results(arguments.golden, arguments.methods, today())
        measured |= {name: replace(measured[name], golden=results.get(name)) for name in arguments.methods}
    if arguments.only != "golden":
        for names in batched(arguments.methods, TOGETHER):
            try:
                costs = step_costs(names, arguments.encoder, arguments.batch_size, arguments.rounds, arguments.device)
            except subprocess.CalledProcessError as error:
                failures.append(f"{', '.join(names)}: {(error.stderr.strip() or 'no message').splitlines()[-1]}")
                costs = {}
            measured |= {name: replace(measured[name], step=costs.get(name)) for name in names}
            # What is known is kept, should the rest take too long for somebody.
            write_measured({name: value for name, value in measured.items() if value != Measured()}, arguments.out)
    write_measured({name: value for name, value in measured.items() if value != Measured()}, arguments.out)
    for failure in failures:
        sys.stderr.write(f"not measured: {failure}\n")
    return 1 if failures else 0


def today() -> str:
    """The date as it stands in the file."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def golden_results(folder: Path, methods: list[str], date: str) -> dict[str, GoldenResult]:
    """The cases of each method in `folder`, replayed; methods without a case are left out."""
    verdicts: dict[str, list[Verdict]] = {}
    ours = {cls: name for name, cls in METHODS.items()}
    for case in find_cases(folder):
        recorded = json.loads(case.read_text())
        # Authors' variants (CAN with a clean target) have names of their own.
        name = ours[type(AUTHORS[recorded["method"]].build(recorded))]
        if name in methods:
            verdicts.setdefault(name, []).append(verify(case))
    shown = folder.resolve().relative_to(ROOT) if folder.resolve().is_relative_to(ROOT) else Path(folder.name)
    return {
        method: GoldenResult(
            cases=tuple(verdict.case for verdict in found),
            agreeing=sum(verdict.agrees for verdict in found),
            largest_difference=max((error for verdict in found for error in errors(verdict)), default=None),
            command=f"unmask verify {shown}",
            date=date,
        )
        for method, found in verdicts.items()
    }


def errors(verdict: Verdict) -> list[float]:
    """The finite differences of a case, to three digits: more would change from machine to machine."""
    known = (verdict.loss_error, verdict.grad_error, verdict.norm_error, verdict.prediction_error)
    return [float(f"{error:.2e}") for error in known if error is not None and math.isfinite(error)]


def batched(names: list[str], size: int) -> list[list[str]]:
    """The names in parts of at most `size`."""
    return [names[first : first + size] for first in range(0, len(names), size)]


def step_costs(names: list[str], encoder: str, batch_size: int, rounds: int, device: str) -> dict[str, StepCost]:
    """Time a step of some methods and of MAE in one run of the benchmark."""
    options = ["--methods", *dict.fromkeys((REFERENCE, *names)), "--encoder", encoder]
    options += ["--batch-size", str(batch_size), "--rounds", str(rounds), "--device", device]
    command = ["-m", "benchmarks.step", *options]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        whole = [sys.executable, *command, "--out", str(out)]
        subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, check=True)
        result = json.loads(out.read_text())
    facts = result["facts"]
    return {
        name: StepCost(
            relative=round(result["results"][name]["relative_cost"], 2),
            encoder=facts["encoder"],
            batch_size=facts["batch_size"],
            device=facts["device"],
            threads=facts["threads"],
            torch=facts["versions"]["torch"],
            command=shlex.join(["python", *command]),
            date=today(),
        )
        for name in names
    }


if __name__ == "__main__":
    sys.exit(main())
