"""Run folders that nothing was trained in: a configuration and a log, for what reads them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from unmask.loggers.follow import Training

CONFIG = {"format": 1, "data": "https://me:hunter22@host/set", "training": {"epochs": 2.0, "betas": [0.9, 0.95]}}


def step_line(step: int, **more: Any) -> dict[str, Any]:
    """The line of a step."""
    usual = {"loss": 1 / (step + 1), "losses": {"contrast": 0.5}, "lr": 1e-3, "grad_norm": None}
    return {"kind": "step", "step": step, "epoch": step / 10, "time": float(step)} | usual | more


HEALTH = {"kind": "health", "step": 0, "epoch": 0.0, "figures": {"feature_std": 0.25}, "warnings": ["all is one"]}
SPIKE = {"kind": "spike", "step": 20, "epoch": 2.0, "loss": 9.0, "warning": "the loss jumps"}
LEFT_OUT = {"kind": "left out", "step": 20, "epoch": 2.0, "number": 20, "reason": "the loss is nan", "back": 10}
SCORE = {
    "kind": "evaluation",
    "step": 20,
    "epoch": 2.0,
    "name": "knn",
    "score": {"top1": 50.0, "interval": [40.0, 60.0]},
}


def write_run(folder: Path, *lines: dict[str, Any]) -> Path:
    """A run's folder with these lines in its log."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    add_lines(folder, *lines)
    return folder


def add_lines(folder: Path, *lines: dict[str, Any]) -> None:
    """More lines for the log."""
    with (folder / "log.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def told(ending: str) -> Training:
    """A training that is over; with "" it was killed."""
    return Training(io.StringIO('{"device": "cpu"}\n' + ending))
