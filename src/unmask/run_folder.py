"""The folder of a run: where its files lie, and what may be written into it."""

from __future__ import annotations

import dataclasses
import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.config import Configuration, RunConfig, load_config, read_values, save_config
from unmask.json_lines import object_in
from unmask.loggers.figures import flat
from unmask.report.log import read_log
from unmask.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    saved_steps,
)

# How a run is executed may change between a stop and its resumption; what it computes may not.
EXECUTION = (
    "workers",
    "device",
    "log_every",
    "checkpoint_every",
    "keep_every",
    "evaluate_every",
    "max_bad_share",
    "max_nonfinite",
    "wait_for_disk",
    "log",
)


@dataclass(frozen=True)
class RunFolder:
    """`config.json`, `log.jsonl`, `log.csv`, `checkpoints/`, `encoder.safetensors`, `report.html`, `bad_files.txt`."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def log_file(self) -> Path:
        """One JSON object a line: steps, evaluations, health."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def encoder_file(self) -> Path:
        """The finished encoder."""
        return self.path / "encoder.safetensors"

    @property
    def report_file(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def bad_files(self) -> Path:
        """Images that could not be read, with the reason."""
        return self.path / "bad_files.txt"

    def left_out(self, step: int) -> Path:
        """The weights as a step found them that was left out because it was not finite."""
        return checkpoint_path(self.path / "left_out", step)

    def steps_left_out(self) -> list[int]:
        """The steps that are kept for `unmask replay`, ascending."""
        return saved_steps(self.path / "left_out")

    def config(self) -> RunConfig:
        """The run's configuration. ValueError where the folder holds no run."""
        if not self.config_file.exists():
            raise ValueError(f"{self.path} is not a run folder: it has no config.json")
        return load_config(self.config_file)

    def values(self) -> dict[str, Any]:
        """What config.json holds, unchecked. ValueError where the folder holds no run or no JSON."""
        if not self.config_file.exists():
            raise ValueError(f"{self.path} is not a run folder: it has no config.json")
        return read_values(self.config_file)

    def claim(self, config: Configuration) -> None:
        """Make the folder this run's, or find that it already is. ValueError where it holds something else."""
        if self.config_file.exists():
            difference = first_difference(completed(self.values(), config), config.as_dict())
            if difference is not None:
                raise ValueError(f"{self.path} holds another run ({difference}); choose another --out")
            return
        # Written aside: a run that is killed here must find its folder either claimed or still free.
        aside = self.path / ".config.json.part"
        if self.path.exists() and (not self.path.is_dir() or any(entry != aside for entry in self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not a run folder; choose another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            save_config(config, aside)
            aside.replace(self.config_file)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the run folder {self.path} ({_reason(error)})") from error

    def newest_checkpoint(self, device: torch.device) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be read, and a sentence for each newer one that cannot.

        None where there is no checkpoint at all. CheckpointError where there are some but none is good.
        """
        troubles: list[str] = []
        steps = saved_steps(self.checkpoints)
        for step in reversed(steps):
            try:
                return load_checkpoint(checkpoint_path(self.checkpoints, step), device), troubles
            except CheckpointError as error:
                troubles.append(str(error))
        if troubles:
            raise CheckpointError(troubles[0])
        return None, []

    def has_checkpoints(self) -> bool:
        """Whether there is any checkpoint, good or bad."""
        return bool(saved_steps(self.checkpoints))

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to the log. ValueError where it cannot be written."""
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise ValueError(f"cannot write {self.log_file} ({_reason(error)})") from error

    def last_step(self) -> tuple[int, float]:
        """Step and epoch of the newest step in the log; zeros where there is none."""
        records = read_log(self.log_file) if self.log_file.exists() else []
        steps = [record for record in records if record["kind"] == "step"]
        return (int(steps[-1]["step"]), float(steps[-1].get("epoch", 0))) if steps else (0, 0.0)

    def forget_after(self, step: int) -> None:
        """Drop log lines of steps after `step`: a killed run had taken them, but they were not saved."""
        if not self.log_file.exists():
            return
        kept = []
        for line in self.log_file.read_text(encoding="utf-8", errors="replace").splitlines():
            record = object_in(line)
            if record is None:
                continue  # the line that a kill cut short
            of = record.get("step")
            if not isinstance(of, int | float) or of <= step:
                kept.append(line + "\n")
        aside = self.log_file.with_suffix(".part")
        aside.write_text("".join(kept), encoding="utf-8")
        os.replace(aside, self.log_file)

    def write_report(self, page: str) -> Path:
        """Write the page; returns its path. ValueError where it cannot be written."""
        try:
            self.report_file.write_text(page, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ValueError(f"cannot write {self.report_file} ({_reason(error)})") from error
        return self.report_file

    def write_bad_files(self, bad: dict[str, str]) -> None:
        """List unreadable images, one a line: name, tab, reason."""
        if bad:
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(bad.items())]
            try:
                self.bad_files.write_text("".join(lines), encoding="utf-8")
            except OSError as error:
                raise ValueError(f"cannot write {self.bad_files} ({_reason(error)})") from error


def _reason(error: OSError) -> str:
    return (error.strerror or "error").lower()


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def completed(old: dict[str, Any], config: Any) -> dict[str, Any]:
    """Plain values of a configuration, with the defaults of fields that there were not yet when they were written."""
    values = dict(old)
    for field in dataclasses.fields(config):
        now = getattr(config, field.name)
        if field.name not in values:
            if field.default is not dataclasses.MISSING:
                values[field.name] = _plain(field.default)
        elif dataclasses.is_dataclass(now) and isinstance(values[field.name], dict):
            values[field.name] = completed(values[field.name], now)
    return values


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first thing in which two configurations compute something else, in words; None where they are the same."""
    before, after = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in flat(values).items()}
        for values in (old, new)
    )
    for key in (*before, *(key for key in after if key not in before)):
        if key.removeprefix("training.") in EXECUTION:
            continue
        if before.get(key) != after.get(key):
            return f"its {key} is {_short(before.get(key))}, not {_short(after.get(key))}"
    return None


def _short(value: Any) -> str:
    """A value in one line of a sentence."""
    return textwrap.shorten(str(value), width=80, placeholder=" ...")
